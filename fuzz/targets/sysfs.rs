//! What sysfs and /proc show.
#![no_main]

#[path = "../../crates/host/tests/corpora/sysfs.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check(bytes));
