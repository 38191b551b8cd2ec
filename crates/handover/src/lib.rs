//! The hand-over socket of `berthd`: its words, its packets, and a blocking client.
//!
//! A program without rights fetches its devices over it: opened descriptors, or leave to open
//! nodes. `SOCK_SEQPACKET`; one packet is one JSON object ([`Request`], [`Reply`]), and descriptors
//! come with it by `SCM_RIGHTS`. The kernel tells `berthd` who asks, so there is nothing to
//! authenticate. `docs/handover.md` is the whole protocol.
//!
//! For VMMs and drivers: no runtime, no thread, nothing else of Berth. Who serves such a socket has the
//! feature `tokio`.
//!
//! # Examples
//!
//! Fetch a reservation's devices, each with what it is:
//!
//! ```
//! use berth_handover::{Client, FdKind};
//!
//! # use berth_handover::{packet, FdInfo, Reply};
//! # use rustix::{io::fcntl_dupfd_cloexec as dup, net::*};
//! # use std::os::fd::AsFd;
//! # let directory = std::env::temp_dir().join(format!("berth-handover-{}", std::process::id()));
//! # std::fs::create_dir_all(&directory)?;
//! # let path = directory.join("handover.sock");
//! # let _ = std::fs::remove_file(&path);
//! # let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
//! # bind(&listener, &SocketAddrUnix::new(&path)?)?;
//! # listen(&listener, 1)?;
//! # let berthd = std::thread::spawn(move || {
//! #     let peer = accept(&listener).unwrap();
//! #     packet::receive(&peer, RecvFlags::empty(), packet::REQUEST).unwrap();
//! #     let device = FdInfo { address: Some("0000:65:00.0".into()), ..FdInfo::new(0, FdKind::Device) };
//! #     let context = FdInfo { ioas_id: Some(2), ..FdInfo::new(1, FdKind::Iommufd) };
//! #     let reply = Reply { ok: true, fds: Some(vec![device, context]), ..Reply::default() };
//! #     let fds = [listener.as_fd(), listener.as_fd()];
//! #     packet::send(&peer, &serde_json::to_vec(&reply).unwrap(), &fds, SendFlags::empty()).unwrap();
//! # });
//! let client = Client::connect(&path)?;
//! let mut fetched = client.fetch("r-3f2a91c04d77", 0)?;
//! let (_, device) = fetched.take_device("0000:65:00.0").ok_or("no such device")?;
//! let (context, iommufd) = fetched.take_context().ok_or("no context")?;
//! assert_eq!(context.kind, FdKind::Iommufd);
//! println!("map with IOMMU_IOAS_MAP of {iommufd:?} into {:?}, drive {device:?}", context.ioas_id);
//! # berthd.join().unwrap();
//! # std::fs::remove_dir_all(&directory)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A refusal says why, and what would resolve it:
//!
//! ```no_run
//! # use berth_handover::{Client, ClientError, SOCKET};
//! match Client::connect(SOCKET)?.fetch("r-3f2a91c04d77", 0) {
//!     Ok(fetched) => println!("{} descriptors", fetched.fds.len()),
//!     Err(ClientError::Refused(refusal)) => {
//!         eprintln!("{refusal}");
//!         refusal.resolve.iter().for_each(|way| eprintln!("  to resolve: {way}"));
//!     }
//!     Err(error) => return Err(error),
//! }
//! # Ok::<(), ClientError>(())
//! ```
#![forbid(unsafe_code)]

#[cfg(feature = "tokio")]
pub mod asynchronous;
mod client;
pub mod packet;
mod refusal;
mod wire;

pub use client::{Client, ClientError, Fetched};
pub use refusal::{Blocker, Owner, Refusal};
pub use wire::{
    FdInfo, FdKind, Iova, MAX_ANSWER_BYTES, MAX_ANSWER_FDS, MAX_FDS, MAX_PACKET_BYTES, NodeInfo,
    NodeKind, Reply, Request, VfToken, VfTokenInfo,
};

/// Where `berthd` listens unless told otherwise.
pub const SOCKET: &str = "/run/berth/handover.sock";
