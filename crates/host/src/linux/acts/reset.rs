//! Resetting a device, and whether it worked.

use rustix::io::Errno;

use super::sysfs::{self, Device};
use crate::{HostError, PciAddress, ResetOutcome, linux::tree::Root};

/// Resets by the `reset` attribute. The write decides; `reset_method` is a hint.
pub(super) fn reset(root: &Root, address: PciAddress) -> Result<ResetOutcome, HostError> {
    let device = Device::open(root, address)?;
    let methods = device.text("reset_method").unwrap_or_default();
    let method = methods.split_ascii_whitespace().next().unwrap_or("unknown").to_owned();
    match device.write("reset", "1") {
        Ok(()) => {}
        Err(error) => return outcome_of(error),
    }
    Ok(match sysfs::config(root, address) {
        Ok(bytes) if bytes.len() >= 2 && !answers(&bytes) => {
            ResetOutcome::Failed { note: "the configuration space reads as all ones".to_owned() }
        }
        Ok(bytes) if bytes.len() < 2 => {
            ResetOutcome::Failed { note: "the configuration space reads as nothing".to_owned() }
        }
        Ok(_) => ResetOutcome::Verified { method },
        Err(error) => ResetOutcome::Failed { note: error.to_string() },
    })
}

/// Virtual functions read all ones as vendor by design; then the command register must answer.
fn answers(bytes: &[u8]) -> bool {
    bytes.iter().take(64).any(|byte| *byte != 0xff)
}

fn outcome_of(error: HostError) -> Result<ResetOutcome, HostError> {
    let HostError::File { errno, .. } = &error else { return Err(error) };
    match Errno::from_raw_os_error(*errno) {
        Errno::NOENT => {
            let note = "the device has no reset attribute: the kernel knows no way".to_owned();
            Ok(ResetOutcome::NotPossible { note })
        }
        Errno::NOTTY => {
            let note = "the kernel has no method that fits (ENOTTY)".to_owned();
            Ok(ResetOutcome::NotPossible { note })
        }
        // Those are about who asks, not about the device.
        Errno::ACCESS | Errno::PERM | Errno::ROFS => Err(error),
        _ => Ok(ResetOutcome::Failed { note: error.to_string() }),
    }
}
