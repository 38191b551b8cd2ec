//! The fast path on the real kernel: an address space, a buffer, a device that copies.

use std::os::{fd::AsFd, unix::fs::FileExt};

use anyhow::{Context, Result, bail, ensure};
use berth_dma::{AddressSpace, DmaBuffer, DmaError, DmaErrorKind, DmaPerms, Errno, IovaChoice};
use berth_uapi::{Device, PtId, VfioContainer, VfioGroup};
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CapabilitySet, capabilities, set_capabilities},
};

use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        edu::{Edu, pattern},
        kmsg::Kmsg,
        probe::{self, Probed},
        sysfs,
    },
    topology::EDU_SPARE,
    wire::Capability::{Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("dma_buffer_iommufd", &[Iommufd, Cdev, Intremap], buffer_iommufd),
    Scenario::new("dma_buffer_type1", &[Type1, Intremap], buffer_type1),
    Scenario::new("dma_file_iommufd", &[Iommufd, Cdev, Intremap], file_iommufd),
    Scenario::new("dma_file_type1", &[Type1, Intremap], file_type1),
    Scenario::new("dma_refusals_iommufd", &[Iommufd, Cdev, Intremap], refusals_iommufd),
    Scenario::new("dma_refusals_type1", &[Type1, Intremap], refusals_type1),
    Scenario::new("dma_memlock_iommufd", &[Iommufd, Cdev, Intremap], memlock_iommufd),
    Scenario::new("dma_memlock_type1", &[Type1, Intremap], memlock_type1),
];

pub(super) const PAGE: u64 = 4096;
pub(super) const RW: DmaPerms = DmaPerms::READ_WRITE;
/// The edu cuts addresses to 32 bits, so places are chosen below that.
pub(super) const FIXED: u64 = 0x20_0000;

/// A device, and the address space that it is attached to as two users see it. Fields are dropped
/// in this order, so that the device's file is closed before what it stands on.
pub(super) struct Bench {
    pub(super) space: AddressSpace,
    pub(super) twin: AddressSpace,
    pub(super) device: Bound,
}

pub(super) enum Bound {
    Iommufd(Probed),
    Type1(Device, VfioGroup),
}

impl Bench {
    pub(super) fn iommufd() -> Result<Self> {
        sysfs::to_vfio(EDU_SPARE)?;
        let probed = probe::bind_cdev(EDU_SPARE).context("bind the cdev")?;
        let ioas = probed.context.ioas_alloc()?;
        probed.device.attach_pt(PtId::Ioas(ioas))?;
        let space = AddressSpace::iommufd(probed.context.try_clone()?, ioas);
        let twin = AddressSpace::iommufd(probed.context.try_clone()?, ioas);
        Ok(Self { space, twin, device: Bound::Iommufd(probed) })
    }

    pub(super) fn type1() -> Result<Self> {
        sysfs::to_vfio(EDU_SPARE)?;
        let group = probe::open_group(EDU_SPARE).context("open the group")?;
        let container = VfioContainer::open()?;
        group.set_container(&container)?;
        container.set_iommu_type1v2()?;
        let device = group.get_device_fd(EDU_SPARE, None)?;
        let twin = VfioContainer::from(container.as_fd().try_clone_to_owned()?);
        let (space, twin) = (AddressSpace::type1(container), AddressSpace::type1(twin));
        Ok(Self { space, twin, device: Bound::Type1(device, group) })
    }

    pub(super) fn edu(&self) -> Result<Edu> {
        match &self.device {
            Bound::Iommufd(probed) => Edu::on_vfio(probed.device.device()),
            Bound::Type1(device, _group) => Edu::on_vfio(device),
        }
    }

    pub(super) fn end(self, edu: Edu) -> Result<Outcome> {
        drop((edu, self));
        sysfs::to_host(EDU_SPARE, None)?;
        Ok(Outcome::Pass)
    }
}

/// Once unmapped, the device does not reach the memory, and the IOMMU says so.
pub(super) fn is_blocked(ctx: &Ctx, edu: &Edu, kmsg: &mut Kmsg, iova: u64) -> Result<()> {
    let fault = kmsg.provoke_fault(iova, ctx.patience(), || edu.copy_out(iova, PAGE))?;
    ensure!(fault.write && EDU_SPARE.ends_with(&fault.source), "another fault: {fault:?}");
    ctx.say(format!("{fault:?}"));
    Ok(())
}

fn buffer(ctx: &Ctx, bench: Bench) -> Result<Outcome> {
    let (edu, space) = (bench.edu()?, &bench.space);
    ctx.say(format!("{:?} permits {:?}", space.backend(), space.ranges()?));
    let length = 4 * usize::try_from(PAGE)?;
    let mut buffer = DmaBuffer::new(length)?;
    for (round, place) in [IovaChoice::Any, IovaChoice::Fixed(FIXED)].into_iter().enumerate() {
        let iova = space.map_buffer(place, &buffer, RW)?;
        ensure!(iova != 0 && place != IovaChoice::Fixed(0), "address 0 was given out");
        ctx.say(format!("{place:?} is at {iova:#x}"));
        let bytes = pattern(u8::try_from(round)?, usize::try_from(PAGE)?);
        buffer.fill(0);
        buffer.write(0, &bytes)?;
        edu.copy_in(iova, PAGE)?;
        edu.copy_out(iova + 2 * PAGE, PAGE)?;
        let mut back = vec![0; bytes.len()];
        buffer.read(2 * usize::try_from(PAGE)?, &mut back)?;
        ensure!(back == bytes, "the device did not copy page 0 to page 2");

        let mut kmsg = Kmsg::from_now()?;
        space.unmap(iova, u64::try_from(length)?)?;
        buffer.fill(0xee);
        is_blocked(ctx, &edu, &mut kmsg, iova)?;
        ensure!(buffer.to_vec().iter().all(|byte| *byte == 0xee), "unmapped memory has changed");
    }
    bench.end(edu)
}

fn buffer_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    buffer(ctx, Bench::iommufd()?)
}

fn buffer_type1(ctx: &mut Ctx) -> Result<Outcome> {
    buffer(ctx, Bench::type1()?)
}

/// A memfd is mapped by file or, where the kernel can't, by an address in this process.
fn file(ctx: &Ctx, bench: Bench) -> Result<Outcome> {
    let (edu, space) = (bench.edu()?, &bench.space);
    let memfd = std::fs::File::from(memfd_create("dma", MemfdFlags::CLOEXEC)?);
    ftruncate(&memfd, 4 * PAGE)?;
    let bytes = pattern(5, usize::try_from(PAGE)?);
    memfd.write_all_at(&bytes, PAGE)?;
    // Pages 1 to 3 of the file, so page 1 is at FIXED.
    space.map_file(IovaChoice::Fixed(FIXED), &memfd, PAGE, 3 * PAGE, RW)?;
    ctx.say(format!("{:?}", space.regions()));
    edu.copy_in(FIXED, PAGE)?;
    edu.copy_out(FIXED + 2 * PAGE, PAGE)?;
    let mut back = vec![0; bytes.len()];
    memfd.read_exact_at(&mut back, 3 * PAGE)?;
    ensure!(back == bytes, "the device did not write to page 3 of the file");
    memfd.read_exact_at(&mut back, 0)?;
    ensure!(back.iter().all(|byte| *byte == 0), "page 0 of the file was never mapped");

    let mut kmsg = Kmsg::from_now()?;
    space.unmap(FIXED, 3 * PAGE)?;
    memfd.write_all_at(&vec![0xee; bytes.len()], PAGE)?;
    is_blocked(ctx, &edu, &mut kmsg, FIXED)?;
    memfd.read_exact_at(&mut back, PAGE)?;
    ensure!(back.iter().all(|byte| *byte == 0xee), "the unmapped file has changed");

    let past = space.map_file(IovaChoice::Any, &memfd, PAGE, 4 * PAGE, RW);
    ensure!(matches!(past, Err(DmaError::OutsideBuffer { .. })), "past the end: {past:?}");
    bench.end(edu)
}

fn file_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    file(ctx, Bench::iommufd()?)
}

fn file_type1(ctx: &mut Ctx) -> Result<Outcome> {
    file(ctx, Bench::type1()?)
}

/// What the kernel refuses arrives with its numbers, and leaves nothing behind.
fn refusals(ctx: &Ctx, bench: Bench) -> Result<Outcome> {
    let (edu, space) = (bench.edu()?, &bench.space);
    let buffer = DmaBuffer::new(2 * usize::try_from(PAGE)?)?;
    let map = |iova| space.map_buffer(IovaChoice::Fixed(iova), &buffer, RW);
    let refused = |iova| match map(iova) {
        Ok(_) => bail!("mapped at {iova:#x}"),
        Err(error) => {
            ctx.say(format!("{iova:#x}: {error}"));
            Ok(error)
        }
    };
    let msi = refused(0xfee0_0000)?;
    ensure!(matches!(msi, DmaError::NotPermitted { .. }), "the MSI window: {msi:?}");
    let beyond = refused(1 << 60)?;
    ensure!(matches!(beyond, DmaError::NotPermitted { .. }), "beyond the aperture: {beyond:?}");
    ensure!(refused(FIXED + 1)?.kind() == DmaErrorKind::Invalid, "misaligned");
    map(FIXED)?;
    ensure!(refused(FIXED + PAGE)?.errno() == Errno::EXIST, "an overlap");

    // Another user of the same address space: this one's mirror doesn't know, the kernel does.
    let foreign = bench.twin.map_buffer(IovaChoice::Fixed(FIXED), &buffer, RW);
    ensure!(
        matches!(foreign, Err(DmaError::Overlap { with: None, .. })),
        "somebody else's mapping: {foreign:?}"
    );
    ensure!(bench.twin.unmap_all()? == 2 * PAGE, "the other user could not unmap all");
    let gone = space.unmap(FIXED, 2 * PAGE);
    ensure!(matches!(gone, Err(DmaError::NotMapped { .. })), "already gone: {gone:?}");
    ensure!(space.regions().is_empty() && space.unmap_all()? == 0, "something is left behind");
    bench.end(edu)
}

fn refusals_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    refusals(ctx, Bench::iommufd()?)
}

fn refusals_type1(ctx: &mut Ctx) -> Result<Outcome> {
    refusals(ctx, Bench::type1()?)
}

/// Who may not lock memory at will is told need and limit, and raising the limit helps.
fn memlock(ctx: &Ctx, bench: Bench) -> Result<Outcome> {
    const MIB: u64 = 1 << 20;
    let (edu, space) = (bench.edu()?, &bench.space);
    // The scenario is a process of its own with one thread, so this ends with it.
    let mut sets = capabilities(None)?;
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets)?;
    let limit = |bytes| {
        let maximum = getrlimit(Resource::Memlock).maximum;
        setrlimit(Resource::Memlock, Rlimit { current: Some(bytes), maximum })
    };
    limit(MIB)?;
    let (small, large) = (DmaBuffer::new(1 << 19)?, DmaBuffer::new(1 << 21)?);
    let iova = space.map_buffer(IovaChoice::Any, &small, RW).context("below the limit")?;
    let refused = space.map_buffer(IovaChoice::Any, &large, RW);
    let Err(DmaError::Memlock { needs_kib, limit_kib, .. }) = refused else {
        bail!("above the limit: {refused:?}")
    };
    if let Err(error) = refused {
        ctx.say(error);
    }
    // Half a MiB is locked already, as far as this process's own counters show it.
    ensure!(limit_kib == 1024 && (2048..=2560).contains(&needs_kib), "{needs_kib} {limit_kib}");
    limit(4 * MIB)?;
    let second = space.map_buffer(IovaChoice::Any, &large, RW).context("below the new limit")?;
    space.unmap(iova, MIB / 2)?;
    space.unmap(second, 2 * MIB)?;
    bench.end(edu)
}

fn memlock_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    memlock(ctx, Bench::iommufd()?)
}

fn memlock_type1(ctx: &mut Ctx) -> Result<Outcome> {
    memlock(ctx, Bench::type1()?)
}
