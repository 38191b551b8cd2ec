//! The kernel by itself, without `berthd`: what the other scenarios build on is really so here.

use anyhow::{Context, Result, ensure};
use berth_uapi::{Device, DmaPerms, Errno, IovaChoice, PtId, VfioContainer};

use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        edu::{Edu, pattern},
        kmsg::Kmsg,
        memory::Memory,
        probe, sysfs,
    },
    topology::{EDU_ROOT, MIXED_EDU, MIXED_NIC},
    wire::Capability::{Cdev, Intremap, Iommufd, MapFile, NoIntremap, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("raw_dma_iommufd", &[Iommufd, Cdev, Intremap], dma_iommufd),
    Scenario::new("raw_dma_map_file", &[Iommufd, Cdev, Intremap, MapFile], dma_map_file),
    Scenario::new("raw_dma_type1", &[Type1, Intremap], dma_type1),
    Scenario::new("raw_hold_by_group", &[Type1, Intremap], hold_by_group),
    Scenario::new("raw_unsafe_interrupts_iommufd", &[Cdev, NoIntremap], unsafe_iommufd),
    Scenario::new("raw_unsafe_interrupts_type1", &[Type1, NoIntremap], unsafe_type1),
];

const IOVA: u64 = 0x10_0000;
const PAGE: usize = 4096;

/// The device moves bytes in and out through the mapping, and no more once it is gone.
fn moves_and_stops(
    ctx: &Ctx,
    device: &Device,
    memory: &Memory,
    unmap: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let edu = Edu::on_vfio(device)?;
    let (first, second) = (pattern(3, PAGE), pattern(77, PAGE));
    memory.write(0, &first)?;
    edu.copy_in(IOVA, 4096)?;
    memory.write(0, &vec![0; PAGE])?;
    edu.copy_out(IOVA, 4096)?;
    ensure!(memory.read(0, PAGE)? == first, "the device did not bring the pattern back");
    ctx.say("the pattern went into the device and came back");

    let mut kmsg = Kmsg::from_now()?;
    unmap()?;
    memory.write(0, &second)?;
    edu.copy_out(IOVA, 4096)?;
    ensure!(memory.read(0, PAGE)? == second, "the device wrote to memory that was unmapped");
    let fault = kmsg.provoke_fault(IOVA, ctx.patience(), || edu.copy_out(IOVA, 4096))?;
    ctx.say(format!("after the unmap: {fault:?}"));
    ensure!(fault.write, "the fault is about a read");
    ensure!(EDU_ROOT.ends_with(&fault.source), "another device faulted");
    Ok(())
}

fn dma_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    sysfs::to_vfio(EDU_ROOT)?;
    let probed = probe::bind_cdev(EDU_ROOT).context("bind the cdev")?;
    let ioas = probed.context.ioas_alloc()?;
    probed.device.attach_pt(PtId::Ioas(ioas))?;
    let memory = Memory::new(4096)?;
    memory.map_iommufd(&probed.context, ioas, IovaChoice::Fixed(IOVA))?;
    moves_and_stops(ctx, probed.device.device(), &memory, || {
        probed.context.unmap(ioas, IOVA, 4096)?;
        Ok(())
    })?;
    drop(probed);
    sysfs::to_host(EDU_ROOT, None)?;
    Ok(Outcome::Pass)
}

fn dma_map_file(ctx: &mut Ctx) -> Result<Outcome> {
    sysfs::to_vfio(EDU_ROOT)?;
    let probed = probe::bind_cdev(EDU_ROOT).context("bind the cdev")?;
    let ioas = probed.context.ioas_alloc()?;
    probed.device.attach_pt(PtId::Ioas(ioas))?;
    let memory = Memory::new(4096)?;
    let perms = DmaPerms::READ_WRITE;
    probed.context.map_file(ioas, IovaChoice::Fixed(IOVA), memory.file(), 0, 4096, perms)?;
    moves_and_stops(ctx, probed.device.device(), &memory, || {
        probed.context.unmap(ioas, IOVA, 4096)?;
        Ok(())
    })?;
    drop(probed);
    sysfs::to_host(EDU_ROOT, None)?;
    Ok(Outcome::Pass)
}

fn dma_type1(ctx: &mut Ctx) -> Result<Outcome> {
    sysfs::to_vfio(EDU_ROOT)?;
    let group = probe::open_group(EDU_ROOT).context("open the group")?;
    let container = VfioContainer::open()?;
    group.set_container(&container)?;
    container.set_iommu_type1v2()?;
    let device = group.get_device_fd(EDU_ROOT, None)?;
    let memory = Memory::new(4096)?;
    memory.map_type1(&container, IOVA)?;
    moves_and_stops(ctx, &device, &memory, || {
        container.unmap_dma(IOVA, 4096)?;
        Ok(())
    })?;
    drop((device, group, container));
    sysfs::to_host(EDU_ROOT, None)?;
    Ok(Outcome::Pass)
}

/// A group in an empty container keeps everybody out, host drivers included, and its DMA blocked.
fn hold_by_group(ctx: &mut Ctx) -> Result<Outcome> {
    // The sibling is taken from its driver, as somebody who wants the whole group has to.
    sysfs::unbind(MIXED_NIC)?;
    sysfs::set_driver_override(MIXED_NIC, "pci-stub")?;
    for bridge in sysfs::group_members(&sysfs::group(MIXED_EDU).context("no group")?)? {
        if sysfs::driver(&bridge).as_deref() == Some("shpchp") {
            ctx.say(format!("{bridge} is taken from shpchp"));
            sysfs::unbind(&bridge)?;
        }
    }
    let shpchp = ctx.has(crate::wire::Capability::Shpchp);
    sysfs::to_vfio(MIXED_EDU)?;
    let group = probe::open_group(MIXED_EDU).context("open the group")?;
    let container = VfioContainer::open()?;
    group.set_container(&container)?;

    let stranger = probe::stranger(MIXED_EDU);
    ctx.say(format!("{stranger:?}"));
    ensure!(stranger.open_group == Err(Errno::BUSY), "a second open: {:?}", stranger.open_group);
    ensure!(stranger.bind_cdev.is_none_or(|a| a == Err(Errno::BUSY)), "{:?}", stranger.bind_cdev);
    sysfs::set_driver_override(MIXED_NIC, "")?;
    let refused = sysfs::bind(MIXED_NIC, "e1000");
    ensure!(refused == Err(Errno::BUSY), "the sibling's host driver: {refused:?}");

    drop((group, container));
    sysfs::bind(MIXED_NIC, "e1000").context("bind the sibling after the hold")?;
    sysfs::to_host(MIXED_EDU, None)?;
    if shpchp {
        sysfs::bind(crate::topology::MIXED_BRIDGE, "shpchp").context("give the bridge back")?;
    }
    Ok(Outcome::Pass)
}

fn unsafe_iommufd(_: &mut Ctx) -> Result<Outcome> {
    sysfs::to_vfio(EDU_ROOT)?;
    let refused = probe::bind_cdev(EDU_ROOT).map(drop);
    ensure!(refused == Err(Errno::PERM), "BIND without interrupt remapping: {refused:?}");
    sysfs::to_host(EDU_ROOT, None)?;
    Ok(Outcome::Pass)
}

fn unsafe_type1(_: &mut Ctx) -> Result<Outcome> {
    sysfs::to_vfio(EDU_ROOT)?;
    let group = probe::open_group(EDU_ROOT).context("open the group")?;
    let container = VfioContainer::open()?;
    group.set_container(&container)?;
    let refused = container.set_iommu_type1v2().map_err(|error| error.errno());
    ensure!(refused == Err(Errno::PERM), "SET_IOMMU without interrupt remapping: {refused:?}");
    drop((group, container));
    sysfs::to_host(EDU_ROOT, None)?;
    Ok(Outcome::Pass)
}
