//! The condition of a device by what the kernel shows of it: errors that QEMU injects, its link, and
//! that nobody wakes it. Decided by the kernel's own counters and power states.

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
    topology::{E1000E, VIRTIO_NET, VIRTIO_NET_ID},
    wire::Capability::{self, Intremap, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_condition_aer", NEEDS, aer).within(300),
    Scenario::new("berthd_condition_asleep", NEEDS, asleep).within(300),
];

const NEEDS: &[Capability] = &[Capability::Daemon, Type1, Intremap];
/// Of the correctable error status register: a receiver error.
const RECEIVER_ERROR: u32 = 1;
/// Of the uncorrectable one, nonfatal by default: a completion timeout.
const COMPLETION_TIMEOUT: u32 = 1 << 14;
const SETTINGS: &str = "[timeouts]\nrescan_ms = 3600000\n\
                        [condition]\ndegraded = \"refuse\"\npoll_ms = 200\nquiet_ms = 5000\n";

fn start(ctx: &Ctx) -> Result<Daemon> {
    let file = ctx.dir().join("berthd.toml");
    fs::write(&file, SETTINGS)?;
    let arguments = vec!["--config".into(), file.into()];
    Daemon::start_with(ctx, Options { arguments, ..Options::default() })
}

fn show(daemon: &Daemon, address: &str) -> Result<Value> {
    daemon.cli(&["device", "show", address])?.ok()
}

/// The kernel's own count of errors of a severity.
fn counted(severity: &str) -> Result<u64> {
    let name = format!("aer_dev_{severity}");
    let text = sysfs::attribute(VIRTIO_NET, &name).with_context(|| format!("no {name}"))?;
    let last = text.lines().last().and_then(|line| line.rsplit(' ').next());
    last.and_then(|count| count.parse().ok()).with_context(|| format!("{name}: {text}"))
}

/// What is shown of the same.
fn shown(device: &Value, severity: &str) -> Option<u64> {
    device["health"]["aer"][severity].as_str()?.parse().ok()
}

fn until_it_is(ctx: &Ctx, daemon: &Daemon, condition: &str) -> Result<Value> {
    eventually(&format!("it to be {condition}"), ctx.patience(), || {
        show(daemon, VIRTIO_NET).is_ok_and(|device| device["condition"] == condition)
    })?;
    show(daemon, VIRTIO_NET)
}

fn aer(ctx: &mut Ctx) -> Result<Outcome> {
    let daemon = start(ctx)?;
    eventually("its counters to be shown", ctx.patience(), || {
        show(&daemon, VIRTIO_NET).is_ok_and(|device| shown(&device, "nonfatal").is_some())
    })?;
    let before = show(&daemon, VIRTIO_NET)?;
    ensure!(before["condition"] == "OK", "{before}");
    let width = sysfs::attribute(VIRTIO_NET, "current_link_width").context("no link")?;
    let width: u64 = width.parse().with_context(|| width.clone())?;
    ensure!(before["health"]["link"]["width"] == width, "x{width}: {before}");

    // What the hardware corrects is counted, and no more.
    let corrected = counted("correctable")?;
    ctx.machine()?.inject_aer(VIRTIO_NET_ID, true, RECEIVER_ERROR)?;
    eventually("the kernel to count it", ctx.patience(), || {
        counted("correctable").is_ok_and(|count| count > corrected)
    })?;
    eventually("it to be shown", ctx.patience(), || {
        let count = counted("correctable").ok();
        show(&daemon, VIRTIO_NET).is_ok_and(|device| shown(&device, "correctable") == count)
    })?;
    ensure!(show(&daemon, VIRTIO_NET)?["condition"] == "OK", "a corrected error stands against it");

    // What it can't correct stands against it.
    let nonfatal = counted("nonfatal")?;
    ctx.machine()?.inject_aer(VIRTIO_NET_ID, false, COMPLETION_TIMEOUT)?;
    eventually("the kernel to count it", ctx.patience(), || {
        counted("nonfatal").is_ok_and(|count| count > nonfatal)
    })?;
    let device = until_it_is(ctx, &daemon, "DEGRADED")?;
    let new = counted("nonfatal")? - nonfatal;
    println!("{} after {new} nonfatal", text(&device, "conditionNote")?);
    ensure!(device["conditionNote"] == format!("AER_NONFATAL {new}"), "{device}");
    ensure!(shown(&device, "nonfatal") == Some(nonfatal + new), "{device}");
    let words = ["reserve", "--holder", "vm1", "--device", VIRTIO_NET, "--policy", "exclusive"];
    let words = [&words[..], &["--take-from-host", "--dry-run"]].concat();
    let refused = daemon.cli(&words)?;
    ensure!(refused.code == Some(3), "it is given away: {}", refused.stdout);
    ensure!(refused.stderr.contains("DEVICE_DEGRADED"), "{}", refused.stderr);

    // Without new ones it counts again.
    until_it_is(ctx, &daemon, "OK")?;
    daemon.cli(&words)?.ok()?;
    let history = daemon.cli(&["history", VIRTIO_NET])?.ok()?.to_string();
    ensure!(history.contains("device.condition"), "{history}");
    Ok(Outcome::Pass)
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
        show(&daemon, E1000E).is_ok_and(|device| device["health"]["asleep"] == true)
    })?;
    let active = runtime("active_time").context("no power/runtime_active_time")?;
    println!("{active} ms awake, now in {:?}", sysfs::attribute(E1000E, "power_state"));
    // Ten looks.
    thread::sleep(Duration::from_secs(2));
    let status = runtime("status").unwrap_or_default();
    let woken = runtime("active_time") != Some(active.clone());
    ensure!(status == "suspended" && !woken, "it was woken: {status}, {active} ms before");
    ensure!(show(&daemon, E1000E)?["condition"] == "OK", "sleeping stands against it");
    daemon.cli(&["release", &id])?.ok()?;
    before.is_back()?;
    Ok(Outcome::Pass)
}
