//! What the scenarios about `berthd` have in common.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use berth_uapi::{ATTACH_DOES_NOTHING, Errno, VfioContainer};
use serde_json::Value;

use crate::{
    guest::{
        Ctx,
        daemon::{Answer, Client},
        edu::{Edu, pattern},
        holder::Holder,
        kmsg::Kmsg,
        probe, sysfs,
        unpriv::HOLDER_UID,
    },
    topology::PAIR_BRIDGE,
    wire::Capability::Shpchp,
};

/// Bytes of one transfer of an `edu`, and of a page.
pub(super) const PAGE: usize = 4096;

/// What a device and its group look like to the kernel while nobody has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Before {
    address: &'static str,
    driver: Option<String>,
    over: Option<String>,
}

impl Before {
    pub(super) fn of(address: &'static str) -> Self {
        let (driver, over) = (sysfs::driver(address), sysfs::driver_override(address));
        Self { address, driver, over }
    }

    /// The driver.
    pub(super) fn driver(&self) -> Option<&str> {
        self.driver.as_deref()
    }

    /// The driver and the override are as they were.
    pub(super) fn is_back(&self) -> Result<()> {
        let now = Self::of(self.address);
        ensure!(now == *self, "before: {self:?}, and now: {now:?}");
        Ok(())
    }
}

/// Nobody has the group: a stranger gets the device both ways, once it is on vfio-pci.
pub(super) fn is_free(address: &str) -> Result<()> {
    let (driver, over) = (sysfs::driver(address), sysfs::driver_override(address));
    sysfs::to_vfio(address)?;
    let stranger = probe::stranger(address);
    if driver.as_deref() != Some("vfio-pci") {
        sysfs::to_host(address, driver.as_deref())?;
        sysfs::set_driver_override(address, over.as_deref().unwrap_or_default())?;
    }
    ensure!(
        stranger.open_group.is_ok() && stranger.bind_cdev.is_none_or(|answer| answer.is_ok()),
        "{address} is not free: {stranger:?}"
    );
    Ok(())
}

/// Runs `berth reserve` for the unprivileged holder and gives the reservation's id.
pub(super) fn reserve(daemon: &Client, arguments: &[&str]) -> Result<String> {
    let uid = format!("uid:{HOLDER_UID}");
    let mut words = vec!["reserve", "--holder", "vm1", "--for", &uid];
    words.extend(arguments);
    let answer = daemon.cli(&words)?.ok()?;
    text(&answer, "id")
}

/// A member of an answer that has to be a text.
pub(super) fn text(answer: &Value, name: &str) -> Result<String> {
    let found = answer[name].as_str().with_context(|| format!("no {name} in {answer}"))?;
    Ok(found.to_owned())
}

/// A call that was refused for a reason, with exit code 3, and said what it should.
pub(super) fn is_refused(answer: &Answer, reason: &str, says: &[&str]) -> Result<()> {
    ensure!(answer.code == Some(3), "exit code {:?}, not 3: {}", answer.code, answer.stderr);
    ensure!(answer.stderr.contains(reason), "not {reason}: {}", answer.stderr);
    for word in says {
        ensure!(answer.stderr.contains(word), "nothing about {word}: {}", answer.stderr);
    }
    let lower = answer.stderr.to_lowercase();
    ensure!(!lower.contains("permission"), "the caller did nothing wrong: {}", answer.stderr);
    Ok(())
}

/// The device takes a pattern in and brings it back, through memory that the holder has mapped.
pub(super) fn moves(
    holder: &mut Holder,
    device: &str,
    memory: usize,
    iova: u64,
    seed: u8,
) -> Result<()> {
    let bytes = pattern(seed, PAGE);
    holder.write(memory, 0, &bytes)?;
    holder.copy_in(device, iova)?;
    holder.write(memory, 0, &[0; PAGE])?;
    holder.copy_out(device, iova)?;
    let came_back = holder.read(memory, 0, PAGE)?;
    ensure!(came_back == bytes, "{device} did not bring the pattern back: {:?}", &came_back[..8]);
    println!("{device} took a pattern in and brought it back at {iova:#x}");
    Ok(())
}

/// The same for a device that the holder doesn't have: `berthd` has it, or nobody.
pub(super) fn moves_by(
    edu: &Edu,
    holder: &mut Holder,
    memory: usize,
    iova: u64,
    seed: u8,
) -> Result<()> {
    let bytes = pattern(seed, PAGE);
    holder.write(memory, 0, &bytes)?;
    edu.copy_in(iova, 4096)?;
    holder.write(memory, 0, &[0; PAGE])?;
    edu.copy_out(iova, 4096)?;
    let came_back = holder.read(memory, 0, PAGE)?;
    ensure!(came_back == bytes, "pattern {seed} did not come back: {:?}", &came_back[..8]);
    Ok(())
}

/// Takes the bridge of the pair from the driver that does DMA for the host, where it has one.
pub(super) fn release_bridge(ctx: &Ctx, daemon: &Client) -> Result<()> {
    if ctx.has(Shpchp) {
        daemon.cli(&["kernel-dma", "release", PAIR_BRIDGE])?.ok()?;
        ensure!(sysfs::driver(PAIR_BRIDGE).is_none(), "shpchp is still on {PAIR_BRIDGE}");
    }
    Ok(())
}

/// Gives it back, unless the last release of the group did.
pub(super) fn set_bridge(ctx: &Ctx, daemon: &Client) -> Result<()> {
    if ctx.has(Shpchp) && sysfs::driver(PAIR_BRIDGE).is_none() {
        daemon.cli(&["kernel-dma", "set", PAIR_BRIDGE])?.ok()?;
    }
    Ok(())
}

/// A device that writes at an I/O address again and again changes nothing, and the IOMMU says that
/// it was `source` (of which kernels print more or less).
pub(super) fn is_blocked(
    ctx: &Ctx,
    iova: u64,
    source: &str,
    write: impl FnMut() -> Result<()>,
) -> Result<()> {
    let mut kmsg = Kmsg::from_now()?;
    let fault = kmsg.provoke_fault(iova, ctx.patience(), write)?;
    println!("blocked: {fault:?}");
    ensure!(fault.write, "the fault is about a read: {fault:?}");
    ensure!(source.ends_with(&fault.source), "another device faulted: {fault:?}, not {source}");
    Ok(())
}

/// The same for a holder's `edu`, whose memory keeps what is in it.
pub(super) fn is_blocked_for(
    ctx: &Ctx,
    holder: &mut Holder,
    (device, source): (&str, &str),
    memory: usize,
    iova: u64,
) -> Result<()> {
    let bytes = pattern(91, PAGE);
    holder.write(memory, 0, &bytes)?;
    is_blocked(ctx, iova, source, || holder.copy_out(device, iova))?;
    let there = holder.read(memory, 0, PAGE)?;
    ensure!(there == bytes, "{device} wrote to memory that it must not reach");
    Ok(())
}

/// No VFIO node and no `/dev/iommu` opens for the holder. The container's node is open to all by
/// the kernel's own design, and is worth nothing without a group.
pub(super) fn opens_no_node(holder: &mut Holder) -> Result<()> {
    let mut nodes = Vec::new();
    for dir in ["/dev/vfio", "/dev/vfio/devices"] {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        nodes.extend(entries.map(|entry| entry.path()).filter(|path| !path.is_dir()));
    }
    nodes.extend(Some(PathBuf::from("/dev/iommu")).filter(|path| path.exists()));
    let answers: BTreeMap<PathBuf, i32> = holder.opens(nodes)?;
    println!("what the holder may open: {answers:?}");
    let container = PathBuf::from("/dev/vfio/vfio");
    let denied = Errno::ACCESS.raw_os_error();
    let groups = answers.iter().filter(|(path, _)| **path != container);
    let open: Vec<_> = groups.clone().filter(|(_, errno)| **errno != denied).collect();
    ensure!(open.is_empty(), "the holder opens {open:?}");
    ensure!(groups.count() > 0, "there was no node to try");
    // Where attaches do nothing this one isn't refused, and what comes after it is to turn red.
    if answers.get(&container) == Some(&0) && !ATTACH_DOES_NOTHING {
        let empty = VfioContainer::open()?;
        let refused = empty.set_iommu_type1v2().map_err(|error| error.errno());
        ensure!(refused == Err(Errno::INVAL), "an empty container takes an IOMMU: {refused:?}");
    }
    Ok(())
}
