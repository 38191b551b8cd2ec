//! Packets of the hand-over: what is accepted is written again as it was meant.

use berth_handover::{MAX_PACKET_BYTES, Refusal, Reply, Request, packet};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair};
use serde::{Serialize, de::DeserializeOwned};

/// Checks a packet as both ends read it.
pub(crate) fn check(bytes: &[u8]) {
    if let Some(request) = same_again::<Request>(bytes) {
        assert!(bytes.len() > request.reservation().len());
        travels(&serde_json::to_vec(&request).expect("JSON"));
    }
    same_again::<Reply>(bytes);
    same_again::<Refusal>(bytes);
    travels(bytes);
}

/// What is read, if it is one: written and read again it is the same, to the byte.
fn same_again<T>(bytes: &[u8]) -> Option<T>
where
    T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug,
{
    let meant: T = match serde_json::from_slice(bytes) {
        Ok(meant) => meant,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return None;
        }
    };
    let written = serde_json::to_vec(&meant).expect("JSON");
    let again: T = serde_json::from_slice(&written).expect("what was written is read");
    assert_eq!(again, meant);
    assert_eq!(serde_json::to_vec(&again).expect("JSON"), written);
    Some(meant)
}

/// A packet arrives as it was sent, or is said to be too long.
fn travels(bytes: &[u8]) {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("a pair");
    packet::send(&ours, bytes, &[], SendFlags::empty()).expect("sent");
    match packet::receive(&theirs, RecvFlags::empty(), packet::REQUEST).expect("received") {
        packet::Received::Packet(found, fds) => {
            assert!(fds.is_empty() && bytes.len() <= MAX_PACKET_BYTES);
            assert_eq!(found, bytes);
        }
        packet::Received::TooMuch(_) => assert!(bytes.len() > MAX_PACKET_BYTES),
        packet::Received::End => assert!(bytes.is_empty()),
    }
}
