//! Who may call what of `berthd`: the roles, and the one table from which every call is decided.
//!
//! It is data and one pure function, apart from the daemon so that each change to it is judged in
//! seconds.
#![forbid(unsafe_code)]

mod caller;
mod table;
#[cfg(test)]
mod tests;

pub use caller::{Role, Transport};
pub use table::{Call, Over, Row, Standing, Verdict, Whose};
