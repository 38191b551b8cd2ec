//! Names from pci.ids.
//!
//! The file has 1.4 MB; only the entries that this machine needs are kept, found in one pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

/// Where distributions put the file, best first, from the root.
const PLACES: [&str; 3] =
    ["usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids", "var/lib/pciutils/pci.ids"];

/// What to look up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Vendor and device ids.
    pub devices: BTreeSet<(u16, u16)>,
    /// Base class and sub class.
    pub classes: BTreeSet<(u8, u8)>,
}

/// The names that were found.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    vendors: BTreeMap<u16, String>,
    devices: BTreeMap<(u16, u16), String>,
    classes: BTreeMap<(u8, u8), String>,
}

impl Names {
    /// Looks names up in the first pci.ids that is there.
    pub(super) fn find(root: &Path, wanted: &Wanted) -> Self {
        PLACES
            .iter()
            .find_map(|place| File::open(root.join(place)).ok())
            .map(|file| Self::parse(BufReader::with_capacity(1 << 16, file), wanted))
            .unwrap_or_default()
    }

    /// The vendor's name, or nothing.
    pub(super) fn vendor(&self, vendor: u16) -> &str {
        self.vendors.get(&vendor).map_or("", String::as_str)
    }

    /// The device's name, or nothing.
    pub(super) fn device(&self, vendor: u16, device: u16) -> &str {
        self.devices.get(&(vendor, device)).map_or("", String::as_str)
    }

    /// The name of the sub class, else of the base class, or nothing.
    pub(super) fn class(&self, class: u32) -> &str {
        let [_, sub, base, _] = class.to_le_bytes();
        self.classes.get(&(base, sub)).map_or("", String::as_str)
    }

    fn parse(mut input: impl BufRead, wanted: &Wanted) -> Self {
        let vendors: BTreeSet<u16> = wanted.devices.iter().map(|(vendor, _)| *vendor).collect();
        let bases: BTreeSet<u8> = wanted.classes.iter().map(|(base, _)| *base).collect();
        let mut names = Self::default();
        let mut section = Section::Skipped;
        let mut line = Vec::new();
        while matches!(input.read_until(b'\n', &mut line), Ok(count) if count > 0) {
            match line.first() {
                None | Some(b'#' | b'\n') => {}
                Some(b'\t') => names.entry(section, &line, wanted),
                Some(_) => section = names.heading(&line, &vendors, &bases, wanted),
            }
            line.clear();
        }
        names
    }

    fn heading(
        &mut self,
        line: &[u8],
        vendors: &BTreeSet<u16>,
        bases: &BTreeSet<u8>,
        wanted: &Wanted,
    ) -> Section {
        if let Some(rest) = line.strip_prefix(b"C ") {
            let Some((base, name)) = split(rest, 2) else { return Section::Skipped };
            let base = base.to_le_bytes()[0];
            if !bases.contains(&base) {
                return Section::Skipped;
            }
            for class in wanted.classes.iter().filter(|(wanted, _)| *wanted == base) {
                self.classes.insert(*class, name.clone());
            }
            return Section::Class(base);
        }
        match split(line, 4) {
            Some((vendor, name)) if vendors.contains(&vendor) => {
                self.vendors.insert(vendor, name);
                Section::Vendor(vendor)
            }
            _ => Section::Skipped,
        }
    }

    fn entry(&mut self, section: Section, line: &[u8], wanted: &Wanted) {
        match section {
            Section::Skipped => {}
            Section::Vendor(vendor) => {
                if let Some((device, name)) = split(&line[1..], 4)
                    && wanted.devices.contains(&(vendor, device))
                {
                    self.devices.insert((vendor, device), name);
                }
            }
            Section::Class(base) => {
                if let Some((sub, name)) = split(&line[1..], 2) {
                    let class = (base, sub.to_le_bytes()[0]);
                    if wanted.classes.contains(&class) {
                        self.classes.insert(class, name);
                    }
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Section {
    Skipped,
    Vendor(u16),
    Class(u8),
}

/// `digits` hex digits, two spaces, a name.
fn split(line: &[u8], digits: usize) -> Option<(u16, String)> {
    let id = line.get(..digits).filter(|id| id.iter().all(u8::is_ascii_hexdigit))?;
    let name = line.get(digits..)?.strip_prefix(b"  ")?;
    let id = u16::from_str_radix(std::str::from_utf8(id).ok()?, 16).ok()?;
    Some((id, String::from_utf8_lossy(name).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: &[u8] = b"# comment
1234  Technical Corp
\t1111  VGA
\t\t1af4 1100  Subsystem 1111 of somebody
\t11e8  edu
8086  Intel Corporation
\t10c9  82576 Gigabit Network Connection
zzzz  broken
\t10c9  must not count
C 02  Network controller
\t00  Ethernet controller
C 03  Display controller
\t00  VGA compatible controller
\t\t00  VGA controller
";

    fn names(devices: &[(u16, u16)], classes: &[(u8, u8)]) -> Names {
        let wanted = Wanted {
            devices: devices.iter().copied().collect(),
            classes: classes.iter().copied().collect(),
        };
        Names::parse(IDS, &wanted)
    }

    #[test]
    fn finds_vendor_device_and_class() {
        let found = names(&[(0x1234, 0x11e8), (0x8086, 0x10c9)], &[(2, 0), (3, 0x80)]);
        assert_eq!(found.vendor(0x1234), "Technical Corp");
        assert_eq!(found.device(0x1234, 0x11e8), "edu");
        assert_eq!(found.device(0x8086, 0x10c9), "82576 Gigabit Network Connection");
        assert_eq!(found.class(0x02_00_00), "Ethernet controller");
        assert_eq!(found.class(0x03_80_00), "Display controller");
    }

    #[test]
    fn keeps_only_what_was_asked_for() {
        let found = names(&[(0x1234, 0x9999)], &[]);
        assert_eq!(found.vendor(0x1234), "Technical Corp");
        assert_eq!((found.vendors.len(), found.devices.len(), found.classes.len()), (1, 0, 0));
        assert_eq!(found.device(0x1234, 0x9999), "");
    }

    #[test]
    fn garbage_is_skipped() {
        let wanted = Wanted { devices: [(0x1234, 1)].into(), classes: [(1, 1)].into() };
        for garbage in [&b"C "[..], b"C", b"\t", b"12", b"\xff\xfe\n\t\xff", b"1234", b"1234 x"] {
            assert!(Names::parse(garbage, &wanted).devices.is_empty());
        }
    }

    #[test]
    fn a_machine_without_the_file_has_no_names() {
        let found = Names::find(Path::new("/nonexistent"), &Wanted::default());
        assert_eq!(found.vendor(0x8086), "");
    }
}
