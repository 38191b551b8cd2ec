//! Host drivers with a domain of their own, as far as the kernel lets it be known.
//!
//! sysfs says nothing of the domain that a device is attached to. What it shows is a vDPA device
//! below a PCI function, and that `vhost_vdpa` is on it: that driver attaches the function to a
//! domain of its own for as long as somebody has its node open.

use std::os::fd::AsFd;

use super::tree::{self, Root};
use crate::{DeviceFacts, DmaKind};

/// Drivers of PCI functions that are parents of vDPA devices and leave the IOMMU to `vhost_vdpa`.
///
/// # Kernel
/// `vhost_vdpa_alloc_domain`: a parent with `set_map` or `dma_map` maps by itself, and nothing is
/// attached; `mlx5_vdpa` is such.
const PARENTS: &[&str] =
    &["vp-vdpa", "ifcvf", "octep_vdpa", "snet-vdpa-driver", "alibaba-eni-vdpa", "pds_core"];

/// The auxiliary device between such a function and its vDPA devices, by the front of its name.
const BETWEEN: &str = "pds_core.vDPA.";

/// The node that makes the device's driver attach a domain of its own while it is open.
pub(super) fn node(root: &Root, device: &DeviceFacts) -> Option<String> {
    let driver = device.driver.as_deref()?;
    let host = matches!(device.dma, DmaKind::Kernel | DmaKind::Assumed);
    if !host || !PARENTS.contains(&driver) {
        return None;
    }
    let dir = tree::open_dir(&root.device(device.address)).ok()?;
    let mut node = None;
    tree::each_name_at(&dir, ".", |child| {
        if child.starts_with(BETWEEN) {
            tree::each_name_at(&dir, child, |name| {
                node = node.take().or_else(|| of_vdpa(&dir, &format!("{child}/{name}")));
            });
        } else {
            node = node.take().or_else(|| of_vdpa(&dir, child));
        }
    });
    node
}

/// The node of a child, if that is a vDPA device on `vhost_vdpa`. Its name is any that it was given.
fn of_vdpa(dir: impl AsFd, child: &str) -> Option<String> {
    let mut link = vec![0; tree::PAGE_BYTES];
    if tree::link_name_at(&dir, format!("{child}/driver"), &mut link) != Some("vhost_vdpa") {
        return None;
    }
    let mut node = None;
    tree::each_name_at(&dir, child, |name| {
        if name.starts_with("vhost-vdpa-") {
            node = Some(format!("/dev/{name}"));
        }
    });
    node
}
