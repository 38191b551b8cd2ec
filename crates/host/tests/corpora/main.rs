//! What the fuzzers of addresses and of sysfs found, replayed.

mod address;
#[path = "../../../../fuzz/replay.rs"]
mod replay;
mod sysfs;

#[test]
fn addresses() {
    replay::replay("address", address::check);
}

#[test]
fn what_sysfs_shows() {
    replay::replay("sysfs", sysfs::check);
}
