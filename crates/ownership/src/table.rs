//! The transition table, as data.

/// The table.
#[derive(Clone, Debug)]
pub struct Table {}
/// A row.
#[derive(Clone, Copy, Debug)]
pub enum OwnershipRow {}
/// A column.
#[derive(Clone, Copy, Debug)]
pub enum Operation {}
/// A cell.
#[derive(Clone, Copy, Debug)]
pub enum Cell {}
impl Table {
    /// The standard table.
    pub fn standard() -> Self {
        Self {}
    }
}
