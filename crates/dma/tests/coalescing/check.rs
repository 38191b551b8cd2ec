//! A batch written as bytes, four for each buffer, so that any bytes are one; and what must be the same.

use std::ptr::NonNull;

use berth_dma::{
    AddressSpace, BatchBuffer, DmaPerms, IovaChoice, SimFlavour, SimIoas, SimLimits, Source,
};

const PAGE: u64 = 4096;
const MEMORY: u64 = 0x7f00_0000_0000;
/// Where fixed buffers go.
const FIXED: u64 = 1 << 30;
const RW: DmaPerms = DmaPerms::READ_WRITE;

/// Place (0: open, else a page from `FIXED` on), page of memory, pages; the last byte's bits scatter.
pub(crate) fn buffers(bytes: &[u8]) -> Vec<BatchBuffer> {
    let buffer = |four: &[u8]| {
        let pages = u64::from(four[2] % 5) + if four[3] & 0x80 != 0 { 510 } else { 1 };
        let iova = match four[0] {
            0..0x60 => IovaChoice::Any,
            place => IovaChoice::Fixed(FIXED + u64::from(place) * PAGE),
        };
        let scatter = u64::from(four[3] & 3) << 24;
        let address =
            usize::try_from(MEMORY + scatter + u64::from(four[1]) * PAGE).expect("64 bits");
        let memory = NonNull::new(std::ptr::without_provenance_mut(address)).expect("not null");
        BatchBuffer { iova, memory, length: pages * PAGE }
    };
    bytes.chunks_exact(4).take(64).map(buffer).collect()
}

fn shown(sim: &SimIoas, iova: u64) -> Option<(u64, DmaPerms)> {
    let area = sim.lookup(iova)?;
    let Source::Memory { address } = area.source else { panic!("memory was mapped") };
    Some((address + (iova - area.iova), area.perms))
}

fn check(bytes: &[u8], flavour: SimFlavour) {
    let buffers = buffers(bytes);
    let world = || {
        let sim = SimIoas::new(flavour, SimLimits::default());
        (AddressSpace::simulated(sim.clone()), sim)
    };
    let ((one, one_sim), (many, many_sim)) = (world(), world());
    // SAFETY: the simulated IOMMU never touches memory.
    let alone =
        |buffer: &BatchBuffer| unsafe { one.map(buffer.iova, buffer.memory, buffer.length, RW) };
    // Fixed ones first: a place that is left open may be any between them.
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|at| buffers[*at].iova == IovaChoice::Any);
    let alone: Result<Vec<(usize, u64)>, _> =
        order.into_iter().map(|at| alone(&buffers[at]).map(|iova| (at, iova))).collect();
    // SAFETY: as above.
    let batch = unsafe { many.map_batch(&buffers, RW) };
    let (alone, batch) = match (alone, batch) {
        (Ok(alone), Ok(batch)) => (alone, batch),
        (Err(alone), Err(batch)) => {
            assert_eq!(alone.kind(), batch.kind(), "{alone}; as a batch: {batch}");
            assert_eq!((many_sim.areas(), many.regions()), (vec![], vec![]), "half a batch");
            return;
        }
        (alone, batch) => panic!("one by one: {alone:?}; as a batch: {batch:?}"),
    };
    assert_eq!(batch.iovas().len(), buffers.len());
    for (at, alone) in alone {
        let (buffer, together) = (&buffers[at], batch.iovas()[at]);
        assert!(buffer.iova == IovaChoice::Any || alone == together);
        for page in 0..buffer.length / PAGE {
            let at = page * PAGE + 7;
            let (alone, together) = (shown(&one_sim, alone + at), shown(&many_sim, together + at));
            assert!(alone.is_some() && alone == together, "page {page}: {alone:?} {together:?}");
        }
    }
    let bytes = |sim: &SimIoas| sim.areas().iter().map(|area| area.length).sum::<u64>();
    assert_eq!(bytes(&one_sim), bytes(&many_sim));
    assert!(many_sim.areas().len() <= one_sim.areas().len());
    many.unmap_batch(batch.areas()).expect("mapped");
    assert_eq!((many_sim.areas(), many.regions()), (vec![], vec![]));
}

/// On both back ends.
pub(crate) fn check_both(bytes: &[u8]) {
    check(bytes, SimFlavour::Iommufd);
    check(bytes, SimFlavour::Type1);
}
