//! The hand-over socket: descriptors and memory registrations, which no RPC can carry.
//!
//! `SOCK_SEQPACKET`, one JSON object per packet, descriptors by `SCM_RIGHTS`. The peer is known by
//! the kernel's word, and its process is watched: what it holds ends with it. The words are those
//! of `berth_handover`; see `docs/handover.md`.

mod desk;
mod peer;
mod refusal;
mod server;
mod thread;

pub use berth_handover::asynchronous::bind_socket;
pub use server::{House, serve, serve_in};
pub use thread::Serving;
