//! Compiles the peers in C into the program that they are measured in: both sides then have the same
//! descriptors, memory and clock.

fn main() {
    println!("cargo::rerun-if-changed=peers");
    println!("cargo::rerun-if-changed=../../bench/peers/ioas.h");
    cc::Build::new()
        .files(["peers/raw.c", "peers/fake.c"])
        .opt_level(2)
        .warnings(true)
        .extra_warnings(true)
        .compile("peers");
}
