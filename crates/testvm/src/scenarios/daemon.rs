//! `berthd` on the real kernel: it starts, sees what sysfs shows, and ends when it is asked to.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    guest::{Ctx, Outcome, Scenario, daemon::Daemon, sysfs},
    wire::Capability,
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("daemon_starts_and_stops", &[Capability::Daemon], starts_and_stops),
    Scenario::new("daemon_sees_every_device", &[Capability::Daemon], sees_every_device),
];

/// SIGTERM ends it with 0; after a crash it starts again on the same state.
fn starts_and_stops(ctx: &mut Ctx) -> Result<Outcome> {
    let mut daemon = Daemon::start(ctx)?;
    for socket in [daemon.grpc(), daemon.http(), daemon.handover()] {
        ensure!(socket.exists(), "there is no {}", socket.display());
    }
    daemon.cli(&["capabilities"])?.ok()?;
    let status = daemon.stop()?;
    ensure!(status.success(), "SIGTERM ended it with {status}");
    daemon.start_again().context("start after SIGTERM")?;
    daemon.kill()?;
    daemon.start_again().context("start after SIGKILL")?;
    daemon.cli(&["capabilities"])?.ok()?;
    Ok(Outcome::Pass)
}

/// The devices it lists are those that the kernel has, bridges left out, on the drivers they are on.
fn sees_every_device(ctx: &mut Ctx) -> Result<Outcome> {
    let daemon = Daemon::start(ctx)?;
    let listed = daemon.cli(&["device", "list"])?.ok()?;
    let devices = listed.get("devices").and_then(Value::as_array).context("no list of devices")?;
    let text = |device: &Value, pointer: &str| {
        device.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let found: BTreeSet<(String, String)> = devices
        .iter()
        .map(|device| (text(device, "/address/pci"), text(device, "/driver")))
        .collect();
    let there: BTreeSet<(String, String)> = sysfs::devices()?
        .into_iter()
        .filter(|address| !is_bridge(address))
        .map(|address| {
            let driver = sysfs::driver(&address).unwrap_or_default();
            (address, driver)
        })
        .collect();
    let missing: Vec<_> = there.difference(&found).collect();
    ensure!(missing.is_empty(), "berth device list lacks {missing:?}");
    let invented: Vec<_> = found.difference(&there).collect();
    ensure!(invented.is_empty(), "berth device list has {invented:?}, the kernel has not");
    Ok(Outcome::Pass)
}

fn is_bridge(address: &str) -> bool {
    sysfs::attribute(address, "class").is_some_and(|class| class.starts_with("0x0604"))
}
