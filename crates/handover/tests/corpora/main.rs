//! What the fuzzer of the hand-over found, replayed.

mod frame;
#[path = "../../../../fuzz/replay.rs"]
mod replay;

#[test]
fn packets() {
    replay::replay("handover", frame::check);
}
