//! Configuration spaces for fake devices.

/// Builds the 4 KiB of a configuration space.
#[derive(Debug, Clone)]
pub struct ConfigBytes {
    bytes: Vec<u8>,
    /// Where the next extended capability goes, and where its predecessor is.
    next: usize,
    last: Option<usize>,
}

const EXPRESS_AT: usize = 0x40;
const EXTENDED_START: usize = 0x100;
const EXTENDED_STRIDE: usize = 0x40;

impl ConfigBytes {
    /// A conventional PCI function: no capabilities, 256 bytes.
    #[must_use]
    pub fn conventional(vendor: u16, device: u16, class: u32) -> Self {
        let mut bytes = vec![0; 256];
        bytes[0..2].copy_from_slice(&vendor.to_le_bytes());
        bytes[2..4].copy_from_slice(&device.to_le_bytes());
        let [interface, sub, base, _] = class.to_le_bytes();
        bytes[9..12].copy_from_slice(&[interface, sub, base]);
        bytes[0x2c..0x2e].copy_from_slice(&vendor.to_le_bytes());
        bytes[0x2e..0x30].copy_from_slice(&0x0001_u16.to_le_bytes());
        Self { bytes, next: EXTENDED_START, last: None }
    }

    /// A PCI Express endpoint.
    #[must_use]
    pub fn endpoint(vendor: u16, device: u16, class: u32) -> Self {
        Self::conventional(vendor, device, class).express(0)
    }

    /// A bridge or port of a PCI Express device/port type (4 root, 5 upstream, 6 downstream,
    /// 7 bridge to conventional PCI).
    #[must_use]
    pub fn port(vendor: u16, device: u16, kind: u8) -> Self {
        let mut this = Self::conventional(vendor, device, 0x06_04_00).express(kind);
        this.bytes[0x0e] = 1;
        this
    }

    fn express(mut self, kind: u8) -> Self {
        self.bytes.resize(4096, 0);
        self.bytes[6] = 0x10;
        self.bytes[0x34] = 0x40;
        self.bytes[EXPRESS_AT] = 0x10;
        self.bytes[EXPRESS_AT + 2] = kind << 4 | 2;
        self
    }

    /// Says that the device has several functions.
    #[must_use]
    pub fn multifunction(mut self) -> Self {
        self.bytes[0x0e] |= 0x80;
        self
    }

    /// Access Control Services: what it is capable of, and what is on.
    #[must_use]
    pub fn acs(self, capable: u16, enabled: u16) -> Self {
        let [c0, c1] = capable.to_le_bytes();
        let [e0, e1] = enabled.to_le_bytes();
        self.extended(0x000d, &[c0, c1, e0, e1])
    }

    /// A device serial number.
    #[must_use]
    pub fn serial(self, number: u64) -> Self {
        self.extended(0x0003, &number.to_le_bytes())
    }

    /// The SR-IOV capability.
    #[must_use]
    pub fn sriov(self) -> Self {
        self.extended(0x0010, &[0; 8])
    }

    fn extended(mut self, id: u16, body: &[u8]) -> Self {
        self.bytes.resize(4096, 0);
        let at = self.next;
        let [id0, id1] = id.to_le_bytes();
        self.bytes[at..at + 4].copy_from_slice(&[id0, id1, 1, 0]);
        self.bytes[at + 4..at + 4 + body.len()].copy_from_slice(body);
        if let Some(last) = self.last {
            let link = (u16::try_from(at).unwrap_or(0) << 4 | 1).to_le_bytes();
            self.bytes[last + 2..last + 4].copy_from_slice(&link);
        }
        self.last = Some(at);
        self.next = at + EXTENDED_STRIDE;
        self
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }
}
