//! Packets of the hand-over.
#![no_main]

#[path = "../../crates/handover/tests/corpora/frame.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
