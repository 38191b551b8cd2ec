//! Looking at the condition of a device doesn't wake it. Decided by the kernel's own power states.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::berthd_tools::{Before, text};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::{Daemon, Options},
        eventually, sysfs,
    },
    topology::E1000E,
    wire::Capability::{self, Intremap, Type1},
};

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario::new("berthd_condition_asleep", NEEDS, asleep).within(300)];

const NEEDS: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const SETTINGS: &str = "[timeouts]\nrescan_ms = 3600000\n\
                        [condition]\npoll_ms = 200\n";

fn start(ctx: &Ctx) -> Result<Daemon> {
    let file = ctx.dir().join("berthd.toml");
    fs::write(&file, SETTINGS)?;
    let arguments = vec!["--config".into(), file.into()];
    Daemon::start_with(ctx, Options { arguments, ..Options::default() })
}

fn show(daemon: &Daemon) -> Result<Value> {
    daemon.cli(&["device", "show", E1000E])?.ok()
}

/// `vfio-pci` lets a device sleep that nobody has open. Looking at its condition leaves it asleep.
fn asleep(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(E1000E);
    let daemon = start(ctx)?;
    let words = ["reserve", "--holder", "vm1", "--device", E1000E, "--policy", "exclusive"];
    let words = [&words[..], &["--take-from-host", "--host-uses-it-anyway"]].concat();
    let id = text(&daemon.cli(&words)?.ok()?, "id")?;
    let runtime = |name: &str| sysfs::attribute(E1000E, &format!("power/runtime_{name}"));
    eventually("it to sleep", ctx.patience(), || {
        runtime("status").is_some_and(|status| status == "suspended")
    })?;
    eventually("that to be shown", ctx.patience(), || {
        show(&daemon).is_ok_and(|device| device["health"]["asleep"] == true)
    })?;
    let active = runtime("active_time").context("no power/runtime_active_time")?;
    println!("{active} ms awake, now in {:?}", sysfs::attribute(E1000E, "power_state"));
    // Ten looks.
    thread::sleep(Duration::from_secs(2));
    let status = runtime("status").unwrap_or_default();
    let woken = runtime("active_time") != Some(active.clone());
    ensure!(status == "suspended" && !woken, "it was woken: {status}, {active} ms before");
    ensure!(show(&daemon)?["condition"] == "OK", "sleeping stands against it");
    daemon.cli(&["release", &id])?.ok()?;
    before.is_back()?;
    Ok(Outcome::Pass)
}
