//! Packets that nobody meant, many and random: each is refused or ends its own connection, nothing is
//! recorded for it, and whoever means it is served all the while.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use berth_handover::Client;
use berth_ownership::{Delivery, Policy, ReservationState};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        SocketAddrUnix, SocketFlags, SocketType, connect, recv, sendmsg, socket_with, sockopt,
    },
};

use crate::{
    book::PATIENCE,
    handover::desk,
    world::{Ask, World},
};

/// Packets that each connection of a run sends, and connections.
const PACKETS: u64 = 40;
const RUNS: u64 = 60;

fn one<'a, T: ?Sized>(dice: &mut StdRng, of: &[&'a T]) -> &'a T {
    of[dice.random_range(0..of.len())]
}

const MEANT: &[&str] = &[
    r#"{"op":"fetch","reservation":"r-2","epoch":7}"#,
    r#"{"op":"register","reservation":"r-2","iova":"0x100000","lengthBytes":4096,"offset":0}"#,
    r#"{"op":"unregister","reservation":"r-2","iova":"0x100000","lengthBytes":4096}"#,
    r#"{"op":"show-token","reservation":"r-2"}"#,
];

const ODD: &[&str] = &[
    "",
    "{",
    "[]",
    "null",
    "\u{0}",
    "{}",
    r#"{"op":1}"#,
    r#"{"op":"fetch"}"#,
    r#"{"op":"no"}"#,
    r#"{"op":"fetch","reservation":"../../etc/passwd"}"#,
    r#"{"op":"fetch","reservation":"r-2","epoch":-1}"#,
    r#"{"op":"register","reservation":"r-2","iova":"0xffffffffffffffffff","lengthBytes":1}"#,
    r#"{"op":"register","reservation":"r-2","lengthBytes":18446744073709551615,"offset":1}"#,
];

/// A packet: bytes at random, something odd, or what is meant with some bytes changed or cut off.
fn packet(dice: &mut StdRng) -> Vec<u8> {
    match dice.random_range(0..5) {
        0 => {
            let length = dice.random_range(0..200);
            (0..length).map(|_| dice.random::<u8>()).collect()
        }
        1 => one(dice, ODD).as_bytes().to_vec(),
        2 => {
            let depth = dice.random_range(0..3000_usize);
            format!("{}{}", "[".repeat(depth), "]".repeat(depth)).into_bytes()
        }
        3 => {
            let mut bytes = one(dice, MEANT).as_bytes().to_vec();
            bytes.truncate(dice.random_range(0..bytes.len()));
            bytes
        }
        _ => {
            let mut bytes = one(dice, MEANT).as_bytes().to_vec();
            for _ in 0..=dice.random_range(0..4) {
                let at = dice.random_range(0..bytes.len());
                bytes[at] ^= 1 << dice.random_range(0..8);
            }
            // Larger than a packet may be, sometimes.
            if dice.random_range(0..8) == 0 {
                bytes.resize(dice.random_range(0..40_000_usize).max(1), b' ');
            }
            bytes
        }
    }
}

fn connected(path: &Path) -> OwnedFd {
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let socket = socket_with(family, SocketType::SEQPACKET, flags, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let limit = Some(Duration::from_millis(200));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, limit).unwrap();
    socket
}

/// Sends it with as many descriptors; false when the connection is over.
fn sent(socket: &OwnedFd, bytes: &[u8], fds: usize) -> bool {
    let null = std::fs::File::open("/dev/null").unwrap();
    let many = vec![null.as_fd(); fds];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds.max(1)))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if fds > 0 {
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
        Ok(_) | Err(Errno::AGAIN | Errno::MSGSIZE | Errno::TOOMANYREFS) => true,
        Err(Errno::PIPE | Errno::CONNRESET) => false,
        Err(other) => panic!("{other}"),
    }
}

/// One connection's worth of it. Answers are read or not, and none of them says yes.
fn throw(path: &Path, seed: u64) {
    let mut dice = StdRng::seed_from_u64(seed);
    let socket = connected(path);
    let reads = dice.random_range(0..3) > 0;
    let mut buffer = vec![0; 64 * 1024];
    for _ in 0..PACKETS {
        let fds = [0, 0, 0, 1, 2, 8, 9, 40][dice.random_range(0..8_usize)];
        if !sent(&socket, &packet(&mut dice), fds) {
            return;
        }
        if reads && let Ok((got, _)) = recv(&socket, buffer.as_mut_slice(), RecvFlags::empty()) {
            let text = String::from_utf8_lossy(&buffer[..got]);
            assert!(got == 0 || text.contains(r#""ok":false"#), "seed {seed}: {text}");
        }
    }
}

fn hold(world: &World) {
    let ask = |name, device: &'static [&'static str]| {
        Ask::new(name, Policy::Exclusive, device).delivery(Delivery::Unbound)
    };
    world.reserve(&ask("r-1", &["0000:00:06.0"])).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_packets_change_nothing_while_who_means_it_is_served() {
    let desk = desk();
    hold(&desk.world);
    let (path, over) = (desk.path.clone(), std::sync::Arc::new(AtomicBool::new(false)));
    let (good, ends) = (path.clone(), std::sync::Arc::clone(&over));
    let served = tokio::task::spawn_blocking(move || {
        let client = Client::connect(&good).unwrap();
        client.wait_at_most(PATIENCE).unwrap();
        let mut rounds = 0;
        while rounds == 0 || !ends.load(Ordering::SeqCst) {
            assert_eq!(client.fetch("r-1", 0).unwrap().fds.len(), 2);
            rounds += 1;
        }
        rounds
    });
    for batch in 0..RUNS / 6 {
        let throws = (0..6).map(|at| {
            let path = path.clone();
            tokio::task::spawn_blocking(move || throw(&path, batch * 6 + at + 1))
        });
        for thrown in throws.collect::<Vec<_>>() {
            thrown.await.unwrap();
        }
    }
    over.store(true, Ordering::SeqCst);
    let rounds = served.await.unwrap();
    println!("{} packets, {rounds} fetches meanwhile", RUNS * PACKETS);
    assert_eq!(desk.world.state("r-1"), ReservationState::Handed);
    let snapshot = berthd::acts::Records::snapshot(&*desk.world.book);
    assert_eq!(snapshot.state.reservations().count(), 1, "something was recorded");
    desk.world.check();
    let served =
        tokio::task::spawn_blocking(move || Client::connect(&path).unwrap().fetch("r-1", 0));
    assert_eq!(served.await.unwrap().unwrap().fds.len(), 2);
}
