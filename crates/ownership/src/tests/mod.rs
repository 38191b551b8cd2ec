//! Tests of the state machine.

pub(crate) mod coverage;
