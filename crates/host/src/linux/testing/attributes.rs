//! The attributes that the kernel shows of every function, whatever it is.

use std::io;

use super::{FakeDevice, FakeTree};

/// Bytes of a configuration space that anybody can read.
const HEADER_BYTES: usize = 64;

impl FakeTree {
    /// Writes the attributes of a device into its directory.
    pub(super) fn attributes(&self, device: &FakeDevice, dir: &str) -> io::Result<()> {
        self.file(&format!("{dir}/config"), &device.config)?;
        if device.config.len() >= HEADER_BYTES {
            self.identity(&device.config, dir)?;
        }
        self.file(&format!("{dir}/resource"), resource(device.bar0_bytes))?;
        let set = device.driver_override.as_deref().unwrap_or("(null)");
        self.file(&format!("{dir}/driver_override"), format!("{set}\n"))?;
        self.file(&format!("{dir}/numa_node"), format!("{}\n", device.numa_node))?;
        self.file(&format!("{dir}/irq"), "0\n")?;
        self.file(&format!("{dir}/enable"), if device.driver.is_some() { "1\n" } else { "0\n" })?;
        if let Some(methods) = &device.reset_method {
            self.file(&format!("{dir}/reset_method"), format!("{methods}\n"))?;
            self.file(&format!("{dir}/reset"), "")?;
        }
        if device.sriov_total > 0 {
            self.file(&format!("{dir}/sriov_totalvfs"), format!("{}\n", device.sriov_total))?;
            self.file(&format!("{dir}/sriov_numvfs"), "0\n")?;
            self.file(&format!("{dir}/sriov_drivers_autoprobe"), "1\n")?;
        }
        Ok(())
    }

    /// What the header says, a file each. A device without a readable header has to be given
    /// them by hand.
    fn identity(&self, config: &[u8], dir: &str) -> io::Result<()> {
        let word = |at: usize| u16::from_le_bytes([config[at], config[at + 1]]);
        let [revision, interface, sub, base] = [config[8], config[9], config[10], config[11]];
        let (vendor, device, of_vendor, of_device) = (word(0), word(2), word(0x2c), word(0x2e));
        let modalias = format!(
            "pci:v{vendor:08X}d{device:08X}sv{of_vendor:08X}sd{of_device:08X}\
             bc{base:02X}sc{sub:02X}i{interface:02x}"
        );
        for (name, value) in [
            ("vendor", format!("{vendor:#06x}")),
            ("device", format!("{device:#06x}")),
            ("subsystem_vendor", format!("{of_vendor:#06x}")),
            ("subsystem_device", format!("{of_device:#06x}")),
            ("class", format!("0x{base:02x}{sub:02x}{interface:02x}")),
            ("revision", format!("{revision:#04x}")),
            ("modalias", modalias),
        ] {
            self.file(&format!("{dir}/{name}"), format!("{value}\n"))?;
        }
        Ok(())
    }
}

fn resource(bar0_bytes: u64) -> String {
    (0..13)
        .map(|line| {
            let (start, end, flags) = match (line, bar0_bytes) {
                (0, size @ 1..) => (0xfe00_0000_u64, 0xfe00_0000 + size - 1, 0x0004_0200_u64),
                _ => (0, 0, 0),
            };
            format!("{start:#018x} {end:#018x} {flags:#018x}\n")
        })
        .collect()
}
