//! Room on the disk: a linker that finds none dies of SIGBUS and says nothing of it.

use std::path::Path;

use rustix::fs::statvfs;

/// What a clean build of everything and all of its tests leave in the target directory, with some
/// to spare.
const NEEDED_BYTES: u64 = 10 << 30;

/// Says so when there may be too little of it.
pub(super) fn look(target: &Path) {
    let existing = target.ancestors().find(|dir| dir.exists()).unwrap_or(target);
    let Ok(found) = statvfs(existing) else { return };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free < NEEDED_BYTES {
        println!(
            "{} MiB are free for {}; a clean run of all tests takes up to {} MiB there. Should a linker \
             end with a bus error: make room, or set CARGO_TARGET_DIR",
            free >> 20,
            target.display(),
            NEEDED_BYTES >> 20
        );
    }
}
