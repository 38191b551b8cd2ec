//! Writes to sysfs as the API has them.

use berth_host::{SysfsWrite, Undo};
use berth_proto::v1;

/// Writes, in their order, each with what undoes it.
#[must_use]
pub fn writes(writes: Vec<SysfsWrite>) -> Vec<v1::SysfsWrite> {
    let shown = writes.into_iter().map(|SysfsWrite { path, value, undo }| {
        let (undo_path, undo, no_undo) = match undo {
            Undo::Write { path, value } => (path, value, String::new()),
            Undo::None { why } => (String::new(), String::new(), why),
        };
        v1::SysfsWrite { path, value, undo, undo_path, no_undo }
    });
    shown.collect()
}
