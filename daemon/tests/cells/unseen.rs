//! Cells that no walk by gRPC can show, by name, each with the reason.

use berth_ownership::table::CellRef;

/// Such cells.
pub(crate) const UNSEEN: &[(CellRef, &str)] = &[];
