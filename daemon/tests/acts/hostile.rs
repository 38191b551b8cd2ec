//! Peers of the hand-over socket that don't play by the rules: they are told so or dropped, and
//! everybody else is served.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    time::Instant,
};

use berth_ownership::{Delivery, Policy, ReservationState};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        SocketAddrUnix, SocketFlags, SocketType, connect, recv, send, sendmsg, socket_with,
    },
};

use crate::{
    book::PATIENCE,
    handover::{client, desk},
    world::{Ask, id},
};

const FETCH: &[u8] = br#"{"op":"fetch","reservation":"r-1"}"#;

fn connected(path: &Path) -> OwnedFd {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::SEQPACKET, flags, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

fn answer(socket: &OwnedFd) -> String {
    let mut buffer = vec![0; 32 * 1024];
    let (got, _) = recv(socket, buffer.as_mut_slice(), RecvFlags::empty()).unwrap();
    String::from_utf8(buffer[..got].to_vec()).unwrap()
}

fn with_many(socket: &OwnedFd, count: usize) {
    let null = std::fs::File::open("/dev/null").unwrap();
    let many = vec![null.as_fd(); count];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(count))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
    sendmsg(socket, &[IoSlice::new(FETCH)], &mut control, SendFlags::empty()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn half_messages_and_too_many_descriptors_are_refused_and_nothing_is_recorded() {
    let desk = desk();
    let ask = Ask::new("r-1", Policy::Exclusive, &["0000:00:06.0"]).delivery(Delivery::Unbound);
    desk.world.reserve(&ask).unwrap();
    let path = desk.path.clone();
    let talk = move || {
        let socket = connected(&path);
        let mut answers = Vec::new();
        let (first, second) = FETCH.split_at(FETCH.len() / 2);
        for half in [first, second] {
            send(&socket, half, SendFlags::empty()).unwrap();
            answers.push(answer(&socket));
        }
        // More than a fetch takes, more than a request may have, as many as the kernel sends.
        for count in [2, 9, 253] {
            with_many(&socket, count);
            answers.push(answer(&socket));
        }
        answers
    };
    let answers = tokio::task::spawn_blocking(talk).await.unwrap();
    assert_eq!(answers.len(), 5);
    assert!(answers.iter().all(|it| it.contains("INVALID_ARGUMENT")), "{answers:#?}");
    assert_eq!(desk.world.state("r-1"), ReservationState::Reserved);
    desk.world.check();
    assert_eq!(client(&desk.path, |client| client.fetch("r-1", 0)).await.unwrap().fds.len(), 2);
    assert_eq!(desk.world.state("r-1"), ReservationState::Handed);
}

/// It asks and asks, and leaves every answer unread.
#[tokio::test(flavor = "multi_thread")]
async fn who_never_reads_is_dropped_and_keeps_nobody_waiting() {
    let desk = desk();
    let ask = Ask::new("r-1", Policy::Exclusive, &["0000:00:06.0"]).delivery(Delivery::Unbound);
    desk.world.reserve(&ask).unwrap();
    let path = desk.path.clone();
    let deaf = move || {
        let socket = connected(&path);
        let (flags, deadline) =
            (SendFlags::DONTWAIT | SendFlags::NOSIGNAL, Instant::now() + PATIENCE);
        let mut was_full = false;
        while Instant::now() < deadline {
            match send(&socket, FETCH, flags) {
                Ok(_) => {}
                Err(Errno::AGAIN) => {
                    was_full = true;
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                Err(Errno::PIPE | Errno::CONNRESET) => return was_full,
                Err(other) => panic!("{other}"),
            }
        }
        panic!("it was never dropped");
    };
    let deaf = tokio::task::spawn_blocking(deaf);
    desk.world.book.wait_for("its fetch", |state| {
        state.reservation(&id("r-1")).unwrap().state == ReservationState::Handed
    });
    // Served while the other one's answers wait.
    assert!(!deaf.is_finished());
    let served = client(&desk.path, |client| client.fetch("r-1", 0)).await.unwrap();
    assert_eq!(served.fds.len(), 2);
    drop(served);
    assert!(deaf.await.unwrap(), "its answers never filled the socket");
    desk.world.release("r-1").unwrap();
    desk.world.check_given_back();
}
