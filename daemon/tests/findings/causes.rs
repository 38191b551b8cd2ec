//! Causes that can be planted on the machine `small`.

use berth_host::{Host as _, HostUse, IovaRange, PciAddress, sim::Foreign};
use serde_json::json;

use crate::front_support::Running;

/// Alone in its group, without a driver, with a reset.
pub(crate) const FREE: &str = "0000:00:06.0";
/// The same without a reset.
pub(crate) const NO_RESET: &str = "0000:00:05.0";
/// On a host driver, alone in its group.
pub(crate) const NIC: &str = "0000:04:00.0";
/// The same beside a device without one.
pub(crate) const SIBLING: &str = "0000:05:00.1";
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
}

/// What is kept of it.
#[derive(Debug, Default)]
pub(crate) struct Planted {
    reservation: Option<String>,
    rival: Option<Foreign>,
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
}

const fn host(code: &'static str, says: &'static str, cause: Cause) -> Case {
    let (object, explain) = (Some(""), Some(FREE));
    Case { code, object, says, cause, doctor: true, explain, quick: true }
}

const fn used(kind: &'static str, detail: &'static str, says: &'static str) -> Case {
    let (object, explain) = (Some(NIC), Some(NIC));
    let cause = Cause::Use(kind, detail);
    Case { code: "HOST_USES_DEVICE", object, says, cause, doctor: false, explain, quick: false }
}

const fn of(code: &'static str, object: &'static str, says: &'static str, cause: Cause) -> Case {
    let (object, explain) = (Some(object), Some(object));
    Case { code, object, says, cause, doctor: true, explain, quick: true }
}

const UNSAFE: &[(&str, bool)] =
    &[("interrupt_remapping", false), ("allow_unsafe_interrupts", true)];
const NEITHER: &[(&str, bool)] = &[("iommufd", false), ("type1", false)];

pub(crate) const CASES: &[Case] = &[
    host("IOMMU_OFF", "nothing can be given away", Cause::Feature("iommu", false)),
    host("NO_BACKEND", "neither back end", Cause::Features(NEITHER)),
    host("NO_INTERRUPT_REMAPPING", "any interrupt", Cause::Feature("interrupt_remapping", false)),
    host("UNSAFE_INTERRUPTS", "can raise any interrupt", Cause::Features(UNSAFE)),
    host("NO_IOMMUFD", "only type1 works", Cause::Feature("iommufd", false)),
    host("NO_IOMMUFD", "only type1 works", Cause::Feature("cdev", false)),
    host("NO_KERNEL_HOLD", "ledger only", Cause::Feature("type1", false)),
    host("NO_VFIO_PCI", "vfio-pci isn't registered", Cause::Unloaded),
    host("NO_UEVENTS", "by scans only", Cause::Feature("uevents", false)),
    Case { quick: false, ..host("PASSTHROUGH", "in passthrough", Cause::Passthrough) },
    Case {
        object: None,
        explain: Some(FREE),
        quick: false,
        ..of("FIRMWARE_1TO1", FREE, "0xdf000000", Cause::Firmware)
    },
    Case { quick: false, ..of("RESET_SCOPE", FREE, NIC, Cause::ResetScope) },
    Case { quick: false, ..of("NO_RESET", FREE, "nothing can reset it", Cause::NoReset) },
    of("HOST_DRIVER", NIC, "host driver e1000e", Cause::Bound(NIC, "e1000e")).told_by_explain(),
    Case {
        explain: Some("0000:05:00.0"),
        ..of("SIBLING_DRIVER", SIBLING, "host driver e1000", Cause::Bound(SIBLING, "e1000"))
    },
    Case { quick: true, ..used("mount", "/srv/more", "/srv/more is mounted") },
    used("swap", "/dev/sdb2", "/dev/sdb2"),
    used("md", "md127", "array md127"),
    used("dm", "luks-1", "luks-1"),
    used("lvm", "vg0/root", "vg0/root"),
    used("route", "default via 192.0.2.1", "192.0.2.1"),
    used("bond", "bond0", "bond bond0"),
    used("bridge", "br0", "bridge br0"),
    used("boot-display", "the console is on it", "the host's display"),
    of("CORDONED", FREE, "the fan is loud", Cause::Cordon),
    Case { object: None, quick: false, ..of("RESERVED", FREE, "for vm1", Cause::Reserved) }
        .told_by_explain(),
    Case {
        object: None,
        quick: false,
        ..of("FOREIGN_OWNER", NO_RESET, "gave it to nobody", Cause::Foreign)
    },
];

impl Case {
    const fn told_by_explain(self) -> Self {
        Self { doctor: false, ..self }
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

async fn post(running: &Running, path: &str, body: serde_json::Value) -> serde_json::Value {
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
                let used = HostUse { kind: kind.to_owned(), detail: detail.to_owned() };
                sim.set_uses(at(NIC), vec![used]).expect("there");
            }
            Self::Cordon => {
                let path = format!("/api/v1/devices/{FREE}/cordon");
                post(running, &path, json!({"note": "the fan is loud"})).await;
            }
            Self::Reserved => {
                let ask = json!({
                    "holder": "vm1", "policy": "EXCLUSIVE", "delivery": "HELD",
                    "devices": [{"pci": FREE}],
                });
                let made = post(running, "/api/v1/reservations", ask).await;
                planted.reservation = made["id"].as_str().map(str::to_owned);
            }
            Self::Foreign => {
                bind(running, NO_RESET, "vfio-pci");
                planted.rival = Some(sim.foreign_bind(at(NO_RESET)).expect("free"));
            }
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
        }
    }
}
