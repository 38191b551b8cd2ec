//! Developer commands: run, test, bench, vm, check.
#![forbid(unsafe_code)]

fn main() {}
