//! A device's descriptor on its way through a socket: in no process's table, and open all the same.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use serde_json::json;

use super::berthd_tools::{Before, is_free, is_refused, text};
use crate::{
    guest::{Ctx, Outcome, Scenario, daemon::Daemon, handover, probe, sysfs},
    topology::EDU_ROOT,
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_in_flight_type1", TYPE1, type1),
    Scenario::new("berthd_in_flight_iommufd", IOMMUFD, iommufd),
];

const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    in_flight(ctx, "type1")
}

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    in_flight(ctx, "iommufd")
}

/// Both ends of a socket with a descriptor in it that nobody has received.
fn send(fd: OwnedFd) -> Result<[OwnedFd; 2]> {
    let kind = SocketType::SEQPACKET;
    let (here, there) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    handover::send(&here, b"fd", &[fd.as_fd()])?;
    drop(fd);
    Ok([here, there])
}

/// The release is refused, forced or not, while the descriptor is under way, and nobody else gets
/// the device; once it is closed the device is given back.
fn in_flight(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let daemon = Daemon::start(ctx)?;
    let words = ["reserve", "--holder", "vm1", "--device", EDU_ROOT, "--policy", "exclusive"];
    let mut words = words.to_vec();
    words.extend(["--delivery", "bound", "--backend", backend]);
    let id = text(&daemon.cli(&words)?.ok()?, "id")?;
    daemon.cli(&["attach", &id])?.ok()?;
    let request = json!({"op": "fetch", "reservation": id});
    let fetched = handover::ask(&daemon.handover(), &request, &[])?;
    let device = fetched.fds.into_iter().next().context("no device came")?;
    let under_way = send(device)?;

    for _ in 0..2 {
        let words = ["detach", &id];
        is_refused(&daemon.cli(&words)?, "HOLDER_DRAINING", &["no process shows it", &id])?;
        let shown = daemon.cli(&["reservation", "show", &id])?.ok()?;
        ensure!(shown["state"] == "HELD", "after a detach that was refused: {shown}");
    }
    for force in [&["release", &id][..], &["release", &id, "--force"]] {
        is_refused(&daemon.cli(force)?, "HOLDER_DRAINING", &["no process shows it", &id])?;
        let stranger = probe::stranger(EDU_ROOT);
        ensure!(stranger.is_kept_out(), "after {force:?} a stranger gets it: {stranger:?}");
        ensure!(sysfs::driver(EDU_ROOT).as_deref() == Some("vfio-pci"), "it was given back");
    }
    drop(under_way);
    daemon.cli(&["release", &id])?.ok()?;
    before.is_back()?;
    is_free(EDU_ROOT)?;
    Ok(Outcome::Pass)
}
