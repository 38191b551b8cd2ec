//! What a guest's memory needs beside what there is.

use berth_ownership::Reservation;
use berth_proto::v1;

use super::{Code, finding, fixed_by};
use crate::view::explain_memory::{TYPE1_ENTRIES, chunks, is_type1};

/// Of a group, or of a reservation that has it.
pub(super) fn findings(
    object: &str,
    bytes: u64,
    reservation: Option<&Reservation>,
) -> Vec<v1::Finding> {
    let mut found = Vec::new();
    let kib = bytes.div_ceil(1024);
    let stated = reservation.map_or(0, |reservation| reservation.memory_bytes);
    if stated < bytes {
        let cause = format!(
            "a VM of that size locks {kib} KiB, and RLIMIT_MEMLOCK of its process is raised to the \
             {} KiB that are stated",
            stated / 1024
        );
        let finding = finding(Code::MemlockLimit, object, cause);
        found.push(fixed_by(finding, format!("reserve with --memory {bytes}")));
    }
    let pieces = chunks(bytes);
    if is_type1(reservation) && pieces > TYPE1_ENTRIES {
        let cause = format!(
            "in pieces of 2 MiB it takes {pieces} mappings, and a type1 container has {TYPE1_ENTRIES}"
        );
        let finding = finding(Code::MappingLimit, object, cause);
        let finding = fixed_by(finding, "map in larger pieces, or reserve with --backend iommufd");
        let limit = "a higher vfio_iommu_type1.dma_entry_limit, read when a container is opened";
        found.push(fixed_by(finding, limit));
    }
    found
}
