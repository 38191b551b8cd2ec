//! Concurrent clients see one order of events, and what checks that can tell.

#[path = "linear/checker.rs"]
mod checker;
#[path = "linear/fight.rs"]
mod fight;
#[path = "linear/planted.rs"]
mod planted;
