//! berth-helper: the privileged acts, one process per request.
//!
//! An unbind can wait in the kernel without limit, and no thread of the daemon shall need a
//! capability. So the daemon sends each privileged act to a process of its own and waits for the
//! answer no longer than a deadline; a process that the kernel keeps goes on without it. That
//! process is started by the daemon ([`Forked`]), by a process that the daemon started before it gave
//! that up ([`Spawned`]), or by the service manager for each connection to a socket ([`Connected`]). What may be asked is the closed list of [`berth_host::Act`], nothing
//! else; see [`wire`] for the format and [`serve`] for the other end.
#![forbid(unsafe_code)]

pub mod client;
pub mod confine;
mod packet;
mod peer;
pub mod serve;
pub mod spawner;
pub mod wire;

pub use client::{Connected, Deadlines, Forked, Spawned};
