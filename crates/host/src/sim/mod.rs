//! The simulated host: the kernel's rules and errnos, in memory.
//!
//! A [`Topology`] says what machine it is; a [`SimHost`] pretends to be it. Its kernel is a state
//! machine with the same order of checks as the real one, and the conformance suite replays on it
//! what a real kernel answered. Tests script faults ([`Fault`]), other actors ([`Foreign`]) and
//! hotplug. Descriptors that it gives out are memfds: they can be sent to other processes, and the
//! simulated file stays open until the last of them is closed.

mod acts;
mod attributes;
mod context;
mod export;
mod fault;
mod foreign;
mod host;
mod kernel;
mod process;
mod regroup;
mod rule;
mod scripting;
mod shared;
mod space;
mod topology;

pub use self::{
    fault::{Fault, Site},
    foreign::Foreign,
    host::SimHost,
    kernel::owner::{GroupDomain, Ownership, Token},
    rule::Rule,
    topology::{Serials, Topology},
};

#[cfg(test)]
mod tests;
