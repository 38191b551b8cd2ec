//! The kernel work of berthd on the simulated host.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test program of several files")]

mod again;
mod anywhere;
mod baseline;
mod book;
mod crash;
mod crashes;
mod faults;
mod garbage;
mod handed;
mod handed_ends;
mod handover;
mod hostile;
mod in_flight;
mod kept;
mod kin;
mod ledger;
mod life;
mod memlock;
mod register;
mod sriov;
mod vf_token;
mod wedged;
mod world;
