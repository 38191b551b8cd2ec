//! The VFIO driver that fits a device: a variant by its `vfio_pci:` alias, else vfio-pci.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use super::{config_space::ConfigSpace, drivers};

/// The generic driver.
const GENERIC: &str = "vfio-pci";

/// The `vfio_pci:` aliases of one kernel.
#[derive(Debug, Default)]
pub(super) struct Variants {
    aliases: Vec<Alias>,
}

#[derive(Debug, PartialEq, Eq)]
struct Alias {
    pattern: String,
    driver: String,
}

impl Variants {
    /// Reads `modules.alias` of a module directory; without one there are no variants.
    pub(super) fn read(modules: &Path) -> Self {
        let Ok(file) = File::open(modules.join("modules.alias")) else { return Self::default() };
        Self::parse(BufReader::new(file))
    }

    pub(super) fn parse(mut input: impl BufRead) -> Self {
        let mut aliases = Vec::new();
        let mut line = Vec::new();
        while matches!(input.read_until(b'\n', &mut line), Ok(count) if count > 0) {
            aliases.extend(std::str::from_utf8(&line).ok().and_then(parse_alias));
            line.clear();
        }
        // The most exact alias wins: the one with the fewest wildcards.
        aliases.sort_by_key(|alias: &Alias| alias.pattern.matches('*').count());
        Self { aliases }
    }

    /// The driver for a device.
    pub(super) fn driver_for(&self, ids: &ConfigSpace) -> &str {
        if self.aliases.is_empty() {
            return GENERIC;
        }
        let modalias = modalias(ids);
        self.aliases
            .iter()
            .find(|alias| matches(alias.pattern.as_bytes(), modalias.as_bytes()))
            .map_or(GENERIC, |alias| &alias.driver)
    }
}

fn parse_alias(line: &str) -> Option<Alias> {
    let rest = line.strip_prefix("alias vfio_pci:")?;
    let (pattern, module) = rest.trim_end().rsplit_once(' ')?;
    if drivers::plain(module) == "vfio_pci" || !drivers::is_driver_name(module) {
        return None;
    }
    Some(Alias { pattern: pattern.to_owned(), driver: driver_of(module) })
}

/// The driver that a variant's module registers: named like the module, but for the one that
/// spells it with dashes.
fn driver_of(module: &str) -> String {
    match module {
        "xe_vfio_pci" => "xe-vfio-pci".to_owned(),
        other => other.to_owned(),
    }
}

fn modalias(ids: &ConfigSpace) -> String {
    let [interface, sub, base, _] = ids.class.to_le_bytes();
    format!(
        "v{:08X}d{:08X}sv{:08X}sd{:08X}bc{base:02X}sc{sub:02X}i{interface:02X}",
        ids.vendor, ids.device, ids.subsystem_vendor, ids.subsystem_device
    )
}

/// Shell-like matching with `*` only, which is all that PCI aliases use.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p, t));
            p += 1;
        } else if p < pattern.len() && pattern[p] == text[t] {
            p += 1;
            t += 1;
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            p = at + 1;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALIASES: &str = "\
alias pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_core
alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci
alias vfio_pci:v00008086d*sv*sd*bc03sc*i* xe_vfio_pci
alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci
alias vfio_pci:broken
alias vfio_pci:v00001234d*sv*sd*bc*sc*i* ../evil
";

    fn driver(vendor: u16, device: u16, class: u32) -> String {
        let variants = Variants::parse(ALIASES.as_bytes());
        let ids = ConfigSpace { vendor, device, class, ..ConfigSpace::default() };
        variants.driver_for(&ids).to_owned()
    }

    #[test]
    fn the_variant_wins_over_the_generic_driver() {
        assert_eq!(driver(0x15b3, 0x101e, 0x02_00_00), "mlx5_vfio_pci");
        assert_eq!(driver(0x8086, 0x56c0, 0x03_80_00), "xe-vfio-pci");
        assert_eq!(driver(0x8086, 0x10c9, 0x02_00_00), "vfio-pci");
        assert_eq!(driver(0x1234, 0x11e8, 0x00_ff_00), "vfio-pci");
    }

    #[test]
    fn stars_match_any_run() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("a*b*c", "a1b2b3c", true),
            ("", "a", false),
            ("a", "", false),
            ("**", "x", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }
}
