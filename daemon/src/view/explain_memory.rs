//! What mapping a guest's memory takes, beside what a group or reservation has.

use berth_dma::Estimate;
use berth_ownership::{Backend, Reservation};
use berth_proto::v1;

/// Entries that a type1 container has, unless `vfio_iommu_type1.dma_entry_limit` says otherwise.
pub(super) const TYPE1_ENTRIES: u64 = 65_535;
/// What programs that map chunk by chunk map at once.
const CHUNK_BYTES: u64 = 2 << 20;

/// What stands in the way of mapping so much memory, and what it costs: a line each.
#[must_use]
pub fn memory_notes(
    group: &v1::Group,
    reservation: Option<&Reservation>,
    bytes: u64,
) -> Vec<String> {
    let mut notes = vec![locked(bytes, reservation)];
    notes.extend(entries(bytes, reservation.map(|found| found.backend)));
    let reserved = group.reserved_regions.iter().filter(|range| range.kind != "direct-relaxable");
    notes.extend(reserved.map(place));
    let Estimate { small_pages_ms, large_pages_ms, populate_ms } = Estimate::of(bytes);
    notes.push(format!(
        "time: about {small_pages_ms} ms on 4 KiB pages or {large_pages_ms} ms on 2 MiB ones, and \
         {populate_ms} ms of one thread to zero memory that isn't there yet (measured elsewhere: an \
         order of magnitude)"
    ));
    notes
}

fn locked(bytes: u64, reservation: Option<&Reservation>) -> String {
    let kib = bytes.div_ceil(1024);
    match reservation {
        Some(found) if found.memory_bytes < bytes => format!(
            "memory: needs {kib} KiB locked, and {} states {} KiB: reserve with --memory {bytes}",
            found.id,
            found.memory_bytes / 1024,
        ),
        Some(found) => format!(
            "memory: needs {kib} KiB locked, and {} states {} KiB, to which its holder's \
             RLIMIT_MEMLOCK is raised",
            found.id,
            found.memory_bytes / 1024,
        ),
        None => format!("memory: needs {kib} KiB locked: reserve with --memory {bytes}"),
    }
}

/// In how many pieces it is mapped.
pub(super) fn chunks(bytes: u64) -> u64 {
    bytes.div_ceil(CHUNK_BYTES)
}

/// Whether type1's limits count: of a group that nobody has they may.
pub(super) fn is_type1(reservation: Option<&Reservation>) -> bool {
    reservation.is_none_or(|found| found.backend == Backend::Type1)
}

fn entries(bytes: u64, backend: Option<Backend>) -> Option<String> {
    let chunks = chunks(bytes);
    match backend {
        Some(Backend::Iommufd) => None,
        Some(Backend::Type1) | None if chunks > TYPE1_ENTRIES => Some(format!(
            "mappings: in pieces of 2 MiB it takes {chunks}, and a type1 container has \
             {TYPE1_ENTRIES} (vfio_iommu_type1.dma_entry_limit): map in larger pieces"
        )),
        Some(Backend::Type1) | None => None,
    }
}

fn place(range: &v1::IovaRange) -> String {
    format!(
        "addresses: {:#x}-{:#x} are reserved ({}); guest memory can't be there",
        range.first, range.last, range.kind
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_pieces_are_only_too_many_on_type1() {
        assert_eq!(entries(512 << 30, Some(Backend::Iommufd)), None);
        assert_eq!(entries(100 << 30, Some(Backend::Type1)), None);
        let note = entries(512 << 30, Some(Backend::Type1)).expect("too many");
        assert!(note.contains("262144") && note.contains("65535"), "{note}");
        assert!(locked(512 << 30, None).contains("536870912 KiB"), "{}", locked(512 << 30, None));
    }
}
