//! DMA into every kind of mapping of the fast path, and every refusal: what the device moved, what
//! the IOMMU blocked, and that a refused call leaves the address space as it was.
#![expect(unsafe_code, reason = "maps memory by address")]

use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};
use berth_dma::{
    AddressSpace, Arena, BatchBuffer, DmaBuffer, DmaError, DmaErrorKind, IovaChoice, IovaRange,
    Region,
};
use berth_uapi::PtId;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use super::dma::{Bench, Bound, FIXED, PAGE, RW, is_blocked};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        edu::{Edu, pattern},
        kmsg::Kmsg,
    },
    wire::Capability::{Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("dma_batch_iommufd", &[Iommufd, Cdev, Intremap], batch_iommufd),
    Scenario::new("dma_batch_type1", &[Type1, Intremap], batch_type1),
    Scenario::new("dma_arena_iommufd", &[Iommufd, Cdev, Intremap], arena_iommufd),
    Scenario::new("dma_arena_type1", &[Type1, Intremap], arena_type1),
    Scenario::new("dma_copy_iommufd", &[Iommufd, Cdev, Intremap], copy_iommufd),
    Scenario::new("dma_copy_type1", &[Type1, Intremap], copy_type1),
    Scenario::new("dma_whole_iommufd", &[Iommufd, Cdev, Intremap], whole_iommufd),
    Scenario::new("dma_whole_type1", &[Type1, Intremap], whole_type1),
    Scenario::new("dma_allow_iommufd", &[Iommufd, Cdev, Intremap], allow_iommufd),
    Scenario::new("dma_entries_type1", &[Type1, Intremap], entries_type1),
];

const ENTRY_LIMIT: &str = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";

/// Memory that stays mapped for the rest of the process's life and that nothing refers to.
#[derive(Clone, Copy)]
pub(super) struct Memory(NonNull<u8>);

impl Memory {
    pub(super) fn new(pages: u64) -> Result<Self> {
        let (length, prot) = (usize::try_from(pages * PAGE)?, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing.
        let base =
            unsafe { mmap_anonymous(std::ptr::null_mut(), length, prot, MapFlags::PRIVATE) }?;
        Ok(Self(NonNull::new(base.cast()).context("memory at address 0")?))
    }

    pub(super) fn page(self, page: u64) -> NonNull<u8> {
        let offset = usize::try_from(page * PAGE).unwrap_or(0);
        self.0.map_addr(|address| address.saturating_add(offset))
    }

    pub(super) fn write(self, page: u64, bytes: &[u8]) {
        for (at, byte) in bytes.iter().enumerate() {
            // SAFETY: scenarios write within the pages that there are, which stay.
            unsafe { self.byte(page, at).write_volatile(*byte) };
        }
    }

    pub(super) fn read(self, page: u64, length: usize) -> Vec<u8> {
        // SAFETY: scenarios read within the pages that there are, which stay.
        (0..length).map(|at| unsafe { self.byte(page, at).read_volatile() }).collect()
    }

    fn byte(self, page: u64, at: usize) -> NonNull<u8> {
        self.page(page).map_addr(|address| address.saturating_add(at))
    }
}

/// A refused call changes nothing.
fn unchanged<T: std::fmt::Debug>(
    ctx: &Ctx,
    space: &AddressSpace,
    what: &str,
    act: impl FnOnce() -> Result<T, DmaError>,
) -> Result<DmaError> {
    let before: Vec<Region> = space.regions();
    let error = act().err().with_context(|| format!("{what} was not refused"))?;
    ctx.say(format!("{what}: {error}"));
    ensure!(space.regions() == before, "{what} changed the address space");
    Ok(error)
}

fn batch(ctx: &Ctx, bench: Bench) -> Result<Outcome> {
    let (edu, space) = (bench.edu()?, &bench.space);
    let memory = Memory::new(8)?;
    // Pages 0 to 2 and 4 to 6 are neighbours, given in no order.
    let order = [5, 0, 2, 1, 4, 6];
    let buffers = order.map(|page| BatchBuffer {
        iova: IovaChoice::Any,
        memory: memory.page(page),
        length: PAGE,
    });
    // SAFETY: the memory stays, and nothing refers to it.
    let mapped = unsafe { space.map_batch(&buffers, RW) }?;
    ctx.say(format!("{mapped:x?}"));
    ensure!(mapped.areas().len() == 2, "not two areas: {:x?}", mapped.areas());
    for (page, iova) in order.iter().zip(mapped.iovas()) {
        ensure!(
            space.translate(memory.page(*page), PAGE) == Some(*iova),
            "page {page} is elsewhere"
        );
    }
    // Page 1 to page 6, through the device.
    let bytes = pattern(3, usize::try_from(PAGE)?);
    memory.write(1, &bytes);
    edu.copy_in(mapped.iovas()[3], PAGE)?;
    edu.copy_out(mapped.iovas()[5], PAGE)?;
    ensure!(memory.read(6, bytes.len()) == bytes, "the device did not copy page 1 to page 6");

    // One of a batch can't be had: none is mapped.
    let taken = [
        BatchBuffer { iova: IovaChoice::Fixed(FIXED), memory: memory.page(3), length: PAGE },
        BatchBuffer { iova: IovaChoice::Fixed(0xfee0_0000), memory: memory.page(7), length: PAGE },
    ];
    let refused = unchanged(ctx, space, "a batch with a reserved place", || {
        // SAFETY: as above.
        unsafe { space.map_batch(&taken, RW) }
    })?;
    ensure!(matches!(refused, DmaError::NotPermitted { .. }), "{refused:?}");
    // The kernel alone knows of another user's mapping.
    let foreign = DmaBuffer::new(4096)?;
    bench.twin.map_buffer(IovaChoice::Fixed(FIXED), &foreign, RW)?;
    let taken = [
        BatchBuffer { iova: IovaChoice::Fixed(FIXED - 2 * PAGE), ..taken[1] },
        BatchBuffer { iova: IovaChoice::Fixed(FIXED), ..taken[0] },
    ];
    let refused = unchanged(ctx, space, "a batch over another user's mapping", || {
        // SAFETY: as above.
        unsafe { space.map_batch(&taken, RW) }
    })?;
    ensure!(matches!(refused, DmaError::Overlap { with: None, .. }), "{refused:?}");
    bench.twin.unmap(FIXED, PAGE)?;

    let mut kmsg = Kmsg::from_now()?;
    space.unmap_batch(mapped.areas())?;
    memory.write(6, &vec![0xee; bytes.len()]);
    is_blocked(ctx, &edu, &mut kmsg, mapped.iovas()[5])?;
    ensure!(memory.read(6, 8) == [0xee; 8], "unmapped memory has changed");
    ensure!(space.unmap_all()? == 0, "something is left behind");
    bench.end(edu)
}

fn batch_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    batch(ctx, Bench::iommufd()?)
}

fn batch_type1(ctx: &mut Ctx) -> Result<Outcome> {
    batch(ctx, Bench::type1()?)
}

fn arena(ctx: &Ctx, bench: Bench) -> Result<Outcome> {
    let edu = bench.edu()?;
    let arena = Arena::new(&bench.space, 4 << 20)?;
    ctx.say(format!("the arena is at {:#x}", arena.iova()));
    let (mut from, to) = (arena.take(512)?, arena.take(512)?);
    let bytes = pattern(9, 512);
    from.write(0, &bytes)?;
    edu.copy_in(from.iova(), 512)?;
    edu.copy_out(to.iova(), 512)?;
    let mut back = vec![0; 512];
    to.read(0, &mut back)?;
    ensure!(back == bytes, "the device did not copy one piece to the other");
    let mut kmsg = Kmsg::from_now()?;
    drop(arena);
    is_blocked(ctx, &edu, &mut kmsg, to.iova() & !(PAGE - 1))?;
    bench.end(edu)
}

fn arena_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    arena(ctx, Bench::iommufd()?)
}

fn arena_type1(ctx: &mut Ctx) -> Result<Outcome> {
    arena(ctx, Bench::type1()?)
}

/// What the buffer shows at a page, after the device copied another page there.
fn moves(edu: &Edu, buffer: &mut DmaBuffer, seed: u8, (from, to): (u64, u64)) -> Result<()> {
    let bytes = pattern(seed, usize::try_from(PAGE)?);
    let page = usize::try_from(PAGE)?;
    buffer.fill(0);
    buffer.write(page, &bytes)?;
    edu.copy_in(from, PAGE)?;
    edu.copy_out(to, PAGE)?;
    let mut back = vec![0; bytes.len()];
    buffer.read(2 * page, &mut back)?;
    ensure!(back == bytes, "the device did not copy from {from:#x} to {to:#x}");
    Ok(())
}

/// A copy shows the same pages, lives on without the original, and goes to another IOAS as well.
fn copy_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    let bench = Bench::iommufd()?;
    let (edu, space) = (bench.edu()?, &bench.space);
    let mut buffer = DmaBuffer::new(4 * 4096)?;
    space.map_buffer(IovaChoice::Fixed(FIXED), &buffer, RW)?;
    let second = IovaChoice::Fixed(2 * FIXED);
    space.copy(FIXED + PAGE, 2 * PAGE, space, second, RW)?;
    moves(&edu, &mut buffer, 1, (2 * FIXED, 2 * FIXED + PAGE))?;
    let over = || space.copy(FIXED + PAGE, 4 * PAGE, space, IovaChoice::Any, RW);
    let refused = unchanged(ctx, space, "a copy of more than there is", over)?;
    ensure!(matches!(refused, DmaError::Bisects { .. }), "{refused:?}");

    let Bound::Iommufd(probed) = &bench.device else { unreachable!("it was made so") };
    let ioas = probed.context.ioas_alloc()?;
    let other = AddressSpace::iommufd(probed.context.try_clone()?, ioas);
    let there = space.copy(FIXED, 4 * PAGE, &other, IovaChoice::Any, RW)?;
    ctx.say(format!("in the other IOAS it is at {there:#x}"));
    space.unmap(FIXED, 4 * PAGE)?;
    moves(&edu, &mut buffer, 2, (2 * FIXED, 2 * FIXED + PAGE))?;
    probed.device.attach_pt(PtId::Ioas(ioas))?;
    moves(&edu, &mut buffer, 3, (there + PAGE, there + 2 * PAGE))?;
    let mut kmsg = Kmsg::from_now()?;
    is_blocked(ctx, &edu, &mut kmsg, 2 * FIXED)?;
    other.unmap(there, 4 * PAGE)?;
    is_blocked(ctx, &edu, &mut Kmsg::from_now()?, there)?;

    let stranger = berth_uapi::Iommufd::open()?;
    let ioas = stranger.ioas_alloc()?;
    let stranger = AddressSpace::iommufd(stranger, ioas);
    let refused = unchanged(ctx, &stranger, "a copy to another iommufd", || {
        space.copy(2 * FIXED, PAGE, &stranger, IovaChoice::Any, RW)
    })?;
    ensure!(matches!(refused, DmaError::Cannot { .. }), "{refused:?}");
    drop(other);
    bench.end(edu)
}

fn copy_type1(ctx: &mut Ctx) -> Result<Outcome> {
    let bench = Bench::type1()?;
    let (edu, space) = (bench.edu()?, &bench.space);
    let buffer = DmaBuffer::new(4096)?;
    let iova = space.map_buffer(IovaChoice::Any, &buffer, RW)?;
    let refused = unchanged(ctx, space, "a copy on type1", || {
        space.copy(iova, PAGE, space, IovaChoice::Any, RW)
    })?;
    ensure!(refused.kind() == DmaErrorKind::Unsupported, "{refused:?}");
    let refused = unchanged(ctx, space, "allow on type1", || space.allow(&[]))?;
    ensure!(matches!(refused, DmaError::Cannot { .. }), "{refused:?}");
    bench.end(edu)
}

/// Mappings are whole: half of one can't be unmapped, and a run of neighbours goes at once.
fn whole(ctx: &Ctx, bench: Bench) -> Result<Outcome> {
    let (edu, space) = (bench.edu()?, &bench.space);
    let buffers: Vec<_> = (0..6).map(|_| DmaBuffer::new(8192)).collect::<Result<_, _>>()?;
    let at = |number: u64| FIXED + number * 2 * PAGE;
    for (number, buffer) in (0..).zip(&buffers) {
        space.map_buffer(IovaChoice::Fixed(at(number)), buffer, RW)?;
    }
    for (what, iova, length) in [
        ("the first half", at(1), PAGE),
        ("the second half", at(1) + PAGE, PAGE),
        ("half of two", at(1) + PAGE, 2 * PAGE),
        ("two at once", at(1), 4 * PAGE),
    ] {
        let refused = unchanged(ctx, space, what, || space.unmap(iova, length))?;
        ensure!(matches!(refused, DmaError::Bisects { .. }), "{refused:?}");
    }
    let all: Vec<(u64, u64)> = (0..6).map(|number| (at(number), 2 * PAGE)).collect();
    let with_half = [all[0], (at(3), PAGE)];
    let refused = unchanged(ctx, space, "one and a half", || space.unmap_batch(&with_half))?;
    ensure!(matches!(refused, DmaError::Bisects { .. }), "{refused:?}");
    edu.copy_out(at(3), PAGE)?;
    space.unmap_batch(&all)?;
    ensure!(space.regions().is_empty() && space.unmap_all()? == 0, "something is left behind");
    is_blocked(ctx, &edu, &mut Kmsg::from_now()?, at(3))?;
    // Another user was faster: nothing stays behind here either.
    for (number, buffer) in (0..).zip(&buffers) {
        space.map_buffer(IovaChoice::Fixed(at(number)), buffer, RW)?;
    }
    ensure!(bench.twin.unmap_all()? == 12 * PAGE, "the other user could not unmap all");
    space.unmap_batch(&all)?;
    ensure!(space.regions().is_empty(), "what is gone is still known");
    let large = || space.map_buffer(IovaChoice::Fixed(0), &buffers[0], RW);
    space.unmap(large()?, 2 * PAGE)?;
    let memory = Memory::new(1)?;
    let refused = unchanged(ctx, space, "more than there are addresses", || {
        // SAFETY: there is no such memory, and no place for it either.
        unsafe { space.map(IovaChoice::Any, memory.page(0), 1 << 60, RW) }
    })?;
    ensure!(matches!(refused, DmaError::NoSpace { largest: 1.., .. }), "{refused:?}");
    let refused = unchanged(ctx, space, "memory that isn't there", || {
        // SAFETY: what lies behind the page may not be memory, which is what the kernel is to say.
        unsafe { space.map(IovaChoice::Any, memory.page(0), 1 << 30, RW) }
    })?;
    ensure!(refused.kind() == DmaErrorKind::BadAddress, "{refused:?}");
    bench.end(edu)
}

fn whole_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    whole(ctx, Bench::iommufd()?)
}

fn whole_type1(ctx: &mut Ctx) -> Result<Outcome> {
    whole(ctx, Bench::type1()?)
}

/// Only what is allowed is given out; then it is exhausted.
fn allow_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    let bench = Bench::iommufd()?;
    let (edu, space) = (bench.edu()?, &bench.space);
    let aperture = space.aperture()?.context("no addresses")?;
    let reserved = space.reserved()?;
    ctx.say(format!("aperture {aperture}, reserved {reserved:x?}"));
    ensure!(reserved.iter().any(|range| range.contains(0xfee0_0000, PAGE)), "no MSI window");
    let range = IovaRange { start: FIXED, last: FIXED + 2 * PAGE - 1 };
    space.allow(&[range])?;
    let buffer = DmaBuffer::new(8192)?;
    ensure!(space.map_buffer(IovaChoice::Any, &buffer, RW)? == FIXED, "another place was given");
    edu.copy_in(FIXED, PAGE)?;
    let one = DmaBuffer::new(4096)?;
    let any = || space.map_buffer(IovaChoice::Any, &one, RW);
    let refused = unchanged(ctx, space, "a full address space", any)?;
    ensure!(matches!(refused, DmaError::NoSpace { largest: 0, .. }), "{refused:?}");
    let msi = IovaRange { start: 0xfee0_0000, last: 0xfee0_0fff };
    let refused = unchanged(ctx, space, "allowing the MSI window", || space.allow(&[msi]))?;
    ensure!(refused.errno() == berth_dma::Errno::ADDRINUSE, "{refused:?}");
    space.allow(&[])?;
    any().context("it was lifted")?;
    bench.end(edu)
}

/// A container that may have few mappings says so before it is half done.
fn entries_type1(ctx: &mut Ctx) -> Result<Outcome> {
    let usual = std::fs::read_to_string(ENTRY_LIMIT).context("the limit")?;
    std::fs::write(ENTRY_LIMIT, "4")?;
    let bench = Bench::type1();
    std::fs::write(ENTRY_LIMIT, usual.trim())?;
    let bench = bench?;
    let (edu, space) = (bench.edu()?, &bench.space);
    let memory = Memory::new(16)?;
    let buffer =
        |page| BatchBuffer { iova: IovaChoice::Any, memory: memory.page(page), length: PAGE };
    let one = DmaBuffer::new(4096)?;
    let first = space.map_buffer(IovaChoice::Any, &one, RW)?;
    // Four areas, of which three fit: none is made.
    let apart = [0, 2, 4, 6].map(buffer);
    let refused = unchanged(ctx, space, "a batch beyond the limit", || {
        // SAFETY: the memory stays, and nothing refers to it.
        unsafe { space.map_batch(&apart, RW) }
    })?;
    ensure!(matches!(refused, DmaError::EntryLimit { mapped: 4, .. }), "{refused:?}");
    // As neighbours they are one.
    let together = [8, 9, 10, 11, 12, 13].map(buffer);
    // SAFETY: as above.
    let batch = unsafe { space.map_batch(&together, RW) }?;
    for _ in 0..2 {
        space.map_buffer(IovaChoice::Any, &one, RW)?;
    }
    let any = || space.map_buffer(IovaChoice::Any, &one, RW);
    let refused = unchanged(ctx, space, "a fifth mapping", any)?;
    ensure!(matches!(refused, DmaError::EntryLimit { mapped: 4, .. }), "{refused:?}");
    space.unmap(first, PAGE)?;
    let again = any().context("there is room for one again")?;
    edu.copy_in(again, PAGE)?;
    space.unmap_batch(batch.areas())?;
    bench.end(edu)
}
