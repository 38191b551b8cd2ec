//! The features for rust-vmm: a guest's memory, and `VfioOps`.
#![cfg(all(feature = "vm-memory", feature = "vfio-ioctls"))]
#![expect(
    unsafe_code,
    reason = "maps memory by address, on a simulated IOMMU that never touches it"
)]

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use berth_dma::{AddressSpace, SimFlavour, SimIoas, SimLimits, Source, VfioSpace};
use vfio_ioctls::VfioOps;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

#[test]
fn a_guest_is_seen_where_it_sees_itself() {
    let ranges = [(GuestAddress(0), 64 << 10), (GuestAddress(1 << 32), 32 << 10)];
    let guest = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("memory");
    let sim = SimIoas::new(SimFlavour::Type1, SimLimits::default());
    let space = AddressSpace::simulated(sim.clone());
    // SAFETY: the simulated IOMMU never touches memory.
    let batch = unsafe { space.map_guest(&guest) }.expect("room");
    assert_eq!(batch.iovas(), [0, 1 << 32]);
    for address in [0, 5000, (1 << 32) + 77] {
        let host = guest.get_host_address(GuestAddress(address)).expect("memory");
        let area = sim.lookup(address).expect("mapped");
        let at = host.addr() as u64 - (address - area.iova);
        assert_eq!(area.source, Source::Memory { address: at });
        let host = NonNull::new(host).expect("memory");
        assert_eq!(space.translate(host, 1), Some(address));
    }
    space.unmap_batch(batch.areas()).expect("mapped");
    assert_eq!(sim.areas(), []);
}

struct Devices;

impl VfioOps for Devices {
    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[test]
fn a_vmm_maps_without_knowing() {
    let space = Arc::new(AddressSpace::simulated(SimIoas::default()));
    let ops: Arc<dyn VfioOps> = Arc::new(VfioSpace::new(Arc::clone(&space), Arc::new(Devices)));
    let memory = std::ptr::without_provenance_mut(0x7f00_0000_0000);
    // SAFETY: the simulated IOMMU never touches memory.
    unsafe { ops.vfio_dma_map(0x4000, 8192, memory) }.expect("free");
    // SAFETY: as above.
    let again = unsafe { ops.vfio_dma_map(0x5000, 4096, memory) }.expect_err("taken");
    assert!(again.to_string().contains("File exists"), "{again}");
    assert_eq!(space.regions().len(), 1);
    assert!(ops.vfio_dma_unmap(0x4000, 4096).is_err(), "half of it");
    ops.vfio_dma_unmap(0x4000, 8192).expect("mapped");
    assert_eq!(space.regions(), []);
    assert!(ops.as_any().is::<Devices>(), "devices are opened with the VMM's own");
}
