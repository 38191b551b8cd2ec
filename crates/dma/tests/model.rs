//! 200,000 random operations on a simulated IOMMU, compared with a list of mappings: what the address
//! space knows, what the IOMMU has and what the list has is always the same.
#![expect(
    unsafe_code,
    reason = "maps memory by address, on a simulated IOMMU that never touches it"
)]

use std::ptr::NonNull;

use berth_dma::{
    AddressSpace, BatchBuffer, DmaError, DmaErrorKind, DmaPerms, Errno, IovaChoice, IovaRange,
    Region, SimFlavour, SimIoas, SimLimits, Source,
};
use proptest::prelude::*;

const PAGE: u64 = 4096;
/// Few pages, so that ranges meet and space runs out.
const PAGES: u64 = 160;
const MEMORY: u64 = 0x7f00_0000_0000;

#[derive(Debug, Clone)]
enum Op {
    Map { place: Option<u64>, address: u64, pages: u64, perms: DmaPerms },
    Batch(Vec<(Option<u64>, u64, u64)>),
    Unmap(usize),
    UnmapExactly { page: u64, pages: u64 },
    UnmapBatch(Vec<usize>),
    UnmapAll,
    Copy { which: usize, from: u64, pages: u64, place: Option<u64> },
    Fail(Errno),
    Find(u64),
    Translate { address: u64, length: u64 },
    Permit(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let place = || prop::option::of(0..PAGES);
    let perms = prop::sample::select(vec![DmaPerms::READ, DmaPerms::WRITE, DmaPerms::READ_WRITE]);
    let buffer = (prop::option::weighted(0.3, 0..PAGES), 0..40_u64, 1..4_u64);
    let errno = prop::sample::select(vec![Errno::NOMEM, Errno::FAULT, Errno::BUSY, Errno::NOSPC]);
    prop_oneof![
        20 => (place(), 0..40_u64, 1..10_u64, perms)
            .prop_map(|(place, address, pages, perms)| Op::Map { place, address, pages, perms }),
        4 => prop::collection::vec(buffer, 1..8).prop_map(Op::Batch),
        16 => any::<usize>().prop_map(Op::Unmap),
        2 => (0..PAGES, 1..10_u64).prop_map(|(page, pages)| Op::UnmapExactly { page, pages }),
        4 => prop::collection::vec(any::<usize>(), 1..12).prop_map(Op::UnmapBatch),
        1 => Just(Op::UnmapAll),
        3 => (any::<usize>(), 0..6_u64, 1..6_u64, place())
            .prop_map(|(which, from, pages, place)| Op::Copy { which, from, pages, place }),
        1 => errno.prop_map(Op::Fail),
        8 => (0..PAGES * PAGE).prop_map(Op::Find),
        8 => (0..45 * PAGE, 0..3 * PAGE).prop_map(|(at, length)| Op::Translate { address: at, length }),
        1 => (PAGES - 20..PAGES).prop_map(Op::Permit),
    ]
}

struct World {
    space: AddressSpace,
    sim: SimIoas,
    model: Vec<Region>,
    /// The next operation that enters the kernel is answered so.
    fault: Option<Errno>,
}

fn choice(place: Option<u64>) -> IovaChoice {
    place.map_or(IovaChoice::Any, |page| IovaChoice::Fixed(page * PAGE))
}

fn memory(page: u64) -> NonNull<u8> {
    let address = usize::try_from(MEMORY + page * PAGE).expect("64 bits");
    NonNull::new(std::ptr::without_provenance_mut(address)).expect("not null")
}

impl World {
    fn new(flavour: SimFlavour) -> Self {
        let mut sim = SimIoas::new(flavour, SimLimits::default());
        permit(&mut sim, PAGES);
        Self { space: AddressSpace::simulated(sim.clone()), sim, model: Vec::new(), fault: None }
    }

    fn meets(&self, range: IovaRange) -> bool {
        self.model.iter().any(|r| r.range().start <= range.last && range.start <= r.range().last)
    }

    fn free(&self, iova: u64, length: u64) -> bool {
        let range = IovaRange { start: iova, last: iova + length - 1 };
        self.sim.permitted().iter().any(|r| r.contains(iova, length)) && !self.meets(range)
    }

    fn room(&self, length: u64) -> bool {
        (1..PAGES).any(|page| self.free(page * PAGE, length))
    }

    /// Whether the answer to a map is right; the model has it then.
    fn mapped(
        &mut self,
        answer: Result<u64, DmaError>,
        place: IovaChoice,
        mut region: Region,
    ) -> Result<(), TestCaseError> {
        let possible = match place {
            IovaChoice::Fixed(iova) => self.free(iova, region.length),
            IovaChoice::Any => self.room(region.length),
        };
        // Overlaps that are known never get to the kernel.
        let fault = if possible { self.fault.take() } else { None };
        match answer {
            Ok(iova) => {
                prop_assert!(possible && fault.is_none(), "{:#x} for {:?}", iova, place);
                prop_assert!(self.free(iova, region.length) && iova % PAGE == 0);
                prop_assert!(
                    place == IovaChoice::Fixed(iova) || (place == IovaChoice::Any && iova > 0)
                );
                region.iova = iova;
                self.model.push(region);
            }
            Err(error) => {
                prop_assert!(!possible || fault.is_some(), "{} for {:?}", error, place);
                if let (true, Some(errno)) = (possible, fault) {
                    prop_assert_eq!(error.errno(), errno);
                }
            }
        }
        Ok(())
    }

    fn run(&mut self, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Map { place, address, pages, perms } => self.map(place, address, pages, perms),
            Op::Batch(buffers) => self.batch(&buffers),
            Op::Unmap(which) if !self.model.is_empty() => {
                let Region { iova, length, .. } = self.model[which % self.model.len()];
                let answer = self.space.unmap(iova, length);
                self.unmapped(answer, &[(iova, length)])
            }
            Op::UnmapExactly { page, pages } => {
                let range = (page * PAGE, pages * PAGE);
                let exact = self.model.iter().any(|r| (r.iova, r.length) == range);
                let answer = self.space.unmap(range.0, range.1);
                if exact {
                    return self.unmapped(answer, &[range]);
                }
                let cuts = self.meets(IovaRange { start: range.0, last: range.0 + range.1 - 1 });
                let right = match answer {
                    Err(DmaError::Bisects { .. }) => cuts,
                    Err(DmaError::NotMapped { .. }) => !cuts,
                    _ => false,
                };
                prop_assert!(right, "{:?}", answer);
                Ok(())
            }
            Op::UnmapBatch(which) => self.unmap_batch(&which),
            Op::UnmapAll => {
                let fault = self.fault.take();
                let bytes: u64 = self.model.iter().map(|region| region.length).sum();
                let answer = self.space.unmap_all();
                if fault.is_none() {
                    self.model.clear();
                    prop_assert_eq!(answer, Ok(bytes));
                }
                Ok(())
            }
            Op::Copy { which, from, pages, place } if !self.model.is_empty() => {
                self.copy(which, from, pages, place)
            }
            Op::Fail(errno) if self.fault.is_none() => {
                // What is known to be permitted is true again, so that nothing else is tried first.
                prop_assert!(self.space.ranges().is_ok());
                self.sim.fail_next(errno);
                self.fault = Some(errno);
                Ok(())
            }
            Op::Find(iova) => {
                let found = self.model.iter().find(|r| r.range().contains(iova, 1));
                prop_assert_eq!(self.space.find(iova), found.copied());
                Ok(())
            }
            Op::Translate { address, length } => self.translate(MEMORY + address, length),
            Op::Permit(pages) => {
                let inside = self.model.iter().all(|r| r.range().last < pages * PAGE);
                if inside && self.fault.is_none() {
                    permit(&mut self.sim, pages);
                }
                Ok(())
            }
            Op::Unmap(_) | Op::Copy { .. } | Op::Fail(_) => Ok(()),
        }
    }

    fn map(
        &mut self,
        place: Option<u64>,
        address: u64,
        pages: u64,
        perms: DmaPerms,
    ) -> Result<(), TestCaseError> {
        let (place, length) = (choice(place), pages * PAGE);
        // SAFETY: the simulated IOMMU never touches memory.
        let answer = unsafe { self.space.map(place, memory(address), length, perms) };
        let source = Source::Memory { address: MEMORY + address * PAGE };
        self.mapped(answer, place, Region { iova: 0, length, perms, source })
    }

    fn unmapped(
        &mut self,
        answer: Result<(), DmaError>,
        ranges: &[(u64, u64)],
    ) -> Result<(), TestCaseError> {
        let is = |r: &Region| ranges.contains(&(r.iova, r.length));
        match (self.fault.take(), ranges.len()) {
            (None, _) => {
                prop_assert_eq!(answer, Ok(()));
                self.model.retain(|region| !is(region));
            }
            (Some(errno), 1) => prop_assert_eq!(answer.expect_err("scripted").errno(), errno),
            // A run that failed as a whole is tried one by one, so that all may be gone: what is
            // left is what the address space says.
            (Some(_), _) => {
                let left = self.space.regions();
                self.model.retain(|region| !is(region) || left.contains(region));
            }
        }
        Ok(())
    }

    fn unmap_batch(&mut self, which: &[usize]) -> Result<(), TestCaseError> {
        if self.model.is_empty() {
            return Ok(());
        }
        let mut which: Vec<usize> = which.iter().map(|at| at % self.model.len()).collect();
        which.sort_unstable();
        which.dedup();
        let mut ranges: Vec<(u64, u64)> =
            which.iter().map(|at| (self.model[*at].iova, self.model[*at].length)).collect();
        let answer = self.space.unmap_batch(&ranges);
        self.unmapped(answer, &ranges)?;
        // One that isn't there, or twice the same: nothing happens.
        if let Some(last) = self.model.last() {
            ranges = vec![(last.iova, last.length), (last.iova, last.length)];
            prop_assert!(self.space.unmap_batch(&ranges).is_err());
            ranges[1] = ((1 << 30), PAGE);
            prop_assert!(self.space.unmap_batch(&ranges).is_err());
        }
        Ok(())
    }

    fn batch(&mut self, buffers: &[(Option<u64>, u64, u64)]) -> Result<(), TestCaseError> {
        let perms = DmaPerms::READ_WRITE;
        let list: Vec<BatchBuffer> = buffers
            .iter()
            .map(|(place, address, pages)| BatchBuffer {
                iova: choice(*place),
                memory: memory(*address),
                length: pages * PAGE,
            })
            .collect();
        // SAFETY: the simulated IOMMU never touches memory.
        let answer = unsafe { self.space.map_batch(&list, perms) };
        let Ok(batch) = answer else {
            // Everything is as before; whether the fault was used up, a probe tells.
            let _ = self.sim.unmap(1 << 40, PAGE);
            self.fault = None;
            return Ok(());
        };
        for ((place, address, pages), iova) in buffers.iter().zip(batch.iovas()) {
            prop_assert!(place.is_none_or(|page| page * PAGE == *iova));
            for page in 0..*pages {
                let at = self.sim.lookup(iova + page * PAGE).expect("mapped");
                let Source::Memory { address: start } = at.source else { panic!("memory") };
                let shown = start + (iova + page * PAGE - at.iova);
                prop_assert_eq!(shown, MEMORY + (address + page) * PAGE);
            }
        }
        let bytes: u64 = buffers.iter().map(|(_, _, pages)| pages * PAGE).sum();
        prop_assert_eq!(batch.areas().iter().map(|area| area.1).sum::<u64>(), bytes);
        prop_assert!(batch.areas().len() <= buffers.len());
        for (iova, length) in batch.areas() {
            prop_assert!(self.free(*iova, *length), "{:#x}+{:#x} was taken", iova, length);
            let region = self.space.find(*iova).expect("mapped");
            prop_assert_eq!(region.length, *length);
            self.model.push(region);
        }
        Ok(())
    }

    fn copy(
        &mut self,
        which: usize,
        from: u64,
        pages: u64,
        place: Option<u64>,
    ) -> Result<(), TestCaseError> {
        let region = self.model[which % self.model.len()];
        let (iova, length, place) = (region.iova + from * PAGE, pages * PAGE, choice(place));
        let answer = self.space.copy(iova, length, &self.space, place, region.perms);
        if self.sim.flavour() == SimFlavour::Type1 {
            prop_assert_eq!(answer.expect_err("it can't").kind(), DmaErrorKind::Unsupported);
            return Ok(());
        }
        let Some(region) = self.model.iter().find(|r| r.range().contains(iova, length)) else {
            prop_assert_eq!(answer.expect_err("not within one").kind(), DmaErrorKind::NotMapped);
            return Ok(());
        };
        let Source::Memory { address } = region.source else { panic!("memory") };
        let source = Source::Memory { address: address + (iova - region.iova) };
        let perms = region.perms;
        // A copy from another region of other access may have been refused for that.
        if answer.as_ref().is_err_and(|error| error.errno() == Errno::PERM) {
            return Ok(());
        }
        self.mapped(answer, place, Region { iova: 0, length, perms, source })?;
        if let Some(copy) = self.model.last_mut() {
            // The access is what was asked for.
            *copy = self.space.find(copy.iova).unwrap_or(*copy);
        }
        Ok(())
    }

    fn translate(&self, address: u64, length: u64) -> Result<(), TestCaseError> {
        let at = usize::try_from(address).expect("64 bits");
        let pointer = NonNull::new(std::ptr::without_provenance_mut(at)).expect("not null");
        let shows = |region: &&Region| {
            let Source::Memory { address: start } = region.source else { return false };
            length > 0 && start <= address && address + length <= start + region.length
        };
        match self.space.translate(pointer, length) {
            None => prop_assert_eq!(self.model.iter().find(shows), None),
            Some(iova) => {
                let region = self.model.iter().find(|r| r.range().contains(iova, length));
                let region = region.filter(shows).expect("one that shows it");
                let Source::Memory { address: start } = region.source else { panic!("memory") };
                prop_assert_eq!(iova - region.iova, address - start);
            }
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        self.model.sort_by_key(|region| region.iova);
        prop_assert_eq!(&self.space.regions(), &self.model);
        let areas: Vec<Region> = self
            .sim
            .areas()
            .iter()
            .map(|a| Region { iova: a.iova, length: a.length, perms: a.perms, source: a.source })
            .collect();
        prop_assert_eq!(&areas, &self.model);
        let stats = self.space.stats();
        prop_assert_eq!(stats.mappings, areas.len());
        prop_assert_eq!(stats.bytes, areas.iter().map(|area| area.length).sum::<u64>());
        Ok(())
    }
}

fn permit(sim: &mut SimIoas, pages: u64) {
    let range = |first, last| IovaRange { start: first * PAGE, last: last * PAGE - 1 };
    // A window is reserved, as that for interrupts is.
    let _ = sim.set_permitted(vec![range(0, 60), range(70, pages)]);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        max_shrink_iters: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_address_space_is_what_the_kernel_has(
        type1 in any::<bool>(),
        ops in prop::collection::vec(op(), 2000),
    ) {
        let mut world = World::new(if type1 { SimFlavour::Type1 } else { SimFlavour::Iommufd });
        for op in ops {
            world.run(op.clone())?;
            world.check().map_err(|e| TestCaseError::fail(format!("after {op:?}: {e}")))?;
        }
    }
}
