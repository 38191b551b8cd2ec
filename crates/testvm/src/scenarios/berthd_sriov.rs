//! SR-IOV on QEMU's igb: virtual functions that no host driver takes, for two holders; decided by
//! sysfs and by what the kernel tells strangers.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::berthd_tools::{Before, is_free, is_refused, text};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::{Client, Daemon},
        eventually, probe, sysfs,
    },
    topology::{EDU_ROOT, IGB},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_sriov_iommufd", IOMMUFD, iommufd).within(240),
    Scenario::new("berthd_sriov_type1", TYPE1, type1).within(240),
    Scenario::new("berthd_sriov_restore", TYPE1, restore).within(240),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];

/// `sriov_numvfs` and `sriov_drivers_autoprobe`, as the kernel has them.
fn set_to() -> (String, String) {
    let of = |name| sysfs::attribute(IGB, name).unwrap_or_default();
    (of("sriov_numvfs"), of("sriov_drivers_autoprobe"))
}

fn is_set_to(vfs: &str, autoprobe: &str) -> Result<()> {
    let found = set_to();
    ensure!(found == (vfs.to_owned(), autoprobe.to_owned()), "{found:?}, not {vfs}, {autoprobe}");
    Ok(())
}

/// The virtual functions that the kernel links to.
fn functions() -> Result<Vec<String>> {
    let names = fs::read_dir(sysfs::device_dir(IGB))?.flatten().map(|entry| entry.path());
    let links = names.filter(|path| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("virtfn"))
    });
    let mut found = Vec::new();
    for link in links {
        let target = fs::read_link(link)?;
        let name = target.file_name().and_then(|name| name.to_str()).context("an odd link")?;
        found.push(name.to_owned());
    }
    found.sort();
    Ok(found)
}

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    two_holders(ctx, "iommufd")
}

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    two_holders(ctx, "type1")
}

fn two_holders(ctx: &mut Ctx, backend: &str) -> Result<Outcome> {
    let before = Before::of(IGB);
    is_set_to("0", "1")?;
    let mut daemon = Daemon::start(ctx)?;
    ctx.say(daemon.cli(&["sriov", "set", IGB, "4", "--dry-run"])?.ok()?.to_string());
    is_set_to("0", "1")?;
    daemon.cli(&["sriov", "set", IGB, "4"])?.ok()?;
    is_set_to("4", "0")?;
    let functions = functions()?;
    ensure!(functions.len() == 4, "{functions:?}");
    let mut groups = Vec::new();
    for function in &functions {
        ensure!(sysfs::driver(function).is_none(), "a host driver took {function}");
        let group = sysfs::group(function).context("a function without a group")?;
        ensure!(sysfs::group_members(&group)? == [function.as_str()], "not alone in {group}");
        groups.push(group);
    }
    groups.sort();
    groups.dedup();
    ensure!(groups.len() == 4, "they share groups: {groups:?}");

    let [first, second] = [&functions[0], &functions[1]];
    let ids = [("red", first), ("blue", second)].map(|(holder, function)| {
        let words = ["reserve", "--holder", holder, "--label", holder, "--device", function];
        let words = [&words[..], &["--policy", "exclusive", "--backend", backend]].concat();
        let id = text(&daemon.cli(&words)?.ok()?, "id")?;
        daemon.cli(&["attach", &id])?.ok()?;
        let stranger = probe::stranger(function);
        ensure!(stranger.is_kept_out(), "{function} of {holder}: {stranger:?}");
        Ok(id)
    });
    let [red, blue] = ids;
    let (red, blue) = (red?, blue?);
    is_kept(&daemon, first, &red)?;

    // The record and the hold outlive the daemon; so does what is refused for them.
    daemon.kill()?;
    daemon.start_again()?;
    is_set_to("4", "0")?;
    is_kept(&daemon, first, &red)?;
    daemon.cli(&["release", &red])?.ok()?;
    is_kept(&daemon, second, &blue)?;
    daemon.cli(&["release", &blue])?.ok()?;
    for function in &functions {
        ensure!(sysfs::driver(function).is_none(), "{function} is left on a driver");
        is_free(function)?;
    }

    // Somebody outside has one: found although nothing was said of it.
    sysfs::to_vfio(&functions[2])?;
    let foreign = probe::open_group(&functions[2]).map_err(|errno| anyhow::anyhow!("{errno}"))?;
    ctx.say(format!("{foreign:?} is this process's"));
    let answer = daemon.cli(&["sriov", "set", IGB, "0"])?;
    is_refused(&answer, "FOREIGN_OWNER", &[&functions[2]])?;
    is_set_to("4", "0")?;
    drop(foreign);
    daemon.cli(&["sriov", "set", IGB, "0"])?.ok()?;
    is_set_to("0", "1")?;
    for function in &functions {
        ensure!(!sysfs::device_dir(function).exists(), "{function} is still there");
    }
    is_refused(&daemon.cli(&["sriov", "restore", IGB])?, "NO_OPERATION", &[IGB])?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

/// Another number of functions is refused, with who has which of them.
fn is_kept(daemon: &Client, function: &str, id: &str) -> Result<()> {
    let way_out = format!("berth release {id}");
    for words in [
        ["sriov", "set", IGB, "0"].as_slice(),
        &["sriov", "set", IGB, "2"],
        &["sriov", "restore", IGB],
    ] {
        is_refused(&daemon.cli(words)?, "GROUP_OWNED", &[IGB, function, id, &way_out])?;
    }
    is_set_to("4", "0")
}

/// What an administrator had set comes back, host drivers on the functions; what can't be is refused
/// in the kernel's words.
fn restore(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(IGB);
    let numvfs = sysfs::device_dir(IGB).join("sriov_numvfs");
    sysfs::write(&numvfs, "2").map_err(|errno| anyhow::anyhow!("{errno}"))?;
    let taken = |wanted: usize| {
        let found = functions().unwrap_or_default();
        found.len() == wanted
            && found.iter().all(|it| sysfs::driver(it).as_deref() == Some("igbvf"))
    };
    eventually("igbvf takes the functions", ctx.patience(), || taken(2))?;
    let mut daemon = Daemon::start(ctx)?;
    let function = functions()?.into_iter().next().context("no function")?;
    for (device, vfs, says) in [
        (IGB, "8", "7 (sriov_totalvfs)"),
        (EDU_ROOT, "1", "no physical function"),
        (&function, "1", "a virtual function of"),
    ] {
        let answer = daemon.cli(&["sriov", "set", device, vfs])?;
        ensure!(answer.code == Some(2), "exit code {:?}: {}", answer.code, answer.stderr);
        ensure!(answer.stderr.contains(says), "nothing about {says}: {}", answer.stderr);
    }
    is_set_to("2", "1")?;

    daemon.cli(&["sriov", "set", IGB, "3"])?.ok()?;
    is_set_to("3", "0")?;
    ensure!(functions()?.iter().all(|it| sysfs::driver(it).is_none()), "a host driver took one");
    daemon.kill()?;
    daemon.start_again()?;
    daemon.cli(&["sriov", "restore", IGB])?.ok()?;
    is_set_to("2", "1")?;
    ensure!(taken(2), "they are not on igbvf again");

    // vfio-pci makes none, unless it is told to.
    daemon.cli(&["sriov", "set", IGB, "0"])?.ok()?;
    is_set_to("0", "1")?;
    sysfs::to_vfio(IGB)?;
    let answer = daemon.cli(&["sriov", "set", IGB, "1"])?;
    is_refused(&answer, "KERNEL_REFUSED", &[IGB, "vfio-pci", "enable_sriov", "ENOENT"])?;
    is_set_to("0", "1")?;
    made_by_vfio(&daemon)?;
    sysfs::to_host(IGB, before.driver())?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

/// Where it is told to, it makes some, and takes none away either without the parameter.
fn made_by_vfio(daemon: &Client) -> Result<()> {
    let enable = "/sys/module/vfio_pci/parameters/enable_sriov";
    fs::write(enable, "1")?;
    daemon.cli(&["sriov", "set", IGB, "1"])?.ok()?;
    is_set_to("1", "0")?;
    daemon.cli(&["sriov", "set", IGB, "0"])?.ok()?;
    fs::write(enable, "0")?;
    is_set_to("0", "1")
}
