//! What the fuzzers of the daemon's inputs found, replayed.

mod config;
mod front;
mod note;
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[test]
fn configurations() {
    replay::replay("config", config::check);
}

#[test]
fn stored_notes() {
    replay::replay("note", note::check);
}

#[test]
fn requests() {
    replay::replay("request", front::check_request);
}

#[test]
fn bodies() {
    replay::replay("rest", front::check_rest);
}
