//! Policy `group`: an owner token, and a domain that its owner attaches, replaces and detaches.

use std::{
    fs,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use anyhow::{Context, Result, bail, ensure};
use berth_uapi::{IoasId, Iommufd, IovaChoice};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};

use super::berthd_tools::{
    Before, PAGE, is_blocked, is_free, is_refused, release_bridge, set_bridge, text,
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::Daemon,
        edu::{Edu, pattern},
        handover,
        memory::Memory,
        probe,
    },
    topology::{PAIR_A, PAIR_B, PAIR_BRIDGE},
    wire::Capability::{self, Cdev, Intremap, Shpchp, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_group_iommufd", IOMMUFD, group_iommufd),
    Scenario::new("berthd_group_type1", TYPE1, group_type1),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Capability::Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const IOVA: u64 = 0x70_0000;
/// Where interrupts are written to: no domain with a mapping there takes a device.
const INTERRUPTS: u64 = 0xfee0_0000;
/// What the IOMMU sees of everything behind the PCIe to PCI bridge.
const ALIAS: &str = "0000:03:00.0";

fn group_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    let before = [PAIR_A, PAIR_B, PAIR_BRIDGE].map(Before::of);
    let daemon = begin(ctx)?;
    let first = take(&daemon, PAIR_A, "iommufd", &[])?;
    daemon.cli(&["attach", &first])?.ok()?;
    let second = joins(&daemon, &first)?;
    daemon.cli(&["attach", &second])?.ok()?;
    let edu = Edu::on_sysfs(PAIR_A)?;
    let old = Memory::sealed(4096)?;
    register(&daemon, &first, &old)?;
    lands(&edu, &old, 3)?;
    let domains = replaces(ctx, &daemon, &first, &edu, &old)?;
    replace_fails(&daemon, &first, &edu, &domains)?;
    detached(ctx, &daemon, &first, &edu, &domains.memory)?;
    drop(edu);
    end(ctx, &daemon, &[second, first], &before)
}

fn group_type1(ctx: &mut Ctx) -> Result<Outcome> {
    let before = [PAIR_A, PAIR_B, PAIR_BRIDGE].map(Before::of);
    let daemon = begin(ctx)?;
    let first = take(&daemon, PAIR_A, "type1", &[])?;
    daemon.cli(&["attach", &first])?.ok()?;
    other_token(&daemon, "type1")?;
    let second = take(&daemon, PAIR_B, "type1", &["--join", &first])?;
    daemon.cli(&["attach", &second])?.ok()?;
    let edu = Edu::on_sysfs(PAIR_A)?;
    let memory = Memory::sealed(4096)?;
    register(&daemon, &first, &memory)?;
    lands(&edu, &memory, 3)?;
    // A container has one domain for good.
    let made = daemon.cli(&["domain", "create", "--context", &first])?;
    if made.code == Some(0) {
        let domain = text(&made.json, "id")?;
        let words = ["domain", "replace", "--reservation", &first, "--domain", &domain];
        is_refused(&daemon.cli(&words)?, "BACKEND_CANNOT", &["type1"])?;
    } else {
        is_refused(&made, "BACKEND_CANNOT", &["type1"])?;
    }
    lands(&edu, &memory, 5)?;
    detached(ctx, &daemon, &first, &edu, &memory)?;
    drop(edu);
    end(ctx, &daemon, &[second, first], &before)
}

fn begin(ctx: &Ctx) -> Result<Daemon> {
    let daemon = Daemon::start(ctx)?;
    release_bridge(ctx, &daemon)?;
    Ok(daemon)
}

fn end(ctx: &Ctx, daemon: &Daemon, ids: &[String], before: &[Before]) -> Result<Outcome> {
    for id in ids {
        ensure!(probe::stranger(PAIR_A).is_kept_out(), "{:?}", probe::stranger(PAIR_A));
        daemon.cli(&["release", id])?.ok()?;
    }
    set_bridge(ctx, daemon)?;
    if !ctx.has(Shpchp) {
        is_free(PAIR_A)?;
    }
    before.iter().try_for_each(Before::is_back)?;
    Ok(Outcome::Pass)
}

/// Reserves for this very process.
fn take(daemon: &Daemon, device: &str, backend: &str, more: &[&str]) -> Result<String> {
    let mut words = vec!["reserve", "--holder", "vm1", "--device", device, "--policy", "group"];
    words.extend(["--delivery", "held", "--backend", backend]);
    words.extend(more);
    text(&daemon.cli(&words)?.ok()?, "id")
}

fn other_token(daemon: &Daemon, backend: &str) -> Result<()> {
    let words = ["reserve", "--holder", "vm9", "--device", PAIR_B, "--policy", "group"];
    let mut words = words.to_vec();
    words.extend(["--delivery", "held", "--backend", backend]);
    is_refused(&daemon.cli(&words)?, "GROUP_OWNED", &["vm1"])
}

/// The token joins, shown as the reservation's id or as the very file; nothing else does.
fn joins(daemon: &Daemon, first: &str) -> Result<String> {
    other_token(daemon, "iommufd")?;
    let shows = |file: BorrowedFd<'_>| {
        let request = json!({"op": "show-token", "reservation": first});
        handover::ask(&daemon.handover(), &request, &[file]).map(|packet| packet.json)
    };
    let fresh = Iommufd::open()?;
    let told = shows(fresh.as_fd())?;
    ensure!(told["refusal"]["reason"] == "GROUP_OWNED", "a fresh iommufd is its token: {told}");
    let own = owner_file(daemon)?;
    let told = shows(own.as_fd())?;
    ensure!(told["ok"] == true, "the owner's file is not its token: {told}");
    let token = text(&told, "token")?;
    take(daemon, PAIR_B, "iommufd", &["--join", &token])
}

/// A duplicate of the iommufd that the daemon has open, as only root can get it.
fn owner_file(daemon: &Daemon) -> Result<OwnedFd> {
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw).context("odd pid")?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let dir = format!("/proc/{}/fd", daemon.pid());
    for entry in fs::read_dir(&dir)?.flatten() {
        let number = entry.file_name().to_string_lossy().parse()?;
        if fs::read_link(entry.path()).is_ok_and(|target| target.ends_with("dev/iommu")) {
            return Ok(pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?);
        }
    }
    bail!("the daemon has no iommufd open")
}

fn register(daemon: &Daemon, id: &str, memory: &Memory) -> Result<()> {
    let told = registers(daemon, id, memory)?;
    ensure!(told["ok"] == true, "{told}");
    Ok(())
}

fn registers(daemon: &Daemon, id: &str, memory: &Memory) -> Result<Value> {
    let request = json!({
        "op": "register", "reservation": id, "iova": format!("{IOVA:#x}"),
        "lengthBytes": memory.length_bytes(), "offset": 0, "write": true, "read": true,
    });
    let told = handover::ask(&daemon.handover(), &request, &[memory.file().as_fd()])?.json;
    println!("{request} -> {told}");
    Ok(told)
}

/// The device takes a pattern in and brings it back.
fn lands(edu: &Edu, memory: &Memory, seed: u8) -> Result<()> {
    let bytes = pattern(seed, PAGE);
    memory.write(0, &bytes)?;
    edu.copy_in(IOVA, 4096)?;
    memory.write(0, &[0; PAGE])?;
    edu.copy_out(IOVA, 4096)?;
    ensure!(memory.read(0, PAGE)? == bytes, "the device did not bring the pattern back");
    Ok(())
}

struct Domains {
    first: String,
    second: String,
    memory: Memory,
}

/// After a replace, DMA lands in the new domain and no longer in the old one.
fn replaces(ctx: &Ctx, daemon: &Daemon, id: &str, edu: &Edu, old: &Memory) -> Result<Domains> {
    let first = text(&daemon.cli(&["reservation", "show", id])?.ok()?, "domain")?;
    let made = daemon.cli(&["domain", "create", "--context", id])?.ok()?;
    let second = text(&made, "id")?;
    daemon.cli(&["domain", "replace", "--reservation", id, "--domain", &second])?.ok()?;
    let bytes = pattern(41, PAGE);
    old.write(0, &bytes)?;
    is_blocked(ctx, IOVA, ALIAS, || edu.copy_out(IOVA, 4096))?;
    ensure!(old.read(0, PAGE)? == bytes, "DMA still lands in the old domain");
    let memory = Memory::sealed(4096)?;
    register(daemon, id, &memory)?;
    lands(edu, &memory, 43)?;
    ensure!(old.read(0, PAGE)? == bytes, "DMA lands in both domains");
    ctx.say("DMA lands in the new domain and not in the old one");
    Ok(Domains { first, second, memory })
}

/// The kernel refuses a domain in which the interrupts' window is mapped; the one before goes on.
fn replace_fails(daemon: &Daemon, id: &str, edu: &Edu, domains: &Domains) -> Result<()> {
    // Somebody who has the owner's file maps what must not be mapped into the idle domain. Its
    // number isn't told, but what is permitted in an attached one leaves the window out.
    let context = Iommufd::from(owner_file(daemon)?);
    let poison = Memory::new(4096)?;
    let idle = (1..64)
        .map(IoasId)
        .find(|ioas| poison.map_iommufd(&context, *ioas, IovaChoice::Fixed(INTERRUPTS)).is_ok());
    let idle = idle.context("no idle domain takes a mapping in the interrupts' window")?;
    let words = ["domain", "replace", "--reservation", id, "--domain", &domains.first];
    let answer = daemon.cli(&words)?;
    ensure!(answer.code != Some(0), "the kernel took a domain that covers the interrupts");
    println!("replace by {idle}: {}", answer.stderr);
    lands(edu, &domains.memory, 47)?;
    let shown = daemon.cli(&["reservation", "show", id])?.ok()?;
    ensure!(text(&shown, "domain")? == domains.second, "the record moved: {shown}");
    context.unmap(idle, INTERRUPTS, 4096)?;
    daemon.cli(&words)?.ok()?;
    daemon.cli(&["domain", "replace", "--reservation", id, "--domain", &domains.second])?.ok()?;
    lands(edu, &domains.memory, 53)
}

/// Detached means blocked, and nobody else gets in meanwhile.
fn detached(ctx: &Ctx, daemon: &Daemon, id: &str, edu: &Edu, memory: &Memory) -> Result<()> {
    let bytes = pattern(61, PAGE);
    memory.write(0, &bytes)?;
    daemon.cli(&["detach", id])?.ok()?;
    is_blocked(ctx, IOVA, ALIAS, || edu.copy_out(IOVA, 4096))?;
    ensure!(memory.read(0, PAGE)? == bytes, "a detached device wrote to memory");
    ensure!(probe::stranger(PAIR_A).is_kept_out(), "{:?}", probe::stranger(PAIR_A));
    let told = registers(daemon, id, memory)?;
    ensure!(told["refusal"]["reason"] == "NOT_ATTACHED", "{told}");
    daemon.cli(&["attach", id])?.ok()?;
    if registers(daemon, id, memory)?["ok"] == true {
        lands(edu, memory, 67)?;
    } else {
        bail!("memory can't be registered after another attach");
    }
    Ok(())
}
