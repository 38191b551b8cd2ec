//! Tests of the state machine.

mod adopt;
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
mod tables;
mod world;
mod worlds;
