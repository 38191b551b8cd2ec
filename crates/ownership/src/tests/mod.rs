//! Tests of the state machine.

mod adopt;
mod broken;
mod condition;
pub(crate) mod coverage;
mod fixture;
mod libvirt;
mod private;
mod random;
mod renewing;
mod reset_scope;
mod restore;
mod scenarios;
mod search;
mod sriov;
mod tables;
mod turns;
mod words;
mod world;
mod worlds;
