//! The attributes that show a function's health.

use std::io;

use super::FakeTree;
use crate::{AerCounters, LinkRate, PciAddress};

impl FakeTree {
    /// Writes an attribute of a device.
    ///
    /// # Errors
    /// Of the file system.
    pub fn attribute(&self, device: PciAddress, name: &str, value: &str) -> io::Result<()> {
        self.file(&format!("sys/devices/{}/{name}", self.place(device)), format!("{value}\n"))
    }

    /// Writes how a device sleeps or doesn't: `power_state` and `power/runtime_status`.
    ///
    /// # Errors
    /// Of the file system.
    pub fn power(&self, device: PciAddress, state: &str, runtime: &str) -> io::Result<()> {
        self.attribute(device, "power_state", state)?;
        self.attribute(device, "power/runtime_status", runtime)
    }

    /// Writes the error counters of a device, as the kernel lists them.
    ///
    /// # Errors
    /// Of the file system.
    pub fn aer(&self, device: PciAddress, counters: AerCounters) -> io::Result<()> {
        let AerCounters { correctable, nonfatal, fatal } = counters;
        let some = format!("Receiver Error {correctable}\nBad TLP 0\nTOTAL_ERR_COR {correctable}");
        self.attribute(device, "aer_dev_correctable", &some)?;
        for (file, sum, count) in [
            ("aer_dev_nonfatal", "TOTAL_ERR_NONFATAL", nonfatal),
            ("aer_dev_fatal", "TOTAL_ERR_FATAL", fatal),
        ] {
            let some = format!("Undefined 0\nUnsupported Request {count}\n{sum} {count}");
            self.attribute(device, file, &some)?;
        }
        Ok(())
    }

    /// Writes what a function can do on its link, and where it is the lower end also how that runs.
    ///
    /// # Errors
    /// Of the file system.
    pub fn link_rate(
        &self,
        device: PciAddress,
        most: LinkRate,
        now: Option<LinkRate>,
    ) -> io::Result<()> {
        let now = now.map(|now| ("current", now));
        for (which, LinkRate { width, speed }) in [("max", most)].into_iter().chain(now) {
            let speed = match speed {
                0 => "Unknown".to_owned(),
                speed => format!("{}.{} GT/s PCIe", speed / 1_000, speed % 1_000 / 100),
            };
            self.attribute(device, &format!("{which}_link_width"), &width.to_string())?;
            self.attribute(device, &format!("{which}_link_speed"), &speed)?;
        }
        Ok(())
    }
}
