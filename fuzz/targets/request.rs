//! From protobuf to an answer, on a simulated host.
#![no_main]
#![allow(dead_code, reason = "the other target checks the other half")]

#[path = "../../daemon/tests/corpora/front.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check_request(bytes));
