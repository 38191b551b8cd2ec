//! An unbind that waits in the kernel for whoever has the device open: that device is wedged, with who
//! it is, and everything else goes on. Decided by sysfs, by processes in state D and by what else is
//! given away meanwhile.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use berth_uapi::{Device, GroupNumber, VfioContainer, VfioGroup};
use rustix::process::{Pid, Signal, kill_process};

use super::berthd_tools::{Before, is_refused, reserve};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::{Answer, Daemon, Options},
        eventually,
        probe::{self, Probed},
        sysfs, wait_for,
    },
    topology::{E1000E, EDU_ROOT, EDU_SPARE},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_wedged_iommufd", IOMMUFD, iommufd).within(300),
    Scenario::new("berthd_wedged_type1", TYPE1, type1).within(300),
    Scenario::new("berthd_wedged_restart_iommufd", IOMMUFD, iommufd_restart).within(300),
    Scenario::new("berthd_wedged_restart_type1", TYPE1, type1_restart).within(300),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];

/// A helper is given up soon, and the machine looked at often: each look comes by the stuck device.
const HURRIES: &str = "[timeouts]\nact_ms = 3000\nrescan_ms = 3000\n";

const RESCAN: Duration = Duration::from_secs(3);
const TRIES: u32 = 20;

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    let open = || Ok(Foreign::Iommufd(probe::bind_cdev(E1000E).map_err(anyhow::Error::from)?));
    wedged(ctx, open, End::HolderGoes)
}

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    wedged(ctx, by_group, End::HolderGoes)
}

fn iommufd_restart(ctx: &mut Ctx) -> Result<Outcome> {
    let open = || Ok(Foreign::Iommufd(probe::bind_cdev(E1000E).map_err(anyhow::Error::from)?));
    wedged(ctx, open, End::DaemonAndHelperDie)
}

fn type1_restart(ctx: &mut Ctx) -> Result<Outcome> {
    wedged(ctx, by_group, End::DaemonAndHelperDie)
}

/// What ends before the device is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    HolderGoes,
    /// The daemon is killed, and so is its helper, which the kernel keeps until the unbind is over.
    DaemonAndHelperDie,
}

/// Descriptors of this process, which Berth knows nothing of.
#[derive(Debug)]
#[expect(dead_code, reason = "they are kept open")]
enum Foreign {
    Iommufd(Probed),
    Type1(Device, VfioGroup, VfioContainer),
}

fn by_group() -> Result<Foreign> {
    let number = sysfs::group(E1000E).and_then(|n| n.parse().ok()).context("no group")?;
    let (container, group) = (VfioContainer::open()?, VfioGroup::open(GroupNumber(number))?);
    group.set_container(&container)?;
    container.set_iommu_type1v2()?;
    Ok(Foreign::Type1(group.get_device_fd(E1000E, None)?, group, container))
}

fn wedged(ctx: &Ctx, open: impl Fn() -> Result<Foreign>, end: End) -> Result<Outcome> {
    let before = Before::of(E1000E);
    sysfs::to_vfio(E1000E)?;
    let file = ctx.dir().join("berthd.toml");
    fs::write(&file, HURRIES)?;
    let arguments = vec!["--config".into(), file.into()];
    let mut daemon = Daemon::start_with(ctx, Options { arguments, ..Options::default() })?;
    let (foreign, set) = unbinds(&daemon, &open)?;
    let who = format!("{} ({})", own_name()?, std::process::id());
    is_refused(&set, "WEDGED", &[&who])?;
    ensure!(sysfs::driver(E1000E).is_none(), "the kernel has not begun to unbind");
    let helper = stuck_helper(ctx)?;
    is_wedged(ctx, &daemon, &who)?;
    others_go_on(&daemon)?;

    if end == End::DaemonAndHelperDie {
        daemon.kill()?;
        signal(helper, Signal::KILL)?;
        daemon.start_again()?;
        ensure!(state_of(helper).as_deref() == Some("D"), "the helper is gone: {helper}");
        is_wedged(ctx, &daemon, &who)?;
        others_go_on(&daemon)?;
    }
    ensure!(sysfs::driver(E1000E).is_none(), "the unbind came back though the device is open");
    drop(foreign);
    eventually("the helper to end", ctx.patience(), || state_of(helper).is_none())?;
    eventually("the device to be wedged no more", ctx.patience(), || !refuses(&daemon))?;
    if end == End::HolderGoes {
        // What was ordered is done after all.
        ensure!(sysfs::driver(E1000E).as_deref() == Some("e1000e"), "the host has it not");
    }
    let id = reserve(&daemon, &["--device", E1000E, "--policy", "exclusive", "--take-from-host"])?;
    daemon.cli(&["release", &id])?.ok()?;
    drop(daemon);
    sysfs::to_host(E1000E, Some("e1000e"))?;
    sysfs::set_driver_override(E1000E, "")?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

/// Has the device opened and a host driver ordered for it, before a look of the daemon has found the
/// device taken.
fn unbinds(daemon: &Daemon, open: impl Fn() -> Result<Foreign>) -> Result<(Foreign, Answer)> {
    for _ in 0..TRIES {
        let foreign = open()?;
        let set = daemon.cli(&["kernel-dma", "set", E1000E, "--driver", "e1000e"])?;
        if !set.stderr.contains("FOREIGN_OWNER") {
            return Ok((foreign, set));
        }
        drop(foreign);
        std::thread::sleep(RESCAN + Duration::from_secs(1));
    }
    bail!("the daemon was faster {TRIES} times")
}

const RESERVE: [&str; 7] =
    ["reserve", "--holder", "vm2", "--device", E1000E, "--policy", "exclusive"];

/// Whether a reservation of the device is refused for the stuck unbind, and says who it is.
fn is_wedged(ctx: &Ctx, daemon: &Daemon, who: &str) -> Result<()> {
    wait_for("the device to be wedged by name", ctx.patience(), || {
        let answer = daemon.cli(&RESERVE).ok()?;
        is_refused(&answer, "WEDGED", &[who]).ok()
    })?;
    let explained = daemon.cli(&["explain", E1000E])?.ok()?.to_string();
    ensure!(explained.contains(who), "nothing of {who}: {explained}");
    Ok(())
}

fn refuses(daemon: &Daemon) -> bool {
    let words = [&RESERVE[..], &["--take-from-host", "--dry-run"]].concat();
    daemon.cli(&words).is_ok_and(|answer| answer.stderr.contains("WEDGED"))
}

/// Other devices are given away and come back, and everything can be read, a few looks long.
fn others_go_on(daemon: &Daemon) -> Result<()> {
    for device in [EDU_ROOT, EDU_SPARE, EDU_ROOT] {
        let id = reserve(daemon, &["--device", device, "--policy", "exclusive"])?;
        ensure!(sysfs::driver(device).as_deref() == Some("vfio-pci"), "{device} is elsewhere");
        daemon.cli(&["group", "list"])?.ok()?;
        daemon.cli(&["device", "show", E1000E])?.ok()?;
        std::thread::sleep(Duration::from_millis(1500));
        daemon.cli(&["release", &id])?.ok()?;
    }
    println!("three other reservations came and went");
    Ok(())
}

fn own_name() -> Result<String> {
    Ok(fs::read_to_string("/proc/self/comm")?.trim_end().to_owned())
}

/// The helper that the kernel has.
fn stuck_helper(ctx: &Ctx) -> Result<u32> {
    wait_for("a helper in state D", ctx.patience(), || {
        let all = fs::read_dir("/proc").ok()?.flatten();
        let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.find(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let waits = matches!(state_of(*pid).as_deref(), Some("D" | "S"));
            name.trim_end() == "berth-helper" && waits
        })
    })
}

fn state_of(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let state = stat.rsplit_once(')')?.1.split_whitespace().next()?;
    // One that nobody has waited for yet is gone.
    (state != "Z").then(|| state.to_owned())
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("odd pid")?;
    Ok(kill_process(pid, signal)?)
}
