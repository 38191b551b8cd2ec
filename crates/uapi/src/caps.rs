//! The capability chains VFIO appends to its info structures, parsed from bytes.

use std::collections::BTreeSet;

use crate::bytes::{read_u16, read_u32};

const HEADER_BYTES: usize = 8;

/// One capability: its header and the bytes up to the next capability or the end of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap<'a> {
    /// Which capability; the meaning depends on the info structure.
    pub id: u16,
    /// The version of its layout.
    pub version: u16,
    /// Everything after the 8-byte header.
    pub body: &'a [u8],
}

/// A capability chain that does not hold together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CapError {
    /// A capability starts beyond the end, or its header does.
    #[error("capability at {at} runs past the end of {length} bytes")]
    Short {
        /// Its offset.
        at: usize,
        /// Length of the whole buffer.
        length: usize,
    },
    /// A capability starts inside the fixed structure before the chain.
    #[error("capability at {at} lies inside the {fixed} byte structure before it")]
    InHeader {
        /// Its offset.
        at: usize,
        /// Size of the fixed part.
        fixed: usize,
    },
    /// A capability does not start at a multiple of 4.
    #[error("capability at {at} is not aligned")]
    Unaligned {
        /// Its offset.
        at: usize,
    },
    /// The chain comes back to a capability it already passed.
    #[error("capability chain loops at {at}")]
    Cycle {
        /// The offset seen twice.
        at: usize,
    },
}

/// Walks a capability chain; ends after the first error.
#[derive(Debug)]
pub struct CapIter<'a> {
    bytes: &'a [u8],
    fixed: usize,
    next: usize,
    seen: BTreeSet<usize>,
}

impl<'a> CapIter<'a> {
    /// Starts at `first` (0: no chain) in `bytes`, whose first `fixed` bytes are the structure
    /// that the chain follows.
    pub fn new(bytes: &'a [u8], fixed: usize, first: u32) -> Self {
        let next = usize::try_from(first).unwrap_or(usize::MAX);
        Self { bytes, fixed, next, seen: BTreeSet::new() }
    }

    fn step(&mut self) -> Result<Cap<'a>, CapError> {
        let (at, length) = (self.next, self.bytes.len());
        if at < self.fixed {
            return Err(CapError::InHeader { at, fixed: self.fixed });
        }
        if !at.is_multiple_of(4) {
            return Err(CapError::Unaligned { at });
        }
        if !self.seen.insert(at) {
            return Err(CapError::Cycle { at });
        }
        let short = CapError::Short { at, length };
        let id = read_u16(self.bytes, at).ok_or(short)?;
        let version = read_u16(self.bytes, at + 2).ok_or(short)?;
        let next = read_u32(self.bytes, at + 4).ok_or(short)?;
        self.next = usize::try_from(next).unwrap_or(usize::MAX);
        let end = if self.next > at { self.next.min(length) } else { length };
        let body = self.bytes.get(at + HEADER_BYTES..end).unwrap_or_default();
        Ok(Cap { id, version, body })
    }
}

impl<'a> Iterator for CapIter<'a> {
    type Item = Result<Cap<'a>, CapError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next == 0 {
            return None;
        }
        let item = self.step();
        if item.is_err() {
            self.next = 0;
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cap(id: u16, next: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&id.to_ne_bytes());
        bytes.extend_from_slice(&1u16.to_ne_bytes());
        bytes.extend_from_slice(&next.to_ne_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    fn errors(bytes: &[u8], fixed: usize, first: u32) -> Vec<CapError> {
        CapIter::new(bytes, fixed, first).filter_map(Result::err).collect()
    }

    #[test]
    fn walks_two() {
        let mut bytes = vec![0; 8];
        bytes.extend(cap(1, 24, &[7; 8]));
        bytes.extend(cap(3, 0, &[9; 4]));
        let caps: Vec<_> = CapIter::new(&bytes, 8, 8).collect::<Result<_, _>>().expect("valid");
        assert_eq!(caps[0], Cap { id: 1, version: 1, body: &[7; 8] });
        assert_eq!(caps[1], Cap { id: 3, version: 1, body: &[9; 4] });
        assert_eq!(caps.len(), 2);
    }

    #[test]
    fn no_chain_is_empty() {
        assert_eq!(CapIter::new(&[1; 64], 8, 0).count(), 0);
    }

    #[test]
    fn rejects_a_cycle() {
        let mut bytes = cap(1, 16, &[0; 8]);
        bytes.extend(cap(2, 0x20, &[0; 8]));
        bytes.extend(cap(3, 16, &[0; 8]));
        assert_eq!(errors(&bytes, 0, 16), [CapError::Cycle { at: 16 }]);
    }

    #[test]
    fn rejects_short_unaligned_and_inside() {
        assert_eq!(errors(&[0; 16], 0, 12), [CapError::Short { at: 12, length: 16 }]);
        assert_eq!(errors(&[0; 16], 0, 4000), [CapError::Short { at: 4000, length: 16 }]);
        assert_eq!(errors(&[0; 16], 0, 6), [CapError::Unaligned { at: 6 }]);
        assert_eq!(errors(&[0; 64], 24, 16), [CapError::InHeader { at: 16, fixed: 24 }]);
    }

    proptest! {
        #[test]
        fn garbage_ends_and_stays_inside(
            bytes in proptest::collection::vec(any::<u8>(), 0..512),
            // Small numbers make chains that get somewhere before they break.
            small in proptest::collection::vec(0u32..512, 0..64),
            fixed in 0usize..64,
            first in 0u32..600,
        ) {
            let small: Vec<u8> = small.iter().flat_map(|n| n.to_ne_bytes()).collect();
            for buffer in [&bytes, &small] {
                let items: Vec<_> = CapIter::new(buffer, fixed, first).collect();
                prop_assert!(items.len() <= buffer.len() / 4 + 1);
                let failed = items.iter().filter(|item| item.is_err()).count();
                prop_assert!(failed <= 1);
                prop_assert!(failed == 0 || items.last().is_some_and(Result::is_err));
            }
        }
    }
}
