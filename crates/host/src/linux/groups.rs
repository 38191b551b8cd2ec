//! IOMMU groups: their members, type and reserved regions.

use std::{collections::BTreeMap, fmt::Write, os::fd::OwnedFd};

use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::tree::{self, PAGE_BYTES, Root};
use crate::{GroupFacts, IovaRange, PciAddress, in_chunks};

/// The name of a group that stays the same over boots: `g-` and the first 12 hex digits of the
/// SHA-256 of its sorted addresses, joined by newlines.
#[must_use]
pub fn stable_id(members: &[PciAddress]) -> String {
    let mut sorted = members.to_vec();
    sorted.sort_unstable();
    let mut text = String::with_capacity(sorted.len() * 13);
    for (index, member) in sorted.iter().enumerate() {
        let separator = if index == 0 { "" } else { "\n" };
        let _ = write!(text, "{separator}{member}");
    }
    let digest = Sha256::digest(text.as_bytes());
    let mut id = String::from("g-");
    for byte in &digest[..6] {
        let _ = write!(id, "{byte:02x}");
    }
    id
}

/// Reads what the groups' own directories say.
pub(super) fn read(root: &Root, members: BTreeMap<u32, Vec<PciAddress>>) -> Vec<GroupFacts> {
    let dir = tree::open_dir(&root.join("sys/kernel/iommu_groups"));
    let members: Vec<(u32, Vec<PciAddress>)> = members.into_iter().collect();
    in_chunks(&members, |chunk| {
        let mut page = [0; PAGE_BYTES];
        chunk.iter().map(|(number, members)| group(&dir, *number, members, &mut page)).collect()
    })
}

fn group(
    dir: &Result<OwnedFd, Errno>,
    number: u32,
    members: &[PciAddress],
    page: &mut [u8; PAGE_BYTES],
) -> GroupFacts {
    let mut members = members.to_vec();
    members.sort_unstable();
    let mut attribute = |name: &str| attribute(dir, number, name, page);
    GroupFacts {
        number,
        stable_id: stable_id(&members),
        iommu_type: attribute("type"),
        reserved_regions: parse_regions(&attribute("reserved_regions")),
        members,
    }
}

fn attribute(
    dir: &Result<OwnedFd, Errno>,
    number: u32,
    name: &str,
    page: &mut [u8; PAGE_BYTES],
) -> String {
    let Ok(dir) = dir else { return String::new() };
    let bytes = tree::read_at(dir, format!("{number}/{name}"), &mut page[..]).unwrap_or(&[]);
    String::from_utf8_lossy(bytes).trim_end().to_owned()
}

/// Lines of `0xFIRST 0xLAST KIND`; others are left out, and those that end before they begin.
pub(super) fn parse_regions(text: &str) -> Vec<IovaRange> {
    let number = |field: &str| u64::from_str_radix(field.strip_prefix("0x")?, 16).ok();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (first, last) = (number(fields.next()?)?, number(fields.next()?)?);
            let kind = fields.next()?.to_owned();
            (first <= last).then_some(IovaRange { first, last, kind })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> PciAddress {
        text.parse().unwrap()
    }

    #[test]
    fn the_stable_id_depends_on_the_set_alone() {
        let one = stable_id(&[at("0000:02:00.0"), at("0000:01:00.0")]);
        assert_eq!(one, stable_id(&[at("0000:01:00.0"), at("0000:02:00.0")]));
        assert_ne!(one, stable_id(&[at("0000:01:00.0")]));
        // printf '0000:00:05.0' | sha256sum
        assert_eq!(stable_id(&[at("0000:00:05.0")]), "g-f6e4fa86dcac");
    }

    #[test]
    fn regions_are_read_and_garbage_left_out() {
        let text = "0x00000000fee00000 0x00000000feefffff msi\nnonsense\n0x0 0xfff direct";
        let regions = parse_regions(text);
        assert_eq!(regions.len(), 2);
        assert_eq!((regions[0].first, regions[0].last), (0xfee0_0000, 0xfeef_ffff));
        assert_eq!(regions[1].kind, "direct");
    }
}
