//! What a call costs: heap allocations and calls into the kernel, counted.
#![expect(unsafe_code, reason = "counts allocations; maps memory by address on a simulated IOMMU")]

mod counting;

use std::ptr::NonNull;

use berth_dma::{AddressSpace, DmaBuffer, DmaPerms, IovaChoice, SimFlavour, SimIoas, SimLimits};

use self::counting::allocations;

const PAGE: u64 = 4096;
const RW: DmaPerms = DmaPerms::READ_WRITE;

/// How many allocations and calls into the simulated kernel there were.
fn cost(sim: &SimIoas, act: impl FnOnce()) -> (u64, u64) {
    let (before, calls) = (allocations(), sim.calls());
    act();
    (allocations() - before, sim.calls() - calls)
}

fn memory(page: u64) -> NonNull<u8> {
    let address = usize::try_from(0x7f00_0000_0000 + page * PAGE).expect("64 bits");
    NonNull::new(std::ptr::without_provenance_mut(address)).expect("not null")
}

#[test]
fn a_call_is_one_ioctl_and_no_allocation() {
    for flavour in [SimFlavour::Iommufd, SimFlavour::Type1] {
        let sim = SimIoas::new(flavour, SimLimits::default());
        let space = AddressSpace::simulated(sim.clone());
        let buffer = DmaBuffer::new(4096).expect("memory");
        // Few enough that the simulation's own tree has one node and allocates nothing either.
        let round = |number: u64| {
            let mut at = [0; 8];
            for (page, at) in (0..).zip(&mut at) {
                let place = match (page + number) % 3 {
                    0 => IovaChoice::Any,
                    // One behind the other: nothing in between is given to the others.
                    1 => IovaChoice::Fixed((1000 + page / 3) * PAGE),
                    _ => {
                        *at = space.map_buffer(IovaChoice::Any, &buffer, RW).expect("room");
                        continue;
                    }
                };
                // SAFETY: the simulated IOMMU never touches memory.
                *at = unsafe { space.map(place, memory(page), PAGE, RW) }.expect("room");
            }
            for (page, at) in (0..).zip(at) {
                let found = space.find(at + 7).expect("mapped");
                assert_eq!(found.iova, at);
                space.translate(memory(page), PAGE);
            }
            at.iter().for_each(|at| space.unmap(*at, PAGE).expect("mapped"));
        };
        (0..30).for_each(round);
        for number in 0..100 {
            assert_eq!(cost(&sim, || round(number)), (0, 16), "{flavour:?}, round {number}");
        }
    }
}

#[test]
fn a_batch_is_one_ioctl_for_each_run_of_neighbours() {
    let limits = SimLimits { entries: 16, ..SimLimits::default() };
    let sim = SimIoas::new(SimFlavour::Type1, limits);
    let space = AddressSpace::simulated(sim.clone());
    let buffers: Vec<_> = (0..4096)
        .map(|page| berth_dma::BatchBuffer {
            iova: IovaChoice::Any,
            // A gap behind every 256 pages.
            memory: memory(page + page / 256),
            length: PAGE,
        })
        .collect();
    let mut batch = None;
    let (_, calls) = cost(&sim, || {
        // SAFETY: the simulated IOMMU never touches memory.
        batch = Some(unsafe { space.map_batch(&buffers, RW) }.expect("room"));
    });
    let batch = batch.expect("it was mapped");
    assert_eq!((calls, batch.areas().len()), (16, 16));
    let (_, calls) = cost(&sim, || space.unmap_batch(batch.areas()).expect("mapped"));
    assert_eq!(calls, 1, "they lie one behind the other");
    assert_eq!(sim.areas(), []);
}
