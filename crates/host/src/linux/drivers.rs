//! What drivers do with the kernel's DMA API.
//!
//! The kernel doesn't show `driver_managed_dma`, so the list is kept here, and a driver that is
//! on none of the lists is counted as one that claims the default domain.

use crate::DmaKind;

/// Drivers with `driver_managed_dma` on the PCI bus, with `-` written `_`.
const MANAGED: &[&str] = &[
    "vfio_pci",
    "mlx5_vfio_pci",
    "hisi_acc_vfio_pci",
    "pds_vfio_pci",
    "virtio_vfio_pci",
    "nvgrace_gpu_vfio_pci",
    "qat_vfio_pci",
    "xe_vfio_pci",
    "ism_vfio_pci",
    "pci_stub",
    "pcieport",
];

/// Host drivers that are known to claim the default domain, with `-` written `_`.
const KERNEL: &[&str] = &[
    "8139cp",
    "8139too",
    "ahci",
    "alibaba_eni_vdpa",
    "amdgpu",
    "ast",
    "atlantic",
    "ata_piix",
    "bnx2",
    "bnx2x",
    "bnxt_en",
    "bochs_drm",
    "cxgb4",
    "e1000",
    "e1000e",
    "ehci_pci",
    "ena",
    "hpsa",
    "i2c_i801",
    "i40e",
    "i801_smbus",
    "i915",
    "iavf",
    "ice",
    "idxd",
    "ifcvf",
    "igb",
    "igbvf",
    "igc",
    "ioatdma",
    "ixgbe",
    "ixgbevf",
    "lpc_ich",
    "megaraid_sas",
    "mgag200",
    "mlx4_core",
    "mlx5_core",
    "mpi3mr",
    "mpt3sas",
    "nouveau",
    "nvidia",
    "nvme",
    "octep_vdpa",
    "ohci_pci",
    "pci_pf_stub",
    "pds_core",
    "qla2xxx",
    "qlcnic",
    "r8169",
    "radeon",
    "sfc",
    "shpchp",
    "smartpqi",
    "snd_hda_intel",
    "snet_vdpa_driver",
    "tg3",
    "uhci_hcd",
    "virtio_pci",
    "vp_vdpa",
    "xe",
    "xen_pciback",
    "xhci_hcd",
];

/// The name with which lists compare: drivers and their modules differ in `-` and `_` only.
pub(super) fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// What a bound driver does with kernel DMA.
pub(crate) fn dma_kind(driver: Option<&str>) -> DmaKind {
    let Some(driver) = driver else { return DmaKind::None };
    let name = plain(driver);
    if MANAGED.contains(&name.as_str()) {
        DmaKind::Managed
    } else if KERNEL.contains(&name.as_str()) {
        DmaKind::Kernel
    } else {
        DmaKind::Assumed
    }
}

/// Whether a driver is vfio-pci or one of its variants.
pub(crate) fn is_vfio(driver: &str) -> bool {
    let name = plain(driver);
    name.ends_with("vfio_pci") && MANAGED.contains(&name.as_str())
}

/// Whether a name can be a driver's: it becomes part of a path and an argument of modprobe.
pub(crate) fn is_driver_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+' | b'.');
    (1..=64).contains(&name.len()) && !name.starts_with(['-', '.']) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_the_kernel() {
        assert_eq!(dma_kind(None), DmaKind::None);
        for managed in ["vfio-pci", "mlx5_vfio_pci", "pci-stub", "pcieport", "xe-vfio-pci"] {
            assert_eq!(dma_kind(Some(managed)), DmaKind::Managed, "{managed}");
        }
        for kernel in ["nvme", "shpchp", "pci-pf-stub", "e1000e", "snd_hda_intel"] {
            assert_eq!(dma_kind(Some(kernel)), DmaKind::Kernel, "{kernel}");
        }
        assert_eq!(dma_kind(Some("acme_accel")), DmaKind::Assumed);
        assert_eq!(dma_kind(Some("acme_vfio_pci")), DmaKind::Assumed);
    }

    #[test]
    fn pcieport_is_managed_but_no_vfio_driver() {
        assert!(is_vfio("vfio-pci") && is_vfio("mlx5_vfio_pci"));
        assert!(!is_vfio("pcieport") && !is_vfio("pci-stub") && !is_vfio("nvme"));
    }

    #[test]
    fn names_that_leave_the_directory_are_no_drivers() {
        for bad in ["", ".", "..", "../x", "a/b", "-r", "a b", "a\n", "ä", &"x".repeat(65)] {
            assert!(!is_driver_name(bad), "{bad:?}");
        }
        assert!(is_driver_name("vfio-pci") && is_driver_name("8139cp"));
    }
}
