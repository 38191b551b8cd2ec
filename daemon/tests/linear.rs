//! Concurrent clients see one order of events, and what checks that can tell.

#[path = "linear/checker.rs"]
mod checker;
#[path = "daemon_support/mod.rs"]
mod daemon_support;
#[path = "linear/fight.rs"]
mod fight;
#[path = "history_support/mod.rs"]
mod history_support;
#[path = "linear/planted.rs"]
mod planted;
