//! A host driver with a domain of its own: `vp-vdpa`, while a process has its vhost node open.

use std::{
    path::Path,
    process::Child,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use berth_uapi::Errno;

use super::berthd_tools::{Before, is_refused, text};
use crate::{
    guest::{Ctx, Outcome, Scenario, daemon::Daemon, eventually, probe, sysfs, vdpa},
    topology::VIRTIO_NET,
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1, Vdpa},
};

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario::new("berthd_private_iommufd", IOMMUFD, private_iommufd)];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Vdpa, Iommufd, Cdev, Type1, Intremap];
const RESERVE: &[&str] = &[
    "reserve",
    "--holder",
    "vm1",
    "--device",
    VIRTIO_NET,
    "--policy",
    "exclusive",
    "--backend",
    "iommufd",
];
/// By when something that must not wait for anybody has come back.
const AT_ONCE: Duration = Duration::from_secs(20);

fn private_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(VIRTIO_NET);
    to_vp_vdpa()?;
    let on_vdpa = Before::of(VIRTIO_NET);
    let node = vdpa::make(VIRTIO_NET, "berth0")?;
    let default = vdpa::page_table(VIRTIO_NET)?;
    let daemon = Daemon::start(ctx)?;
    is_owned(&daemon, "KERNEL", None)?;

    let mut keeper = vdpa::keeper(&node)?;
    is_private(ctx, &node, &default)?;
    let named = format!("sleep ({})", keeper.id());
    is_owned(&daemon, "PRIVATE", Some(&named))?;
    nobody_gets_it(&daemon, &named)?;
    on_vdpa.is_back()?;
    ensure!(keeper.try_wait()?.is_none(), "the process was ended");
    is_private(ctx, &node, &default)?;

    end(&mut keeper)?;
    ensure!(vdpa::page_table(VIRTIO_NET)? == default, "the default domain is not back");
    is_owned(&daemon, "KERNEL", None)?;
    is_refused(&daemon.cli(RESERVE)?, "KERNEL_DMA", &["EPERM", VIRTIO_NET, "vp-vdpa"])?;
    is_taken(&daemon)?;
    on_vdpa.is_back()?;
    unbind_waits(ctx)?;
    sysfs::to_host(VIRTIO_NET, Some("virtio-pci"))?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

fn to_vp_vdpa() -> Result<()> {
    sysfs::unbind(VIRTIO_NET)?;
    sysfs::set_driver_override(VIRTIO_NET, "vp-vdpa")?;
    sysfs::reprobe(VIRTIO_NET)?;
    let driver = sysfs::driver(VIRTIO_NET);
    ensure!(driver.as_deref() == Some("vp-vdpa"), "{VIRTIO_NET} is on {driver:?}");
    Ok(())
}

fn end(process: &mut Child) -> Result<()> {
    process.kill()?;
    process.wait()?;
    Ok(())
}

/// The IOMMU walks another page table than the default domain's, and the kernel lets nobody else in.
fn is_private(ctx: &Ctx, node: &Path, default: &str) -> Result<()> {
    let table = vdpa::page_table(VIRTIO_NET)?;
    ensure!(table != default, "{VIRTIO_NET} is in the default domain {default}");
    let second = vdpa::open(node).map(drop);
    ensure!(second == Err(Errno::BUSY), "a second open: {second:?}");
    let group = sysfs::group(VIRTIO_NET).unwrap_or_default();
    let kind = Path::new("/sys/kernel/iommu_groups").join(group).join("type");
    let identity = sysfs::write(&kind, "identity");
    ensure!(identity == Err(Errno::PERM), "another default domain: {identity:?}");
    ctx.say(format!(
        "the IOMMU walks {table} for {VIRTIO_NET}, not {default}; a second open: {second:?}; \
         another default domain: {identity:?}"
    ));
    Ok(())
}

/// What `berth` says of the group once it has looked again, and for whom.
fn is_owned(daemon: &Daemon, kind: &str, process: Option<&str>) -> Result<()> {
    let told = daemon.cli(&["explain", VIRTIO_NET])?.ok()?;
    let group = &told["group"];
    ensure!(group["ownership"] == kind, "not {kind}: {group}");
    let said = &told["devices"][0];
    let named = said["processes"].as_array().map_or(0, Vec::len);
    ensure!(named == usize::from(process.is_some()), "{kind}: {said}");
    if let Some(process) = process {
        ensure!(said["text"].as_str().is_some_and(|text| text.contains(process)), "{said}");
    }
    let listed = daemon.cli(&["group", "show", VIRTIO_NET])?.ok()?;
    ensure!(listed["ownership"] == kind && listed["ownerCnt"] == 1, "{listed}");
    Ok(())
}

/// Nobody gets the group while the process has the node open, not even when the host gives it up:
/// to unbind its driver would wait.
fn nobody_gets_it(daemon: &Daemon, process: &str) -> Result<()> {
    let says = [VIRTIO_NET, "vp-vdpa", "a domain of its own", process, "first end"];
    let taking = [RESERVE, &["--take-from-host"]].concat();
    let release: &[&str] = &["kernel-dma", "release", VIRTIO_NET];
    for (words, errno) in [(RESERVE, "EPERM"), (&*taking, "EPERM"), (release, "EBUSY")] {
        let begun = Instant::now();
        let answer = daemon.cli(words)?;
        is_refused(&answer, "KERNEL_DMA", &says)?;
        is_refused(&answer, errno, &[])?;
        ensure!(begun.elapsed() < AT_ONCE, "it came after {:?}", begun.elapsed());
    }
    Ok(())
}

/// Without the process the host's driver can be given up, and comes back.
fn is_taken(daemon: &Daemon) -> Result<()> {
    let taking = [RESERVE, &["--take-from-host"]].concat();
    let id = text(&daemon.cli(&taking)?.ok()?, "id")?;
    let driver = sysfs::driver(VIRTIO_NET);
    ensure!(driver.as_deref() == Some("vfio-pci"), "{VIRTIO_NET} is on {driver:?}");
    daemon.cli(&["attach", &id])?.ok()?;
    let stranger = probe::stranger(VIRTIO_NET);
    ensure!(stranger.is_kept_out(), "{stranger:?}");
    daemon.cli(&["release", &id])?.ok()?;
    Ok(())
}

/// Why nothing is begun: an unbind by hand comes back only when the node is closed.
fn unbind_waits(ctx: &Ctx) -> Result<()> {
    let node = vdpa::make(VIRTIO_NET, "berth1")?;
    let mut keeper = vdpa::keeper(&node)?;
    let unbinding: JoinHandle<_> = thread::spawn(|| sysfs::unbind(VIRTIO_NET));
    eventually("the unbind to begin", ctx.patience(), || !node.exists())?;
    thread::sleep(Duration::from_secs(2));
    ensure!(!unbinding.is_finished(), "the unbind did not wait");
    end(&mut keeper)?;
    let answer = unbinding.join().map_err(|_| anyhow!("the thread that unbinds broke"))?;
    ctx.say(format!("an unbind by hand waited for {}, then: {answer:?}", node.display()));
    ensure!(answer.is_ok() && sysfs::driver(VIRTIO_NET).is_none(), "{answer:?}");
    Ok(())
}
