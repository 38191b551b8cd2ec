//! Eight threads on one address space: no mapping is lost, none is there twice.
#![expect(
    unsafe_code,
    reason = "maps memory by address, on a simulated IOMMU that never touches it"
)]

use std::ptr::NonNull;
use std::sync::Barrier;

use berth_dma::{
    AddressSpace, BatchBuffer, DmaErrorKind, DmaPerms, IovaChoice, SimFlavour, SimIoas, SimLimits,
    Source,
};

const PAGE: u64 = 4096;
const THREADS: u64 = 8;
const ROUNDS: u64 = 3000;
const RW: DmaPerms = DmaPerms::READ_WRITE;

fn memory(address: u64) -> NonNull<u8> {
    let address = usize::try_from(address).expect("64 bits");
    NonNull::new(std::ptr::without_provenance_mut(address)).expect("not null")
}

/// Each thread maps memory of its own and finds exactly that, while the others do the same.
fn work(space: &AddressSpace, sim: &SimIoas, thread: u64) -> u64 {
    let base = (thread + 1) << 40;
    let mut live: Vec<(u64, u64, u64)> = Vec::new();
    let (mut random, mut refused) = (thread + 1, 0);
    for round in 0..ROUNDS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let pages = 1 + (random >> 60);
        let address = base + round * (32 * PAGE);
        let place = match random >> 40 & 3 {
            0 => IovaChoice::Fixed((1 << 30) + (random >> 50 & 63) * PAGE),
            _ => IovaChoice::Any,
        };
        // SAFETY: the simulated IOMMU never touches memory.
        match unsafe { space.map(place, memory(address), pages * PAGE, RW) } {
            Ok(iova) => live.push((iova, pages * PAGE, address)),
            Err(error) => {
                assert_eq!(error.kind(), DmaErrorKind::Overlap, "{error}");
                refused += 1;
            }
        }
        for (iova, length, address) in live.iter().rev().take(4) {
            let region = space.find(iova + length - 1).expect("this thread mapped it");
            assert_eq!((region.iova, region.length), (*iova, *length));
            assert_eq!(region.source, Source::Memory { address: *address });
            assert_eq!(space.translate(memory(address + 5), length - 5), Some(iova + 5));
            assert_eq!(sim.lookup(*iova).map(|area| area.source), Some(region.source));
        }
        if live.len() > 24 {
            let leave = live.split_off(8);
            let ranges: Vec<_> = leave.iter().map(|(iova, length, _)| (*iova, *length)).collect();
            if round % 2 == 0 {
                space.unmap_batch(&ranges).expect("this thread mapped them");
            } else {
                ranges.iter().for_each(|r| space.unmap(r.0, r.1).expect("this thread mapped it"));
            }
        }
        if round % 50 == 0 {
            batch(space, base + (1 << 39));
        }
    }
    live.iter().for_each(|r| space.unmap(r.0, r.1).expect("this thread mapped it"));
    refused
}

fn batch(space: &AddressSpace, address: u64) {
    let buffer = |n: u64| BatchBuffer {
        iova: IovaChoice::Any,
        memory: memory(address + (n + n / 4) * PAGE),
        length: PAGE,
    };
    let buffers: Vec<_> = (0..16).map(buffer).collect();
    // SAFETY: the simulated IOMMU never touches memory.
    let batch = unsafe { space.map_batch(&buffers, RW) }.expect("room");
    assert_eq!(batch.areas().len(), 4);
    space.unmap_batch(batch.areas()).expect("this thread mapped it");
}

#[test]
fn eight_threads_lose_nothing_and_double_nothing() {
    for flavour in [SimFlavour::Iommufd, SimFlavour::Type1] {
        let sim = SimIoas::new(flavour, SimLimits::default());
        let space = AddressSpace::simulated(sim.clone());
        let start = Barrier::new(usize::try_from(THREADS).expect("few"));
        let refused: u64 = std::thread::scope(|scope| {
            let threads = (0..THREADS).map(|thread| {
                let (space, sim, start) = (&space, &sim, &start);
                scope.spawn(move || {
                    start.wait();
                    work(space, sim, thread)
                })
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|t| t.join().expect("nothing was lost")).sum()
        });
        assert_eq!((space.regions(), sim.areas()), (vec![], vec![]), "{refused} refused");
        assert_eq!(space.stats().mappings, 0);
    }
}

/// All want the same page, as it was or with the one behind it. Who has it finds exactly its own.
#[test]
fn a_place_that_all_want_is_one_thread_s() {
    let sim = SimIoas::new(SimFlavour::Iommufd, SimLimits::default());
    let space = AddressSpace::simulated(sim.clone());
    let (start, had) = (Barrier::new(4), std::sync::atomic::AtomicU64::new(0));
    let want = &|thread: u64| {
        start.wait();
        for round in 0..20_000 {
            let length = if thread == 3 && round % 16 == 0 { 2 * PAGE } else { PAGE };
            let address = ((thread + 1) << 40) + round * 2 * PAGE;
            // SAFETY: the simulated IOMMU never touches memory.
            match unsafe { space.map(IovaChoice::Fixed(PAGE), memory(address), length, RW) } {
                Ok(iova) => {
                    let source = Source::Memory { address };
                    let found = space.find(iova).expect("this thread mapped it");
                    assert_eq!((found.length, found.source), (length, source));
                    assert_eq!(sim.lookup(iova).map(|area| area.source), Some(source));
                    if round > 10_000 {
                        assert_eq!(space.translate(memory(address), length), Some(iova));
                    }
                    space.unmap(iova, length).expect("this thread mapped it");
                    had.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                Err(error) => assert_eq!(error.kind(), DmaErrorKind::Overlap, "{error}"),
            }
            if round % 256 == thread {
                space.ranges().expect("a simulated one has them");
            }
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|thread| drop(scope.spawn(move || want(thread)))));
    assert_eq!((space.regions(), sim.areas()), (vec![], vec![]));
    assert_eq!((space.stats().mappings, space.stats().bytes), (0, 0));
    assert!(had.into_inner() > 0);
}

/// Everybody asks for the first time at once, while the mappings are already there.
#[test]
fn what_is_mapped_is_found_by_whoever_asks_first() {
    for _ in 0..500 {
        let space =
            AddressSpace::simulated(SimIoas::new(SimFlavour::Iommufd, SimLimits::default()));
        let address = |n: u64| memory((1 << 40) + n * 2 * PAGE);
        for n in 0..64 {
            // SAFETY: the simulated IOMMU never touches memory.
            unsafe { space.map(IovaChoice::Any, address(n), PAGE, RW) }.expect("room");
        }
        let start = Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    start.wait();
                    (0..64).for_each(|n| {
                        assert!(space.translate(address(63 - n), PAGE).is_some(), "{n} is mapped");
                    });
                });
            }
        });
    }
}

/// Memory that is mapped twice goes from one mapping to the other; there is always one.
#[test]
fn memory_that_is_mapped_twice_is_found_while_either_is_there() {
    let space = AddressSpace::simulated(SimIoas::new(SimFlavour::Iommufd, SimLimits::default()));
    let shared = || memory(1 << 40);
    // SAFETY: the simulated IOMMU never touches memory.
    let map = || unsafe { space.map(IovaChoice::Any, shared(), PAGE, RW) }.expect("room");
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut first = map();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(
                        space.translate(shared(), PAGE).is_some(),
                        "it is mapped all the while"
                    );
                }
            });
        }
        for _ in 0..100_000 {
            let second = map();
            space.unmap(first, PAGE).expect("it is mapped");
            first = second;
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
