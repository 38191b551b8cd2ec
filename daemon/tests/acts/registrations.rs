//! Memory of clients: what may be registered, how much of it, and that clients who share a domain
//! can't hurt each other.

use std::io::{Read as _, Write as _};

use berth_handover::{Client, ClientError, Refusal};
use berth_ownership::{Backend, Delivery, Policy};
use berthd::acts::Records as _;
use rustix::io::Errno;

use crate::{
    handover::{Desk, client, desk, memory, reason, sealed, spawn_child},
    world::{Ask, World, id},
};

const PAIR: [&str; 2] = ["0000:02:01.0", "0000:02:02.0"];

fn cases() -> impl Iterator<Item = (Backend, Delivery)> {
    let both = [Delivery::Held, Delivery::Bound];
    both.into_iter().flat_map(|it| [(Backend::Iommufd, it), (Backend::Type1, it)])
}

/// Two reservations in one domain.
fn shared(backend: Backend, delivery: Delivery) -> Desk {
    let desk = desk();
    let ask = |name, at: &'static [&'static str]| {
        let mut ask = Ask::new(name, Policy::Shared, at).backend(backend).delivery(delivery);
        ask.memory_bytes = 1 << 20;
        ask
    };
    let world: &World = &desk.world;
    world.reserve(&ask("r-1", &PAIR[..1])).unwrap();
    world.attach("r-1").unwrap();
    world.reserve(&ask("r-2", &PAIR[1..]).domain("d-r-1")).unwrap();
    world.attach("r-2").unwrap();
    desk
}

fn refusal(answer: Result<u64, ClientError>) -> Refusal {
    match answer {
        Err(ClientError::Refused(refusal)) => *refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_be_truncated_is_refused_and_what_is_registered_cannot_be() {
    for (backend, delivery) in cases() {
        let desk = shared(backend, delivery);
        client(&desk.path, move |client: Client| {
            let loose = memory(0x4000);
            let refused = refusal(client.register("r-1", &loose, 0, 0x4000, Some(0x10_0000)));
            assert_eq!(refused.reason, "INVALID_ARGUMENT", "{backend} {delivery}");
            assert!(refused.resolve[0].contains("F_SEAL_SHRINK"), "{:?}", refused.resolve);
            let kept = sealed(0x4000);
            client.register("r-1", &kept, 0, 0x4000, Some(0x10_0000)).unwrap();
            assert_eq!(rustix::fs::ftruncate(&kept, 0x1000), Err(Errno::PERM));
            // Past its end there is nothing to register.
            let past = client.register("r-1", &kept, 0x4000, 0x1000, None);
            assert_eq!(reason(past), "INVALID_ARGUMENT");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_of_one_reservation_and_its_numbers_are_told() {
    for (backend, delivery) in cases() {
        let desk = shared(backend, delivery);
        client(&desk.path, move |client: Client| {
            let all = sealed(1 << 20);
            client.register("r-1", &all, 0, 1 << 20, Some(0x100_0000)).unwrap();
            let refused = refusal(client.register("r-1", &all, 0, 0x1000, None));
            assert_eq!(refused.reason, "MEMLOCK_LIMIT", "{backend} {delivery}");
            for number in ["may register 1048576", "has 1048576", "asks for 4096"] {
                assert!(refused.message.contains(number), "{}", refused.message);
            }
            // The other's is not used by that.
            client.register("r-2", &all, 0, 1 << 20, Some(0x200_0000)).unwrap();
            client.unregister("r-1", 0x100_0000, 1 << 20).unwrap();
            client.register("r-1", &all, 0, 0x1000, None).unwrap();
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registrations_are_counted() {
    const MOST: u64 = 4096;
    let desk = shared(Backend::Type1, Delivery::Held);
    client(&desk.path, |client: Client| {
        let small = sealed(0x1000);
        // More bytes than it may have, if they were other bytes: the limit is by what is mapped.
        let most = (1 << 20) / 0x1000;
        for at in 0..most {
            client.register("r-1", &small, 0, 0x1000, Some(0x100_0000 + at * 0x1000)).unwrap();
        }
        assert_eq!(reason(client.register("r-1", &small, 0, 0x1000, None)), "MEMLOCK_LIMIT");
    })
    .await;
    let desk = crate::handover::desk();
    let mut ask = Ask::new("r-1", Policy::Exclusive, &["0000:00:06.0"]);
    ask.memory_bytes = 1 << 30;
    desk.world.reserve(&ask).unwrap();
    desk.world.attach("r-1").unwrap();
    client(&desk.path, |client: Client| {
        let small = sealed(0x1000);
        for at in 0..MOST {
            client.register("r-1", &small, 0, 0x1000, Some(0x100_0000 + at * 0x1000)).unwrap();
        }
        let refused = refusal(client.register("r-1", &small, 0, 0x1000, None));
        assert_eq!(
            (refused.reason.as_str(), refused.errno_name.as_str()),
            ("MEMLOCK_LIMIT", "ENOSPC")
        );
        assert!(refused.message.contains("may have 4096"), "{}", refused.message);
        client.unregister("r-1", 0x100_0000, 0x1000).unwrap();
        client.register("r-1", &small, 0, 0x1000, None).unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlap_of_two_clients_is_refused_and_changes_nothing() {
    for (backend, delivery) in cases() {
        let desk = shared(backend, delivery);
        client(&desk.path, move |client: Client| {
            let kept = sealed(0x4000);
            client.register("r-1", &kept, 0, 0x4000, Some(0x10_0000)).unwrap();
            for at in [0x10_0000, 0x0f_d000, 0x10_3000] {
                let answer = client.register("r-2", sealed(0x4000), 0, 0x4000, Some(at));
                assert_eq!(reason(answer), "INVALID_ARGUMENT", "{backend} {delivery} {at:#x}");
            }
            // Nor can one take away what is the other's.
            assert_eq!(reason(client.unregister("r-2", 0x10_0000, 0x4000)), "NOT_FOUND");
            assert_eq!(client.unregister("r-1", 0x10_0000, 0x4000).unwrap(), 0x4000);
        })
        .await;
    }
}

/// What a child process does: registers, says so, waits for the end of its input.
#[test]
fn child_client() {
    let Some(path) = std::env::var_os("BERTH_TEST_HANDOVER") else { return };
    let client = Client::connect(std::path::Path::new(&path)).unwrap();
    client.register("r-1", sealed(0x4000), 0, 0x4000, Some(0x10_0000)).unwrap();
    println!("holding");
    std::io::stdout().flush().unwrap();
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_client_takes_its_own_with_it_and_no_more() {
    for (backend, delivery) in cases() {
        let desk = shared(backend, delivery);
        let path = desk.path.clone();
        let child = || spawn_child(&path, "registrations::child_client");
        let mut child = tokio::task::block_in_place(child);
        let other = |client: Client| {
            client.register("r-2", sealed(0x4000), 0, 0x4000, Some(0x20_0000)).unwrap();
            reason(client.register("r-2", sealed(0x4000), 0, 0x4000, Some(0x10_0000)))
        };
        assert_eq!(client(&desk.path, other).await, "INVALID_ARGUMENT", "{backend} {delivery}");
        child.kill().unwrap();
        child.wait().unwrap();
        // Its addresses are free once it was seen.
        client(&desk.path, |client: Client| {
            let deadline = std::time::Instant::now() + crate::book::PATIENCE;
            let free = || client.register("r-2", sealed(0x4000), 0, 0x4000, Some(0x10_0000));
            while free().is_err() {
                assert!(std::time::Instant::now() < deadline, "it is registered for good");
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            assert_eq!(client.unregister("r-2", 0x20_0000, 0x4000).unwrap(), 0x4000);
        })
        .await;
        // Who only registers is no holder: the claims go on.
        let snapshot = desk.world.book.snapshot();
        assert_eq!(snapshot.state.reservation(&id("r-1")).unwrap().claims, 1);
    }
}
