//! Addresses of devices: one written form for each.
#![no_main]

#[path = "../../crates/host/tests/corpora/address.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
