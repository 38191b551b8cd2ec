//! Causes that take more than one word to the machine: what becomes of reservations, of devices that
//! don't work, of hot-plugged ones, of the configuration.

use std::{
    os::fd::AsFd as _,
    process::{Child, Command},
};

use berth_handover::Client;
use berth_host::{
    Act, Grouping, GroupingCode, Host as _, LinkRate, LinkState, ResetOutcome,
    sim::{Fault, Foreign, Rule, Site},
};
use berthd::config::{Args, Config};
use clap::Parser as _;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;

use super::causes::{FREE, NIC, NO_RESET, Planted, SIBLING, at, post, reserved};
use crate::{SETTINGS, front_support::Running};

/// The physical function of `sriov-nic`.
pub(crate) const PHYSICAL: &str = "0000:3b:00.0";
/// Without a driver, beside [`SIBLING`].
const MEMBER: &str = "0000:05:00.0";

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Story {
    /// A device appears beside another one, for a reason: the function or port that is named.
    Beside {
        device: &'static str,
        new: &'static str,
        code: GroupingCode,
        cause: &'static str,
    },
    /// A physical function goes to VFIO and has virtual ones there.
    Token,
    /// The configuration keeps [`FREE`].
    Rule,
    /// The configuration on disk has a line that is wrong.
    Configuration,
    /// [`NO_RESET`] is reserved, and [`FREE`] is only reset together with it.
    ResetTogether,
    /// [`MEMBER`] is claimed, and a host driver takes [`SIBLING`].
    Drift,
    /// Somebody keeps [`NIC`] in an unbind.
    Wedged,
    Quarantined,
    OneLabelOnly,
    Degraded,
    Failed,
    /// Another device is where a reserved one was.
    Lost,
    LeaseOver,
    /// The holder died, and somebody else has what it was handed.
    Draining,
}

/// A process that ends with this.
struct Process(Child);

impl Process {
    fn start() -> Self {
        Self(Command::new("sleep").arg("600").spawn().expect("sleep is everywhere"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, and then there is nothing to wait for either.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A whole life.
pub(crate) async fn lived(running: &Running, device: &str) {
    let id = attached(running, device).await;
    let path = format!("/api/v1/reservations/{id}");
    assert_eq!(running.unix("DELETE", &path, None).await.status, 200);
}

pub(crate) async fn attached(running: &Running, device: &str) -> String {
    let id = reserved(running, device).await;
    post(running, &format!("/api/v1/reservations/{id}/attach"), json!({})).await;
    id
}

/// With a lease that is over soon, and claims.
async fn leased(running: &Running) -> String {
    let ask = json!({
        "holder": "vm1", "policy": "EXCLUSIVE", "delivery": "HELD", "ttlMs": "1000",
        "devices": [{"pci": FREE}],
    });
    let made = post(running, "/api/v1/reservations", ask).await;
    let id = made["id"].as_str().expect("an id").to_owned();
    post(running, &format!("/api/v1/reservations/{id}/attach"), json!({})).await;
    id
}

/// [`MEMBER`], by whoever has its whole group.
async fn claimed(running: &Running) -> String {
    let ask = json!({
        "holder": "vm1", "policy": "GROUP", "delivery": "HELD", "takeFromHost": true,
        "devices": [{"pci": MEMBER}],
    });
    let made = post(running, "/api/v1/reservations", ask).await;
    let id = made["id"].as_str().expect("an id").to_owned();
    post(running, &format!("/api/v1/reservations/{id}/attach"), json!({})).await;
    id
}

/// Handed over to a process that dies, while another one has received what it had.
async fn drains(running: &Running) -> (String, Foreign) {
    let ask = json!({
        "holder": "vm1", "policy": "EXCLUSIVE", "delivery": "BOUND", "devices": [{"pci": FREE}],
    });
    let made = post(running, "/api/v1/reservations", ask).await;
    let id = made["id"].as_str().expect("an id").to_owned();
    post(running, &format!("/api/v1/reservations/{id}/attach"), json!({})).await;
    let holder = Process::start();
    let pidfd = pidfd_open(Pid::from_child(&holder.0), PidfdFlags::empty()).expect("it lives");
    let (socket, asked) = (running.dir.path().join("handover.sock"), id.clone());
    let fetched = tokio::task::spawn_blocking(move || {
        Client::connect(socket).expect("berthd listens").fetch_for(&asked, 0, pidfd.as_fd())
    });
    let fetched = fetched.await.expect("no panic").expect("fetched");
    let friend = running.host.foreign("friend");
    for (_, fd) in fetched.fds {
        friend.receive(fd).expect("one of this machine");
    }
    (id, friend)
}

/// Why a file can't be used.
fn refused(running: &Running) -> berthd::config::ConfigError {
    let file = running.dir.path().join("wrong.toml");
    std::fs::write(&file, "[timeouts]\nrescan_ms = \"soon\"\n").expect("written");
    let args = ["berthd".to_owned(), format!("--config={}", file.display())];
    let args = Args::try_parse_from(args).expect("arguments of berthd");
    Config::load(&args).expect_err("a line that is wrong")
}

fn beside(running: &Running, device: &str, new: &str, code: GroupingCode, cause: &str) {
    let text = format!("{cause} keeps nothing apart");
    let why = Grouping { code, cause: Some(at(cause)), text };
    running.host.plug_beside(at(new), at(device), &why).expect("free");
}

/// Puts the physical function onto a driver, without virtual functions, and makes some then.
fn on_driver(running: &Running, driver: &str, count: u16) {
    let device = at(PHYSICAL);
    running.host.let_vfio_make_functions();
    for act in [
        Act::Sriov { device, count: 0, autoprobe: false },
        Act::Unbind { device },
        Act::Bind { device, driver: driver.to_owned() },
        Act::Sriov { device, count, autoprobe: false },
    ] {
        running.host.perform(&act).expect("it can be done");
    }
}

fn link(running: &Running, width: u8) {
    let best = LinkRate { width: 16, speed: 16_000 };
    let link = LinkState { current: LinkRate { width, ..best }, device: best, port: None };
    running.host.set_health(at(FREE), |health| health.link = Some(link)).expect("there");
}

impl Story {
    /// What this has beside the settings of all, in the section `[timeouts]`.
    pub(crate) fn timeouts(self) -> &'static str {
        if self == Self::Wedged { "act_ms = 1000\n" } else { "" }
    }

    /// Before it: what it brings isn't there.
    pub(crate) fn prepare(self, running: &Running) {
        if let Self::Beside { new, .. } = self
            && running.host.device(at(new)).is_ok()
        {
            running.host.unplug(at(new)).expect("nobody has it");
        }
    }

    pub(crate) async fn plant(self, running: &Running) -> Planted {
        let (sim, mut planted) = (&running.host, Planted::default());
        match self {
            Self::Beside { device, new, code, cause } => {
                beside(running, device, new, code, cause);
            }
            Self::Token => on_driver(running, "vfio-pci", 2),
            Self::Rule => {
                let rule =
                    format!("{SETTINGS}[[device]]\nverdict = \"deny\"\naddress = \"{FREE}\"\n");
                running.daemon.dials().turn(&running.settings(&rule));
            }
            Self::Configuration => running.daemon.dials().refuse(&refused(running)),
            Self::ResetTogether => {
                sim.set_reset_scope(at(FREE), &["bus"], &[at(NO_RESET)]).expect("there");
                crate::until_said(running, "/api/v1/doctor", "its reset hits 0000:00:05.0").await;
                planted.reservation = Some(reserved(running, NO_RESET).await);
            }
            Self::Drift => {
                planted.reservation = Some(claimed(running).await);
                sim.break_rule(Rule::OwnedRefusesDrivers);
                if sim.device(at(SIBLING)).expect("there").driver.is_some() {
                    sim.host_driver_unbind(at(SIBLING)).expect("nobody has it");
                }
                sim.host_override(at(SIBLING), None).expect("there");
                sim.host_driver_bind(at(SIBLING), "e1000").expect("the rule is broken");
            }
            Self::Wedged => {
                sim.fault(Fault::at(Site::Unbind).device(at(NIC)).hang());
                let ask = json!({
                    "holder": "vm1", "policy": "EXCLUSIVE", "delivery": "HELD", "noWait": true,
                    "takeFromHost": true, "devices": [{"pci": NIC}],
                });
                let made = post(running, "/api/v1/reservations", ask).await;
                planted.reservation = made["id"].as_str().map(str::to_owned);
            }
            Self::Quarantined => {
                let failed = ResetOutcome::Failed { note: "it hangs".to_owned() };
                sim.set_reset(at(FREE), &failed).expect("there");
                lived(running, FREE).await;
                let verified = ResetOutcome::Verified { method: "flr".to_owned() };
                sim.set_reset(at(FREE), &verified).expect("there");
            }
            Self::OneLabelOnly => lived(running, NO_RESET).await,
            Self::Degraded => link(running, 4),
            Self::Failed => {
                sim.set_health(at(FREE), |health| health.answers = Some(false)).expect("there");
            }
            Self::Lost => {
                planted.reservation = Some(reserved(running, FREE).await);
                sim.exchange(at(FREE)).expect("not open");
            }
            Self::LeaseOver => planted.reservation = Some(leased(running).await),
            Self::Draining => {
                let (id, friend) = drains(running).await;
                (planted.reservation, planted.rival) = (Some(id), Some(friend));
            }
        }
        planted
    }

    pub(crate) async fn take_away(self, running: &Running, planted: Planted) {
        let (sim, own) = (&running.host, planted.reservation.as_deref().unwrap_or_default());
        let path = format!("/api/v1/reservations/{own}");
        let cleared = |device: &str| format!("/api/v1/devices/{device}/clear-quarantine");
        match self {
            Self::Beside { new, .. } => sim.unplug(at(new)).expect("nobody has it"),
            Self::Token => on_driver(running, "ice", 8),
            Self::Rule | Self::Configuration => {
                running.daemon.dials().turn(&running.settings(SETTINGS));
            }
            Self::ResetTogether => {
                assert_eq!(running.unix("DELETE", &path, None).await.status, 200);
            }
            Self::Drift => sim.host_driver_unbind(at(SIBLING)).expect("bound"),
            Self::Wedged => sim.clear_faults(),
            Self::Quarantined => {
                post(running, &cleared(FREE), json!({"reason": "power cycled"})).await;
            }
            Self::OneLabelOnly => {
                post(running, &cleared(NO_RESET), json!({"reason": "power cycled"})).await;
            }
            Self::Degraded => link(running, 16),
            Self::Failed => {
                sim.set_health(at(FREE), |health| health.answers = Some(true)).expect("there");
            }
            Self::Lost => assert_eq!(running.unix("DELETE", &path, None).await.status, 200),
            Self::LeaseOver => {
                post(running, &format!("{path}/renew"), json!({"ttlMs": "600000"})).await;
            }
            Self::Draining => drop(planted.rival),
        }
    }
}
