//! Causes that can be planted on the machine `small`.

use berth_host::{GroupingCode, Host as _, HostUse, IovaRange, PciAddress, sim::Foreign};
use serde_json::json;

use super::stories::{PHYSICAL, Story};
use crate::{SETTINGS, front_support::Running};

/// Alone in its group, without a driver, with a reset.
pub(crate) const FREE: &str = "0000:00:06.0";
/// The same without a reset.
pub(crate) const NO_RESET: &str = "0000:00:05.0";
/// On a host driver, alone in its group.
pub(crate) const NIC: &str = "0000:04:00.0";
/// The same beside a device without one.
pub(crate) const SIBLING: &str = "0000:05:00.1";
/// A disk of the host.
pub(crate) const DISK: &str = "0000:03:00.0";
/// One of two behind [`BRIDGE`].
pub(crate) const BEHIND: &str = "0000:02:01.0";
const BRIDGE: &str = "0000:01:00.0";
/// The port above [`DISK`].
const PORT: &str = "0000:00:1c.1";
/// A virtual function of [`PHYSICAL`].
const VIRTUAL: &str = "0000:3b:01.0";
/// Number of the group of [`FREE`].
const FREE_GROUP: u32 = 3;

pub(crate) fn at(text: &str) -> PciAddress {
    text.parse().expect("an address")
}

/// What can be wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cause {
    /// A feature that is there, or one that isn't, the other way round.
    Feature(&'static str, bool),
    /// Two of them.
    Features(&'static [(&'static str, bool)]),
    Unloaded,
    Passthrough,
    Firmware,
    ResetScope,
    NoReset,
    Bound(&'static str, &'static str),
    Use(&'static str, &'static str),
    Cordon,
    Reserved,
    Foreign,
    Story(Story),
}

/// What is kept of it.
#[derive(Debug, Default)]
pub(crate) struct Planted {
    pub(crate) reservation: Option<String>,
    pub(crate) rival: Option<Foreign>,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) code: &'static str,
    pub(crate) object: Option<&'static str>,
    /// What the cause has to say.
    pub(crate) says: &'static str,
    pub(crate) cause: Cause,
    /// Told by the doctor.
    pub(crate) doctor: bool,
    /// Told by an explanation of this device.
    pub(crate) explain: Option<&'static str>,
    /// Seen at once: it is tried together with each other one.
    pub(crate) quick: bool,
    /// The way out: a command of `berth`, or where none can end it, what has to be told.
    pub(crate) fix: &'static str,
}

/// It is ended by a command.
pub(crate) const COMMAND: &str = "berth ";

/// Firmware, kernel and modules: nothing that Berth could do.
const fn host(code: &'static str, says: &'static str, fix: &'static str, cause: Cause) -> Case {
    let (object, explain) = (Some(""), Some(FREE));
    Case { code, object, says, cause, doctor: true, explain, quick: true, fix }
}

/// What the host made it ends with its own programs.
const fn used(
    kind: &'static str,
    detail: &'static str,
    says: &'static str,
    fix: &'static str,
) -> Case {
    let (object, explain) = (Some(NIC), Some(NIC));
    let cause = Cause::Use(kind, detail);
    Case {
        code: "HOST_USES_DEVICE",
        object,
        says,
        cause,
        doctor: false,
        explain,
        quick: false,
        fix,
    }
}

const fn of(code: &'static str, object: &'static str, says: &'static str, cause: Cause) -> Case {
    let (object, explain, fix) = (Some(object), Some(object), COMMAND);
    Case { code, object, says, cause, doctor: true, explain, quick: true, fix }
}

/// Of one device, told by its explanation too; the object is an id where none is given.
const fn story(
    code: &'static str,
    (object, explain): (Option<&'static str>, &'static str),
    says: &'static str,
    story: Story,
) -> Case {
    let (cause, explain) = (Cause::Story(story), Some(explain));
    Case { code, object, says, cause, doctor: true, explain, quick: false, fix: COMMAND }
}

const fn beside(
    code: GroupingCode,
    device: &'static str,
    new: &'static str,
    cause: &'static str,
) -> Story {
    Story::Beside { device, new, code, cause }
}

const UNSAFE: &[(&str, bool)] =
    &[("interrupt_remapping", false), ("allow_unsafe_interrupts", true)];
const NEITHER: &[(&str, bool)] = &[("iommufd", false), ("type1", false)];

pub(crate) const CASES: &[Case] = &[
    host(
        "IOMMU_OFF",
        "nothing can be given away",
        "intel_iommu=on",
        Cause::Feature("iommu", false),
    ),
    host("NO_BACKEND", "neither back end", "modprobe iommufd", Cause::Features(NEITHER)),
    host(
        "NO_INTERRUPT_REMAPPING",
        "any interrupt",
        "allow_unsafe_interrupts=1",
        Cause::Feature("interrupt_remapping", false),
    ),
    host("UNSAFE_INTERRUPTS", "can raise any interrupt", "firmware", Cause::Features(UNSAFE)),
    host("NO_IOMMUFD", "only type1 works", "CONFIG_IOMMUFD", Cause::Feature("iommufd", false)),
    host(
        "NO_IOMMUFD",
        "only type1 works",
        "CONFIG_VFIO_DEVICE_CDEV",
        Cause::Feature("cdev", false),
    ),
    host("NO_KERNEL_HOLD", "ledger only", "vfio_iommu_type1", Cause::Feature("type1", false)),
    host("NO_VFIO_PCI", "vfio-pci isn't registered", "modprobe vfio-pci", Cause::Unloaded),
    host("NO_UEVENTS", "by scans only", "AF_NETLINK", Cause::Feature("uevents", false)),
    host("PASSTHROUGH", "in passthrough", "iommu=pt", Cause::Passthrough).slow(),
    // Hardware and firmware: another slot, another card, a switch in the set-up.
    story(
        "MISSING_ACS",
        (Some(PORT), DISK),
        "0000:00:1c.1 keeps nothing apart",
        beside(GroupingCode::MissingAcs, DISK, "0000:03:00.1", PORT),
    )
    .told("turn on ACS in the firmware"),
    story(
        "BEHIND_BRIDGE",
        (Some(BRIDGE), BEHIND),
        "0000:02:01.0, 0000:02:02.0 go to one holder",
        beside(GroupingCode::BridgeAlias, BEHIND, "0000:02:02.0", BRIDGE),
    )
    .told("a PCI Express card"),
    story(
        "MULTIFUNCTION",
        (Some(NO_RESET), NO_RESET),
        "0000:00:05.0, 0000:00:05.1 go to one holder",
        beside(GroupingCode::Multifunction, NO_RESET, "0000:00:05.1", NO_RESET),
    )
    .told("--policy group"),
    Case {
        object: None,
        explain: Some(FREE),
        ..of("FIRMWARE_1TO1", FREE, "0xdf000000", Cause::Firmware)
    }
    .slow()
    .told("turn off in the firmware"),
    of("RESET_SCOPE", FREE, NIC, Cause::ResetScope).slow().told("to one holder"),
    of("NO_RESET", FREE, "nothing can reset it", Cause::NoReset)
        .slow()
        .told("afterwards: berth quarantine clear 0000:00:06.0"),
    // Nothing is wrong: it is opened with a secret that berthd has.
    story("VF_TOKEN", (Some(PHYSICAL), VIRTUAL), "without its VF token", Story::Token)
        .told("reserve with --delivery held"),
    of("HOST_DRIVER", NIC, "host driver e1000e", Cause::Bound(NIC, "e1000e")).told_by_explain(),
    Case {
        explain: Some("0000:05:00.0"),
        ..of("SIBLING_DRIVER", SIBLING, "host driver e1000", Cause::Bound(SIBLING, "e1000"))
    },
    Case { quick: true, ..used("mount", "/srv/more", "/srv/more is mounted", "umount /srv/more") },
    used("swap", "/dev/sdb2", "/dev/sdb2", "swapoff /dev/sdb2"),
    used("md", "md127", "array md127", "mdadm --stop md127"),
    used("dm", "luks-1", "luks-1", "cryptsetup close"),
    used("lvm", "vg0/root", "vg0/root", "vgchange -an"),
    used("route", "default via 192.0.2.1", "192.0.2.1", "take that route away"),
    used("bond", "bond0", "bond bond0", "take it out of bond0"),
    used("bridge", "br0", "bridge br0", "take it out of br0"),
    used("boot-display", "the console is on it", "the host's display", "have the console"),
    // The administrator's word: only who may write the file ends it.
    story("NOT_GIVEN_AWAY", (Some(FREE), FREE), "is not given away", Story::Rule)
        .told_by_explain()
        .told("berthd.toml:"),
    story("CONFIG_REFUSED", (Some(""), FREE), "rescan_ms", Story::Configuration)
        .told_by_doctor()
        .told("systemctl reload berthd"),
    of("CORDONED", FREE, "the fan is loud", Cause::Cordon),
    Case { object: None, ..of("RESERVED", FREE, "for vm1", Cause::Reserved) }
        .slow()
        .told_by_explain(),
    story("RESET_TOGETHER", (Some(FREE), FREE), "is reset together with", Story::ResetTogether)
        .told_by_explain(),
    Case { object: None, ..of("FOREIGN_OWNER", NO_RESET, "gave it to nobody", Cause::Foreign) }
        .slow(),
    story("DRIFT", (None, SIBLING), "0000:05:00.1", Story::Drift),
    // A kernel that waits is ended by what it waits for.
    story("WEDGED", (Some(NIC), NIC), "unbind", Story::Wedged).told("end the processes"),
    story("QUARANTINED", (Some(FREE), FREE), "reset", Story::Quarantined),
    story("ONE_LABEL_ONLY", (Some(NO_RESET), NO_RESET), "only label", Story::OneLabelOnly),
    // The device's own state: it is shown, and repaired by hand.
    story("DEGRADED", (Some(FREE), FREE), "LINK_WIDTH x4 of x16", Story::Degraded)
        .told("berth device show 0000:00:06.0"),
    story("DEVICE_FAILED", (Some(FREE), FREE), "CONFIG_GONE", Story::Failed)
        .told("berth device show 0000:00:06.0"),
    story("RESERVATION_LOST", (None, FREE), "vm1 has nothing of it", Story::Lost).told_by_doctor(),
    story("LEASE_OVER", (None, FREE), "vm1 still has it", Story::LeaseOver),
    story("HOLDER_DRAINING", (None, FREE), "friend", Story::Draining),
];

/// Codes that have no row, and why.
pub(crate) const ELSEWHERE: &[(&str, &str)] = &[
    (
        "MEMLOCK_LIMIT",
        "nothing is planted: a size is asked about, by          what_a_guests_memory_lacks_is_named_until_a_reservation_states_it",
    ),
    ("MAPPING_LIMIT", "the same"),
    (
        "NOT_CONFINED",
        "a process confines itself at its start, which no test here may: told by the real berthd in          hardening.rs, and each gap in daemon/src/view/doctor/confined.rs",
    ),
];

impl Case {
    const fn told_by_explain(self) -> Self {
        Self { doctor: false, ..self }
    }

    const fn told_by_doctor(self) -> Self {
        Self { explain: None, ..self }
    }

    const fn slow(self) -> Self {
        Self { quick: false, ..self }
    }

    const fn told(self, fix: &'static str) -> Self {
        Self { fix, ..self }
    }

    /// What is tried beside one that isn't quick: it is about the host, and touches no device.
    pub(crate) const fn beside(&self) -> Self {
        let other =
            host("NO_UEVENTS", "by scans only", "AF_NETLINK", Cause::Feature("uevents", false));
        Self { explain: self.explain, ..other }
    }

    /// A daemon on the machine that it takes.
    pub(crate) async fn start(&self) -> Running {
        let Cause::Story(story) = self.cause else { return Running::with(SETTINGS).await };
        let topology = if story == Story::Token { "sriov-nic" } else { "small" };
        Running::on(topology, &format!("{SETTINGS}{}", story.timeouts())).await
    }
}

/// Whether one of the two keeps the other from being told, or is it in another form.
pub(crate) fn hides(first: &Case, second: &Case) -> bool {
    let backend = ["NO_BACKEND", "NO_IOMMUFD", "NO_KERNEL_HOLD"];
    let interrupts = ["NO_INTERRUPT_REMAPPING", "UNSAFE_INTERRUPTS"];
    let both = |of: &[&str]| of.contains(&first.code) && of.contains(&second.code);
    let of_host = |case: &Case| case.object == Some("");
    let off = first.code == "IOMMU_OFF" && of_host(second);
    // The one is about a driver that the other takes.
    let driverless = matches!(first.cause, Cause::Bound(NIC, _));
    let needs_driver = matches!(second.cause, Cause::Use(..));
    // The parameter is one of modules that aren't there.
    let unloaded = first.code == "NO_BACKEND" && second.code == "UNSAFE_INTERRUPTS";
    off || unloaded || (driverless && needs_driver) || both(&backend) || both(&interrupts)
}

/// Before a case: what it is about isn't so, and what it takes is.
pub(crate) fn prepare(running: &Running, case: &Case) {
    let is_bound = |device: &str| running.host.device(at(device)).expect("there").driver.is_some();
    match case.cause {
        Cause::Bound(device, _) if is_bound(device) => unbind(running, device),
        Cause::Use(..) if !is_bound(NIC) => bind(running, NIC, "e1000e"),
        Cause::Story(story) => story.prepare(running),
        _ => {}
    }
}

fn bind(running: &Running, device: &str, driver: &str) {
    running.host.host_override(at(device), Some(driver)).expect("there");
    running.host.host_driver_bind(at(device), driver).expect("free");
}

fn unbind(running: &Running, device: &str) {
    running.host.host_driver_unbind(at(device)).expect("bound");
    running.host.host_override(at(device), None).expect("there");
}

fn direct() -> IovaRange {
    IovaRange { first: 0xdf00_0000, last: 0xdf0f_ffff, kind: "direct".to_owned() }
}

pub(crate) async fn reserved(running: &Running, device: &str) -> String {
    let devices = json!([{"pci": device}]);
    let ask = json!({
        "holder": "vm1", "policy": "EXCLUSIVE", "delivery": "HELD", "devices": devices,
        "takeFromHost": true,
    });
    let made = post(running, "/api/v1/reservations", ask).await;
    made["id"].as_str().expect("an id").to_owned()
}

pub(crate) async fn post(
    running: &Running,
    path: &str,
    body: serde_json::Value,
) -> serde_json::Value {
    let answer = running.unix("POST", path, Some(&body)).await;
    assert!(answer.status < 300, "{path}: {answer:?}");
    answer.json()
}

impl Cause {
    pub(crate) async fn plant(self, running: &Running) -> Planted {
        let (sim, free) = (&running.host, at(FREE));
        let mut planted = Planted::default();
        match self {
            Self::Feature(name, on) => assert!(sim.set_feature(name, on)),
            Self::Features(several) => {
                assert!(several.iter().all(|(name, on)| sim.set_feature(name, *on)));
            }
            Self::Unloaded => sim.set_unloaded("vfio-pci", true),
            Self::Passthrough => {
                sim.set_default_domain(FREE_GROUP, "identity", Vec::new()).expect("there");
            }
            Self::Firmware => {
                sim.set_default_domain(FREE_GROUP, "DMA", vec![direct()]).expect("there");
            }
            Self::ResetScope => {
                sim.set_reset_scope(free, &["bus"], &[at(NIC)]).expect("there");
            }
            Self::NoReset => sim.set_reset_scope(free, &[], &[]).expect("there"),
            Self::Bound(device, driver) => bind(running, device, driver),
            Self::Use(kind, detail) => {
                let used = HostUse::new(kind, detail);
                sim.set_uses(at(NIC), vec![used]).expect("there");
            }
            Self::Cordon => {
                let path = format!("/api/v1/devices/{FREE}/cordon");
                post(running, &path, json!({"note": "the fan is loud"})).await;
            }
            Self::Reserved => planted.reservation = Some(reserved(running, FREE).await),
            Self::Foreign => {
                bind(running, NO_RESET, "vfio-pci");
                planted.rival = Some(sim.foreign_bind(at(NO_RESET)).expect("free"));
            }
            Self::Story(story) => planted = story.plant(running).await,
        }
        planted
    }

    pub(crate) async fn take_away(self, running: &Running, planted: Planted) {
        let (sim, free) = (&running.host, at(FREE));
        match self {
            Self::Feature(name, on) => assert!(sim.set_feature(name, !on)),
            Self::Features(several) => {
                assert!(several.iter().all(|(name, on)| sim.set_feature(name, !*on)));
            }
            Self::Unloaded => sim.set_unloaded("vfio-pci", false),
            Self::Passthrough | Self::Firmware => {
                sim.set_default_domain(FREE_GROUP, "DMA-FQ", Vec::new()).expect("there");
            }
            Self::ResetScope | Self::NoReset => {
                sim.set_reset_scope(free, &["flr"], &[]).expect("there");
            }
            Self::Bound(device, _) => unbind(running, device),
            Self::Use(..) => sim.set_uses(at(NIC), Vec::new()).expect("there"),
            Self::Cordon => {
                post(running, &format!("/api/v1/devices/{FREE}/uncordon"), json!({})).await;
            }
            Self::Reserved => {
                let id = planted.reservation.expect("reserved");
                let path = format!("/api/v1/reservations/{id}");
                assert_eq!(running.unix("DELETE", &path, None).await.status, 200);
            }
            Self::Foreign => drop(planted.rival),
            Self::Story(story) => story.take_away(running, planted).await,
        }
    }
}
