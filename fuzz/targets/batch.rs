//! Batches of the fast path: that neighbours become one mapping is invisible.
#![no_main]
#![allow(unsafe_code, reason = "maps memory by address, on a simulated IOMMU")]

#[path = "../../crates/dma/tests/coalescing/check.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| check::check_both(bytes));
