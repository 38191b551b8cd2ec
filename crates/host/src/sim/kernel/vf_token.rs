//! The secret of a physical function on a VFIO driver, without which its virtual ones don't open.
//!
//! # Source
//! `vfio_pci_validate_vf_token`, `vfio_pci_vf_init` and `vfio_pci_core_feature_token` in
//! `drivers/vfio/pci/vfio_pci_core.c`; `vfio_df_check_token` in `drivers/vfio/device_cdev.c`.

use berth_uapi::VfToken;
use rustix::io::Errno;

use super::Kernel;
use crate::PciAddress;

impl Kernel {
    /// A token that nobody knows, for a physical function that comes to a VFIO driver.
    pub(super) fn unknown_token(&mut self) -> VfToken {
        let mut token = [0xa7; 16];
        token[..8].copy_from_slice(&self.fresh().to_ne_bytes());
        VfToken(token)
    }

    /// What stands before an open through a group, and before a bind.
    pub(super) fn check_token(
        &mut self,
        address: PciAddress,
        shown: Option<VfToken>,
    ) -> Result<(), Errno> {
        let vfio = self.dev(address)?.vfio.as_ref().ok_or(Errno::NODEV)?;
        if self.dev(address)?.model.facts.physical_function.is_some() {
            return match (vfio.made_by, shown) {
                (None, None) => Ok(()),
                (None, Some(_)) => Err(Errno::INVAL),
                (Some(_), None) => Err(Errno::ACCESS),
                (Some(physical), Some(shown)) => self.compare_token(physical, shown),
            };
        }
        match (vfio.token, shown) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err(Errno::INVAL),
            (Some(_), None) if self.functions_are_open(address) => Err(Errno::ACCESS),
            (Some(_), None) => Ok(()),
            (Some(_), Some(shown)) if self.functions_are_open(address) => {
                self.compare_token(address, shown)
            }
            // While no virtual function is open, whoever opens the physical one sets it.
            (Some(_), Some(shown)) => self.set_token(address, shown),
        }
    }

    fn compare_token(&self, physical: PciAddress, shown: VfToken) -> Result<(), Errno> {
        let kept = self.dev(physical)?.vfio.as_ref().and_then(|vfio| vfio.token);
        if kept == Some(shown) { Ok(()) } else { Err(Errno::ACCESS) }
    }

    fn functions_are_open(&self, physical: PciAddress) -> bool {
        let mut made = self.devices.values().filter_map(|device| device.vfio.as_ref());
        made.any(|vfio| vfio.made_by == Some(physical) && vfio.open_count > 0)
    }

    /// `VFIO_DEVICE_FEATURE_PCI_VF_TOKEN`.
    pub(crate) fn set_token(&mut self, address: PciAddress, token: VfToken) -> Result<(), Errno> {
        let vfio = self.dev_mut(address)?.vfio.as_mut().ok_or(Errno::NODEV)?;
        let kept = vfio.token.as_mut().ok_or(Errno::NOTTY)?;
        *kept = token;
        Ok(())
    }
}
