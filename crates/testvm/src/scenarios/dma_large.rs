//! Huge pages under the fast path, and what a preflight says beside what a map then does.
#![expect(unsafe_code, reason = "maps memory by address")]

use std::{fs, os::fd::AsFd, ptr::NonNull};

use anyhow::{Context, Result, bail, ensure};
use berth_dma::{
    AddressSpace, DmaBuffer, DmaError, IovaChoice, Planned, Preflight, large_page_share,
};
use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{MapFlags, ProtFlags, mmap, munmap},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{CapabilitySet, capabilities, set_capabilities},
};

use super::dma::{Bench, FIXED, PAGE, RW, is_blocked};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        edu::{Edu, pattern},
        kmsg::Kmsg,
    },
    wire::Capability::{Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("dma_hugetlb_iommufd", &[Iommufd, Cdev, Intremap], |ctx| {
        hugetlb(ctx, Bench::iommufd()?)
    }),
    Scenario::new("dma_hugetlb_type1", &[Type1, Intremap], |ctx| hugetlb(ctx, Bench::type1()?)),
    Scenario::new("dma_preflight_iommufd", &[Iommufd, Cdev, Intremap], |ctx| {
        preflight(ctx, Bench::iommufd()?)
    }),
    Scenario::new("dma_preflight_type1", &[Type1, Intremap], |ctx| {
        preflight(ctx, limited_to(ENTRIES)?)
    }),
];

const HUGE: u64 = 2 << 20;
const PAGES: u64 = 4;
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const ENTRY_LIMIT: &str = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
const ENTRIES: u32 = 4;

/// Huge pages of the guest, given back at the end.
struct Pool(String);

impl Pool {
    fn of(pages: u64) -> Result<Self> {
        let usual = fs::read_to_string(POOL).context("the kernel's pool of huge pages")?;
        fs::write(POOL, pages.to_string())?;
        let got: u64 = fs::read_to_string(POOL)?.trim().parse()?;
        let pool = Self(usual);
        ensure!(got >= pages, "the guest has {got} of {pages} huge pages");
        Ok(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // The scenario's machine is looked at by nobody but the next scenario, which makes its own.
        let _ = fs::write(POOL, self.0.trim());
    }
}

/// Memory of a file, as this process sees it.
struct View(NonNull<u8>, usize);

impl View {
    fn of(file: impl AsFd, length: u64) -> Result<Self> {
        let (bytes, prot) = (usize::try_from(length)?, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing.
        let base =
            unsafe { mmap(std::ptr::null_mut(), bytes, prot, MapFlags::SHARED, file.as_fd(), 0) }?;
        Ok(Self(NonNull::new(base.cast()).context("memory at address 0")?, bytes))
    }

    fn at(&self, offset: u64) -> NonNull<u8> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(self.1 - 1);
        self.0.map_addr(|address| address.saturating_add(offset))
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        for (place, byte) in (offset..).zip(bytes) {
            // SAFETY: within the mapping, which no Rust reference looks at.
            unsafe { self.at(place).write_volatile(*byte) };
        }
    }

    fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        // SAFETY: as above.
        (offset..).take(length).map(|place| unsafe { self.at(place).read_volatile() }).collect()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping of `of`, which nothing refers to any more.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), self.1) };
    }
}

/// The device copies a page across the seam of two huge pages to the last page of all.
fn crosses(edu: &Edu, view: &View, iova: u64, seed: u8) -> Result<()> {
    let bytes = pattern(seed, usize::try_from(PAGE)?);
    let (seam, last) = (HUGE - PAGE / 2, PAGES * HUGE - PAGE);
    view.write(last, &vec![0; bytes.len()]);
    view.write(seam, &bytes);
    edu.copy_in(iova + seam, PAGE)?;
    edu.copy_out(iova + last, PAGE)?;
    ensure!(view.read(last, bytes.len()) == bytes, "the device did not copy across the seam");
    Ok(())
}

fn hugetlb(ctx: &Ctx, bench: Bench) -> Result<Outcome> {
    let (edu, space) = (bench.edu()?, &bench.space);
    let pool = Pool::of(PAGES)?;
    let memfd = memfd_create("huge", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB)?;
    ftruncate(&memfd, PAGES * HUGE)?;
    let view = View::of(&memfd, PAGES * HUGE)?;

    let by_file = space.map_file(IovaChoice::Any, &memfd, 0, PAGES * HUGE, RW)?;
    ctx.say(format!("by file at {by_file:#x}: {:?}", space.regions()));
    ensure!(by_file.is_multiple_of(HUGE), "{by_file:#x} cuts huge pages for the IOMMU");
    crosses(&edu, &view, by_file, 3)?;
    let half = space.unmap(by_file, HUGE);
    ensure!(matches!(half, Err(DmaError::Bisects { .. })), "a huge page of four: {half:?}");
    space.unmap(by_file, PAGES * HUGE)?;
    is_blocked(ctx, &edu, &mut Kmsg::from_now()?, by_file)?;

    // SAFETY: the view stays until everything is unmapped.
    let by_address = unsafe { space.map(IovaChoice::Any, view.at(0), PAGES * HUGE, RW) }?;
    ensure!(by_address.is_multiple_of(HUGE), "{by_address:#x} cuts huge pages for the IOMMU");
    crosses(&edu, &view, by_address, 5)?;
    ensure!(
        space.translate(view.at(3 * HUGE), HUGE) == Some(by_address + 3 * HUGE),
        "the mirror has the last huge page elsewhere"
    );
    let share = large_page_share(view.at(0), PAGES * HUGE);
    ensure!(share == Some(100), "{share:?} percent of huge memory is in large pages");
    // As much memory in small pages, at the same place of a large page.
    let small = DmaBuffer::new(usize::try_from(HUGE)?)?;
    let elsewhere = space.map_buffer(IovaChoice::Any, &small, RW)?;
    space.unmap(elsewhere, HUGE)?;
    space.unmap(by_address, PAGES * HUGE)?;
    is_blocked(ctx, &edu, &mut Kmsg::from_now()?, by_address)?;
    drop((view, memfd, pool));
    bench.end(edu)
}

fn limited_to(entries: u32) -> Result<Bench> {
    let usual = fs::read_to_string(ENTRY_LIMIT).context("the limit")?;
    fs::write(ENTRY_LIMIT, entries.to_string())?;
    let bench = Bench::type1();
    fs::write(ENTRY_LIMIT, usual.trim())?;
    bench
}

/// The guest has as much memory as `lengths` say, one behind the other from an address on.
fn guest(start: u64, lengths: &[u64]) -> Vec<Planned> {
    let mut next = start;
    let planned = lengths.iter().map(|length| {
        let iova = IovaChoice::Fixed(next);
        next += length;
        Planned { iova, length: *length }
    });
    planned.collect()
}

/// What the preflight refuses, and that the map refuses it for the same reason.
fn both_refuse(
    ctx: &Ctx,
    space: &AddressSpace,
    planned: &[Planned],
    buffers: &[DmaBuffer],
    same: impl Fn(&DmaError) -> bool,
) -> Result<()> {
    let before = space.regions();
    let Err(foreseen) = space.preflight(planned) else { bail!("{planned:?} can be mapped") };
    ensure!(same(&foreseen), "{foreseen:?}");
    ensure!(space.regions() == before, "a preflight mapped something");
    let mut done = Vec::new();
    let mut refused = None;
    for (one, buffer) in planned.iter().zip(buffers) {
        match space.map_buffer(one.iova, buffer, RW) {
            Ok(iova) => done.push((iova, one.length)),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    space.unmap_batch(&done)?;
    let refused = refused.context("the kernel mapped what the preflight refused")?;
    ensure!(same(&refused), "foreseen as {foreseen:?}, refused as {refused:?}");
    ctx.say(format!("foreseen: {foreseen}\nrefused:  {refused}"));
    Ok(())
}

/// What the preflight allows is mapped.
fn is_right(space: &AddressSpace, planned: &[Planned], buffers: &[DmaBuffer]) -> Result<Preflight> {
    let found = space.preflight(planned).with_context(|| format!("{planned:?}"))?;
    let mut done = Vec::new();
    for (one, buffer) in planned.iter().zip(buffers) {
        done.push((space.map_buffer(one.iova, buffer, RW)?, one.length));
    }
    space.unmap_batch(&done)?;
    Ok(found)
}

fn preflight(ctx: &Ctx, bench: Bench) -> Result<Outcome> {
    const MIB: u64 = 1 << 20;
    let (edu, space) = (bench.edu()?, &bench.space);
    let buffers: Vec<_> =
        (0..=ENTRIES).map(|_| DmaBuffer::new(1 << 20)).collect::<Result<_, _>>()?;

    let four = guest(FIXED, &[MIB; 4]);
    let found = is_right(space, &four, &buffers)?;
    ctx.say(format!("{found:?}"));
    ensure!((found.bytes, found.mappings) == (4 * MIB, 4), "{found:?}");
    ensure!(found.permitted == space.ranges()? && found.alignment == PAGE, "{found:?}");
    let msi = guest(0xfee0_0000 - MIB, &[MIB; 2]);
    both_refuse(ctx, space, &msi, &buffers, |it| matches!(it, DmaError::NotPermitted { .. }))?;
    if found.mappings_left.is_some() {
        ensure!(found.mappings_left == Some(ENTRIES), "{found:?}");
        let five = guest(FIXED, &[MIB; 5]);
        both_refuse(ctx, space, &five, &buffers, |it| matches!(it, DmaError::EntryLimit { .. }))?;
    }

    // The scenario is a process of its own with one thread, so this ends with it.
    let mut sets = capabilities(None)?;
    sets.effective.remove(CapabilitySet::IPC_LOCK);
    set_capabilities(None, sets)?;
    let maximum = getrlimit(Resource::Memlock).maximum;
    setrlimit(Resource::Memlock, Rlimit { current: Some(3 * MIB), maximum })?;
    let limit = |it: &DmaError| matches!(it, DmaError::Memlock { limit_kib: 3072, .. });
    both_refuse(ctx, space, &four, &buffers, limit)?;
    let found = is_right(space, &guest(FIXED, &[MIB; 2]), &buffers)?;
    ensure!(found.memlock.limit_kib == Some(3072), "{found:?}");
    bench.end(edu)
}
