//! Where a mapping fits, and where the simulated kernel puts one whose place is left open.

use berth_uapi::IovaRange;

/// Sizes of IOMMU pages that are worth aligning a mapping for.
pub(crate) const LARGE_PAGES: [u64; 2] = [1 << 30, 2 << 20];

/// What is to be placed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// How many bytes, a multiple of `page`.
    pub(crate) length: u64,
    /// The smallest alignment there is.
    pub(crate) page: u64,
    /// The address of the memory: where it is aligned like its IOVA, large pages can be used.
    pub(crate) memory: u64,
}

/// Finds the lowest free place for `wanted` inside `permitted` and outside `taken`, which are
/// inclusive ranges in ascending order. Address 0 is never given out, as the kernel never does.
///
/// Fails with the size of the largest gap.
pub(crate) fn place(
    wanted: Wanted,
    permitted: &[IovaRange],
    taken: impl Iterator<Item = IovaRange> + Clone,
) -> Result<u64, u64> {
    let large = LARGE_PAGES.into_iter().filter(|size| *size <= wanted.length);
    for alignment in large.chain([wanted.page]) {
        let offset = if alignment == wanted.page { 0 } else { wanted.memory % alignment };
        let fit = gaps(wanted.page, permitted, taken.clone())
            .find_map(|gap| fit(gap, wanted.length, alignment, offset));
        if let Some(iova) = fit {
            return Ok(iova);
        }
    }
    let largest = gaps(wanted.page, permitted, taken)
        .map(|gap| (gap.last - gap.start).saturating_add(1))
        .max();
    Err(largest.unwrap_or(0))
}

/// The lowest address in `gap` that is `offset` more than a multiple of `alignment`.
pub(crate) fn fit(gap: IovaRange, length: u64, alignment: u64, offset: u64) -> Option<u64> {
    let base = gap.start - gap.start % alignment;
    let low = base.checked_add(offset)?;
    let iova = if low >= gap.start { low } else { low.checked_add(alignment)? };
    gap.contains(iova, length).then_some(iova)
}

/// The free parts of each permitted range, in order.
fn gaps(
    page: u64,
    permitted: &[IovaRange],
    taken: impl Iterator<Item = IovaRange> + Clone,
) -> impl Iterator<Item = IovaRange> {
    permitted.iter().flat_map(move |range| {
        let range = IovaRange { start: range.start.max(page), last: range.last };
        gaps_in(range, taken.clone())
    })
}

fn gaps_in(range: IovaRange, taken: impl Iterator<Item = IovaRange>) -> Vec<IovaRange> {
    let mut gaps = Vec::new();
    // `None` once the range is used up, which may be at the very last address.
    let mut next = (range.start <= range.last).then_some(range.start);
    for used in taken {
        let Some(start) = next else { break };
        if used.last < start {
            continue;
        }
        if used.start > range.last {
            break;
        }
        if used.start > start {
            gaps.push(IovaRange { start, last: used.start - 1 });
        }
        next = used.last.checked_add(1).filter(|after| *after <= range.last);
    }
    if let Some(start) = next {
        gaps.push(IovaRange { start, last: range.last });
    }
    gaps
}

#[cfg(test)]
#[path = "alloc_tests.rs"]
mod tests;
