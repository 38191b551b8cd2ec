//! The machine: discovery, drivers and VFIO, behind one trait with two implementations.
//!
//! [`Host`] is what the daemon sees. [`linux`] is the real one: sysfs, `/proc`, VFIO and iommufd.
//! [`sim`] follows the kernel's rules and errnos in memory, from a topology file. One conformance
//! suite runs on both.
//!
//! Everything here blocks. Callers run it on threads of their own: `BIND`, `ATTACH`, reset and the
//! last close of a device hold a lock of the whole reset set in the kernel.
#![forbid(unsafe_code)]

pub mod api;
pub mod conformance;
pub mod grouping;
pub mod linux;
mod parallel;
pub mod rehearsal;
pub mod sim;
mod steps;

pub use api::*;
pub use parallel::in_chunks;
