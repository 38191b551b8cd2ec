//! What was stored for the next daemon, and under which name.
#![no_main]

#[path = "../../daemon/tests/corpora/note.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
