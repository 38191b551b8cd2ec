//! Every call of the uapi crate against the real kernel, with the errnos that it documents.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use berth_uapi::{
    BoundDevice, Cdev as OpenCdev, DevId, DevNodes, Device, DmaPerms, Errno, HotResetOwner,
    HwptFlags, IoasId, IoctlError, Iommufd as Iommu, IovaChoice, IovaRange, IrqIndex, PtId,
    RegionIndex, RlimitMode, VfioContainer, same_file,
};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::{
    guest::{Ctx, Outcome, Scenario, memory::Memory, probe, sysfs},
    topology::{EDU_SPARE, IGB, PAIR_A, PAIR_B},
    wire::Capability::{Cdev, Intremap, Iommufd, MapFile, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("uapi_probe", &[], probe_answers),
    Scenario::new("uapi_iommufd_group", &[Iommufd, Cdev, Intremap], iommufd_group),
    Scenario::new("uapi_iommufd_objects", &[Iommufd, Cdev, Intremap], iommufd_objects),
    Scenario::new("uapi_iommufd_mappings", &[Iommufd], iommufd_mappings),
    Scenario::new("uapi_iommufd_options", &[Iommufd], iommufd_options),
    Scenario::new("uapi_type1", &[Type1, Intremap], type1),
    Scenario::new("uapi_device", &[Type1, Intremap], device),
    Scenario::new("uapi_reset_cdev", &[Iommufd, Cdev, Intremap], reset_cdev),
];

const PAGE: u64 = 4096;
const RW: DmaPerms = DmaPerms::READ_WRITE;

/// The kernel refused, with exactly this errno.
fn refused<T>(what: &str, answer: Result<T, IoctlError>, errno: Errno) -> Result<()> {
    match answer {
        Ok(_) => anyhow::bail!("{what}: it was done, {errno:?} was expected"),
        Err(error) => {
            ensure!(error.errno() == errno, "{what}: {error}, {errno:?} was expected");
            println!("{what}: {error}");
            Ok(())
        }
    }
}

/// What the features say is what the guest's own probes found another way.
fn probe_answers(ctx: &mut Ctx) -> Result<Outcome> {
    let found = berth_uapi::probe(&DevNodes::default());
    ctx.say(format!("{found:#?}"));
    for (name, answer, capability) in [
        ("iommufd", &found.iommufd, Iommufd),
        ("type1", &found.type1v2, Type1),
        ("cdev", &found.cdev, Cdev),
        ("map_file", &found.map_file, MapFile),
    ] {
        let expected = ctx.has(capability);
        ensure!(answer.is_yes() == expected, "{name}: {answer:?}, there: {expected}");
    }
    Ok(Outcome::Pass)
}

fn open_cdev(address: &str) -> Result<OpenCdev> {
    let path = probe::cdev_path(address).with_context(|| format!("{address} has no cdev"))?;
    Ok(OpenCdev::open(&path, address)?)
}

fn bind(address: &str, context: &Iommu) -> Result<BoundDevice> {
    Ok(open_cdev(address)?.bind_iommufd(context, None)?)
}

/// Two members of one group: the same page table joins, another doesn't; replace moves both.
fn iommufd_group(ctx: &mut Ctx) -> Result<Outcome> {
    sysfs::to_vfio(PAIR_A)?;
    sysfs::to_vfio(PAIR_B)?;
    let (context, stranger) = (Iommu::open()?, Iommu::open()?);
    let (first, second) = (context.ioas_alloc()?, context.ioas_alloc()?);
    let a = bind(PAIR_A, &context)?;
    // A sibling for another context; then a bound device, for its own and for another context.
    let failed = open_cdev(PAIR_B)?.bind_iommufd(&stranger, None);
    refused("a sibling, other context", failed.map_err(IoctlError::from), Errno::PERM)?;
    let failed = open_cdev(PAIR_A)?.bind_iommufd(&context, None);
    refused("bound already", failed.map_err(IoctlError::from), Errno::INVAL)?;
    let failed = open_cdev(PAIR_A)?.bind_iommufd(&stranger, None);
    refused("bound already, other context", failed.map_err(IoctlError::from), Errno::INVAL)?;
    ensure!(probe::open_group(PAIR_A).err() == Some(Errno::BUSY), "the group node opened");

    let b = bind(PAIR_B, &context)?;
    ensure!(a.dev_id() != b.dev_id(), "two devices, one id");
    let table = a.attach_pt(PtId::Ioas(first))?;
    refused("a sibling, another IOAS", b.attach_pt(PtId::Ioas(second)), Errno::INVAL)?;
    ensure!(b.attach_pt(PtId::Ioas(first))? == table, "the sibling joined something else");
    refused("no such IOAS", b.attach_pt(PtId::Ioas(IoasId(4711))), Errno::NOENT)?;
    refused("an IOAS in use", context.destroy(PtId::Ioas(first)), Errno::BUSY)?;

    // One member replaces for both: afterwards nobody uses the first IOAS.
    let moved = a.attach_pt(PtId::Ioas(second))?;
    ctx.say(format!("{table} was replaced by {moved}"));
    context.destroy(PtId::Ioas(first)).context("both have moved, so it is free")?;
    refused("the old page table", b.attach_pt(PtId::Hwpt(table)), Errno::NOENT)?;
    b.detach()?;
    b.detach().context("detaching twice")?;
    a.detach()?;
    context.destroy(PtId::Ioas(second)).context("nobody is attached")?;
    drop((a, b, context, stranger));
    sysfs::to_host(PAIR_A, None)?;
    sysfs::to_host(PAIR_B, None)?;
    Ok(Outcome::Pass)
}

/// Page tables made on purpose, and what a context tells of a device that comes and goes.
fn iommufd_objects(ctx: &mut Ctx) -> Result<Outcome> {
    sysfs::to_vfio(EDU_SPARE)?;
    let context = Iommu::open()?;
    let ioas = context.ioas_alloc()?;
    refused("no such device", context.get_hw_info(DevId(4711)), Errno::NOENT)?;
    let bound = bind(EDU_SPARE, &context)?;
    let id = bound.dev_id();
    let info = context.get_hw_info(id)?;
    ctx.say(format!("{info:?}"));
    ensure!(info.data_type == 1, "this machine has an Intel IOMMU");
    refused("an IOAS is no device", context.get_hw_info(DevId(ioas.0)), Errno::NOENT)?;

    let table = context.hwpt_alloc(id, PtId::Ioas(ioas), HwptFlags::default())?;
    ensure!(bound.attach_pt(PtId::Hwpt(table))? == table, "attached to something else");
    refused("a page table in use", context.destroy(PtId::Hwpt(table)), Errno::BUSY)?;
    let ranges = context.iova_ranges(ioas)?;
    ctx.say(format!("{ranges:?}"));
    let msi = |range: &IovaRange| range.contains(0xfee0_0000, PAGE);
    ensure!(!ranges.ranges.iter().any(msi), "the MSI window is permitted");
    ensure!(ranges.ranges.len() > 1 && ranges.alignment == PAGE, "{ranges:?}");
    let window = IovaRange { start: 0xfee0_0000, last: 0xfee0_0fff };
    refused("allow the MSI window", context.allow_iovas(ioas, &[window]), Errno::ADDRINUSE)?;
    if ctx.has(MapFile) {
        // Only now: without a device nothing is pinned, so nobody looks at the file's end.
        let memory = Memory::new(2 * PAGE)?;
        let file = |length| {
            context.map_file(ioas, IovaChoice::Fixed(PAGE), memory.file(), PAGE, length, RW)
        };
        refused("past the end of the file", file(2 * PAGE), Errno::INVAL)?;
        ensure!(file(PAGE)? == PAGE && context.unmap_all(ioas)? == PAGE, "inside of it");
    }
    bound.detach()?;
    context.destroy(PtId::Hwpt(table))?;

    // The other order: what is allowed first keeps the device out.
    context.allow_iovas(ioas, &[window])?;
    refused("a device that reserves it", bound.attach_pt(PtId::Ioas(ioas)), Errno::ADDRINUSE)?;
    // The hand-over's question: is the device still bound?
    let (fd, _) = bound.into_parts();
    ensure!(context.get_hw_info(id).is_ok(), "still bound by its file");
    drop(fd);
    refused("after the last close", context.get_hw_info(id), Errno::NOENT)?;
    let twin = context.try_clone()?;
    ensure!(same_file(&context, &twin)?, "a duplicate is the same file");
    ensure!(!same_file(&context, Iommu::open()?)?, "two contexts are not");
    sysfs::to_host(EDU_SPARE, None)?;
    Ok(Outcome::Pass)
}

/// Maps, unmaps and copies in an IOAS that nothing is attached to.
fn iommufd_mappings(ctx: &mut Ctx) -> Result<Outcome> {
    let context = Iommu::open()?;
    let (ioas, other) = (context.ioas_alloc()?, context.ioas_alloc()?);
    let memory = Memory::new(4 * PAGE)?;
    let at = |page: u64| IovaChoice::Fixed(page * PAGE);
    ensure!(context.unmap_all(ioas)? == 0, "an empty IOAS had something to unmap");
    memory.map_iommufd(&context, ioas, at(16))?;
    memory.map_iommufd(&context, ioas, at(32))?;
    refused("an overlap", memory.map_iommufd(&context, ioas, at(18)), Errno::EXIST)?;
    refused("a cut", context.unmap(ioas, 16 * PAGE, PAGE), Errno::NOENT)?;
    refused("nothing", context.unmap(ioas, 64 * PAGE, PAGE), Errno::NOENT)?;
    refused("no IOAS", memory.map_iommufd(&context, IoasId(4711), at(0)), Errno::NOENT)?;
    let anywhere = memory.map_iommufd(&context, ioas, IovaChoice::Any)?;
    ensure!(anywhere != 0 && anywhere.is_multiple_of(PAGE), "at {anywhere:#x}");
    ensure!(context.unmap(ioas, anywhere, 4 * PAGE)? == 4 * PAGE, "another length");

    if ctx.has(MapFile) {
        let file = |offset, length, perms| {
            context.map_file(other, at(1), memory.file(), offset, length, perms)
        };
        refused("no access", file(0, PAGE, DmaPerms { read: false, write: false }), Errno::INVAL)?;
        ensure!(file(PAGE, PAGE, RW)? == PAGE, "another address");
        refused("mapped by address", context.change_process(), Errno::INVAL)?;
        ensure!(context.unmap_all(other)? == PAGE, "not one page");
    }
    // Over two mappings and the hole between them.
    ensure!(context.unmap(ioas, 16 * PAGE, 20 * PAGE)? == 8 * PAGE, "not both");
    ensure!(context.unmap_all(ioas)? == 0, "something is left");
    if ctx.has(MapFile) {
        context.map_file(other, at(1), memory.file(), 0, PAGE, RW)?;
        context.change_process().context("all is mapped by file")?;
    }
    context.destroy(PtId::Ioas(ioas))?;
    refused("destroyed", context.iova_ranges(ioas), Errno::NOENT)?;
    Ok(Outcome::Pass)
}

/// Options and their order, and which IOAS the compatible ioctls would use.
fn iommufd_options(ctx: &mut Ctx) -> Result<Outcome> {
    let context = Iommu::open()?;
    ensure!(context.rlimit_mode()? == RlimitMode::User, "the default");
    context.set_rlimit_mode(RlimitMode::Process)?;
    ensure!(context.rlimit_mode()? == RlimitMode::Process, "what was set");
    refused("no IOAS yet", context.vfio_ioas(), Errno::NODEV)?;
    let ioas = context.ioas_alloc()?;
    refused("too late", context.set_rlimit_mode(RlimitMode::User), Errno::BUSY)?;
    ensure!(context.huge_pages(ioas)?, "large pages are on at first");
    context.set_huge_pages(ioas, false)?;
    ensure!(!context.huge_pages(ioas)?, "what was set");
    context.set_vfio_ioas(Some(ioas))?;
    ensure!(context.vfio_ioas()? == ioas, "what was set");
    context.set_vfio_ioas(None)?;
    refused("none again", context.vfio_ioas(), Errno::NODEV)?;
    let bad = [IovaRange { start: PAGE, last: 0 }];
    refused("backwards", context.allow_iovas(ioas, &bad), Errno::INVAL)?;
    context.allow_iovas(ioas, &[IovaRange { start: 0x10_0000, last: 0x1f_ffff }])?;
    let found = context.iova_ranges(ioas)?;
    ctx.say(format!("{found:?}"));
    Ok(Outcome::Pass)
}

/// Group and container: the order of things, and each errno of a wrong one.
fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    sysfs::to_vfio(EDU_SPARE)?;
    let group = probe::open_group(EDU_SPARE).context("open the group")?;
    ensure!(probe::open_group(EDU_SPARE).err() == Some(Errno::BUSY), "it opened twice");
    let status = group.status()?;
    ensure!(status.viable && !status.container_set, "{status:?}");
    refused("no container yet", group.get_device_fd(EDU_SPARE, None), Errno::INVAL)?;
    let container = VfioContainer::open()?;
    refused("no group yet", container.set_iommu_type1v2(), Errno::INVAL)?;
    refused(
        "not a container",
        group.set_container(std::fs::File::open("/dev/null")?),
        Errno::BADFD,
    )?;
    group.set_container(&container)?;
    refused("already in one", group.set_container(&container), Errno::INVAL)?;
    ensure!(group.status()?.container_set, "in a container");
    refused("no IOMMU yet", group.get_device_fd(EDU_SPARE, None), Errno::INVAL)?;
    container.set_iommu_type1v2()?;
    refused("set already", container.set_iommu_type1v2(), Errno::INVAL)?;
    let info = container.get_info()?;
    ctx.say(format!("{info:x?}"));
    ensure!(info.page_sizes & PAGE != 0 && info.dma_avail.is_some(), "{info:?}");
    let msi = |range: &IovaRange| range.contains(0xfee0_0000, PAGE);
    ensure!(!info.iova_ranges.is_empty() && !info.iova_ranges.iter().any(msi), "{info:?}");

    let device = group.get_device_fd(EDU_SPARE, None)?;
    refused("not in the group", group.get_device_fd(PAIR_A, None), Errno::NODEV)?;
    refused("a device is open", group.unset_container(), Errno::BUSY)?;
    let memory = Memory::new(4 * PAGE)?;
    memory.map_type1(&container, 16 * PAGE)?;
    refused("an overlap", memory.map_type1(&container, 18 * PAGE), Errno::EXIST)?;
    refused("a cut", container.unmap_dma(16 * PAGE, PAGE), Errno::INVAL)?;
    refused("nothing", container.unmap_dma(64 * PAGE, PAGE), Errno::NOENT)?;
    refused("the MSI window", memory.map_type1(&container, 0xfee0_0000), Errno::INVAL)?;
    ensure!(container.unmap_dma(16 * PAGE, 4 * PAGE)? == 4 * PAGE, "another length");
    ensure!(container.unmap_all()? == 0, "something is left");
    drop(device);
    group.unset_container()?;
    refused("in none", group.unset_container(), Errno::INVAL)?;
    drop((group, container));
    sysfs::to_host(EDU_SPARE, None)?;
    Ok(Outcome::Pass)
}

/// Regions, registers, an interrupt, and a reset that is not there.
fn device(ctx: &mut Ctx) -> Result<Outcome> {
    sysfs::to_vfio(EDU_SPARE)?;
    let group = probe::open_group(EDU_SPARE).context("open the group")?;
    let container = VfioContainer::open()?;
    group.set_container(&container)?;
    container.set_iommu_type1v2()?;
    let device = group.get_device_fd(EDU_SPARE, None)?;
    let info = device.get_info()?;
    ctx.say(format!("{info:?}"));
    ensure!(info.is_pci && info.num_regions >= 9 && info.num_irqs == 5, "{info:?}");
    let bar = device.region_info(RegionIndex::BAR0)?;
    ensure!(bar.size_bytes == 1 << 20 && bar.mappable, "{bar:?}");
    refused("no such region", device.region_info(RegionIndex(4711)), Errno::INVAL)?;
    refused("no such BAR", device.map_region(RegionIndex::BAR4).map(drop), Errno::INVAL)?;
    let mut ids = [0; 4];
    device.read_region(RegionIndex::CONFIG, 0, &mut ids)?;
    ensure!(ids == [0x34, 0x12, 0xe8, 0x11], "ids {ids:x?}");
    let size = device.region_info(RegionIndex::CONFIG)?.size_bytes;
    let beyond = device.read_region(RegionIndex::CONFIG, size - 2, &mut ids);
    refused("beyond configuration space", beyond, Errno::INVAL)?;
    ensure!(!device.bus_master()?, "VFIO switches bus mastering off");
    device.set_bus_master(true)?;
    ensure!(device.bus_master()?, "what was set");

    let region = device.map_region(RegionIndex::BAR0)?;
    let mut word = [0; 4];
    device.read_region(RegionIndex::BAR0, 0, &mut word)?;
    ensure!(region.read_u32(0)? == u32::from_le_bytes(word), "mapped and read differ");
    interrupts(ctx, &device, |value| Ok(region.write_u32(0x60, value)?))?;

    if info.can_reset {
        device.reset()?;
    } else {
        refused("a reset that isn't there", device.reset(), Errno::INVAL)?;
    }
    drop((region, device, group, container));
    sysfs::to_host(EDU_SPARE, None)?;
    Ok(Outcome::Pass)
}

/// The edu raises MSI 0 when its interrupt register is written.
fn interrupts(ctx: &Ctx, device: &Device, raise: impl Fn(u32) -> Result<()>) -> Result<()> {
    let msi = device.irq_info(IrqIndex::MSI)?;
    ctx.say(format!("{msi:?}"));
    ensure!(msi.count == 1 && msi.eventfd, "{msi:?}");
    refused("no such index", device.irq_info(IrqIndex(99)), Errno::INVAL)?;
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let request = eventfd(0, EventfdFlags::CLOEXEC)?;
    device.set_irq_eventfds(IrqIndex::REQ, 0, &[request.as_fd()])?;
    device.set_irq_eventfds(IrqIndex::MSI, 0, &[event.as_fd()])?;
    raise(0x55)?;
    ensure!(is_signalled(event.as_fd(), ctx.patience())?, "the interrupt did not arrive");
    let mut count = [0; 8];
    rustix::io::read(&event, &mut count)?;
    device.disable_irqs(IrqIndex::MSI)?;
    raise(0xaa)?;
    ensure!(!is_signalled(event.as_fd(), Duration::from_millis(300))?, "it was disabled");
    Ok(())
}

fn is_signalled(event: BorrowedFd<'_>, patience: Duration) -> Result<bool> {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::from_borrowed_fd(event, PollFlags::IN)];
        match poll(&mut fds, Some(&left.try_into()?)) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno).context("poll"),
        }
    }
}

/// Resets of a function and of a whole bus, and who has a say in it.
fn reset_cdev(ctx: &mut Ctx) -> Result<Outcome> {
    let context = Iommu::open()?;
    for address in [PAIR_A, PAIR_B, IGB] {
        sysfs::to_vfio(address)?;
    }
    let igb = bind(IGB, &context)?;
    ensure!(igb.device().get_info()?.can_reset, "igb has FLR");
    igb.device().reset()?;

    let a = bind(PAIR_A, &context)?;
    let info = a.device().hot_reset_info()?;
    ctx.say(format!("{info:?}"));
    let owners: Vec<_> =
        info.devices.iter().map(|device| (device.address(), device.owner)).collect();
    ensure!(owners.contains(&(PAIR_A.to_owned(), HotResetOwner::Bound(a.dev_id()))), "{owners:?}");
    ensure!(owners.contains(&(PAIR_B.to_owned(), HotResetOwner::SameOwner)), "{owners:?}");
    ensure!(info.all_owned == Some(true), "both are in the context's group");
    refused("groups given for a cdev", a.device().pci_hot_reset(&[context.as_fd()]), Errno::INVAL)?;
    a.device().pci_hot_reset(&[]).context("reset the pair's bus")?;

    // A stranger's device on the bus is nobody's to reset; here the bus has none, so the check
    // is that an unbound cdev can't ask at all.
    let unbound = Device::from(open_cdev(PAIR_B)?.into_fd());
    refused("before it is bound", unbound.hot_reset_info(), Errno::INVAL)?;
    drop((unbound, a, igb, context));
    sysfs::to_host(PAIR_A, None)?;
    sysfs::to_host(PAIR_B, None)?;
    sysfs::to_host(IGB, Some("igb"))?;
    Ok(Outcome::Pass)
}
