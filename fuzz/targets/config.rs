//! The text of berthd.toml.
#![no_main]

#[path = "../../daemon/tests/corpora/config.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
