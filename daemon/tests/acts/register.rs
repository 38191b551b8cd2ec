//! Memory that clients register: what is taken, what is refused, and what ends with whom.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use berth_handover::{Client, ClientError, Request};
use berth_ownership::{Backend, Delivery, Policy};
use berthd::acts::Records as _;
use berthd::model::{DomainNow, Executor as _};
use rustix::fs::{Mode, OFlags, SealFlags};

use crate::{
    handover::{Desk, attached, client, desk, memory, reason, sealed},
    world::Ask,
};

const DEVICE: &str = "0000:00:06.0";

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_registered_for_held_and_unmapped_at_the_end() {
    for backend in [Backend::Iommufd, Backend::Type1] {
        let desk = desk();
        let mut ask = Ask::new("r-1", Policy::Exclusive, &[DEVICE]).backend(backend);
        ask.memory_bytes = 1 << 20;
        attached(&desk, &ask);
        let fetched = client(&desk.path, |client| client.fetch("r-1", 0)).await.unwrap();
        assert!(fetched.fds.is_empty(), "held hands nothing over");
        let answers = client(&desk.path, |client| {
            let whole = sealed(1 << 20);
            let at = client.register("r-1", &whole, 0, 0x4000, Some(0x10_0000)).unwrap();
            let any = client.register("r-1", &whole, 0x4000, 0x4000, None).unwrap();
            let refused = [
                reason(client.register("r-1", memory(0x1000), 0, 0x1000, None)),
                reason(client.register("r-1", &whole, 0, 0x4000, Some(0x10_0000))),
                reason(client.register("r-1", &whole, 0, 0x1001, None)),
                reason(client.register("r-1", sealed(1 << 21), 0, 1 << 21, None)),
                reason(client.unregister("r-1", 0x10_0000, 0x1000)),
                reason(client.unregister("r-1", 0x20_0000, 0x4000)),
            ];
            assert_eq!(client.unregister("r-1", any, 0x4000).unwrap(), 0x4000);
            (at, refused)
        })
        .await;
        assert_eq!(answers.0, 0x10_0000);
        let [unsealed, overlap, odd, budget, cut, none] = answers.1;
        assert_eq!(unsealed, "INVALID_ARGUMENT");
        assert_eq!(overlap, "INVALID_ARGUMENT");
        assert_eq!(odd, "INVALID_ARGUMENT");
        assert_eq!(budget, "MEMLOCK_LIMIT");
        assert_eq!((cut.as_str(), none.as_str()), ("NOT_FOUND", "NOT_FOUND"));
        desk.world.detach("r-1").unwrap();
        let late = client(&desk.path, |client| {
            reason(client.register("r-1", sealed(0x1000), 0, 0x1000, None))
        });
        assert_eq!(late.await, "NOT_ATTACHED");
        desk.world.release("r-1").unwrap();
        desk.world.check_given_back();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_on_and_on_is_served_as_long_as_the_socket_is() {
    let desk = desk();
    attached(&desk, &Ask::new("r-1", Policy::Exclusive, &[DEVICE]));
    let rounds = Arc::new(AtomicUsize::new(0));
    let done = Arc::clone(&rounds);
    let asking = client(&desk.path, move |client| {
        let memory = sealed(0x1000);
        loop {
            let registered = client.register("r-1", &memory, 0, 0x1000, Some(0x10_0000));
            let ended = registered.and_then(|at| client.unregister("r-1", at, 0x1000));
            if let Err(error) = ended {
                return error;
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
    });
    let closing = async {
        while rounds.load(Ordering::Relaxed) < 50 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        desk.close();
    };
    let both = async { tokio::join!(asking, closing) };
    let (error, ()) = tokio::time::timeout(Duration::from_secs(60), both).await.expect("cut off");
    assert!(matches!(error, ClientError::Closed | ClientError::Socket { .. }), "{error}");
}

/// The one domain, as its viewers see it.
fn seen(desk: &Desk) -> DomainNow {
    let snapshot = desk.world.book.snapshot();
    let domain = snapshot.state.domains().next().expect("a domain").id.clone();
    desk.world.engine.domain(&domain).expect("it is open")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_mapped_and_pinned_is_seen_with_its_latencies() {
    for backend in [Backend::Iommufd, Backend::Type1] {
        let desk = desk();
        let mut ask = Ask::new("r-1", Policy::Exclusive, &[DEVICE]).backend(backend);
        ask.memory_bytes = 1 << 20;
        attached(&desk, &ask);
        let empty = seen(&desk);
        assert!(!empty.ranges.is_empty(), "known once a device is attached");
        assert_eq!((empty.mappings, empty.mapped_bytes, empty.pinned_bytes), (0, 0, 0));
        let at = client(&desk.path, |client| {
            client.fetch("r-1", 0).unwrap();
            let whole = sealed(1 << 20);
            client.register("r-1", &whole, 0, 0x4000, Some(0x10_0000)).unwrap();
            reason(client.register("r-1", &whole, 0, 0x4000, Some(0x10_0000)));
            client.register("r-1", &whole, 0x4000, 0x3000, None).unwrap()
        });
        let at = at.await;
        let full = seen(&desk);
        assert_eq!((full.mappings, full.mapped_bytes, full.pinned_bytes), (2, 0x7000, 0x7000));
        let latencies = full.latencies;
        assert_eq!((latencies.map.count(), latencies.unmap.count()), (3, 0), "one was refused");
        client(&desk.path, move |client| client.unregister("r-1", at, 0x3000).unwrap()).await;
        assert_eq!((seen(&desk).mappings, seen(&desk).latencies.unmap.count()), (1, 1));
        desk.world.detach("r-1").unwrap();
        let left = seen(&desk);
        assert_eq!((left.mappings, left.pinned_bytes), (0, 0), "they end with the attachment");
        let all = desk.world.engine.dma_latencies().expect("an engine counts");
        assert_eq!((all.map.count(), all.unmap.count()), (3, 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_without_stated_memory_pins_little() {
    let desk = desk();
    attached(&desk, &Ask::new("r-1", Policy::Exclusive, &[DEVICE]));
    let answers = client(&desk.path, |client| {
        let memory = sealed(16 << 20);
        [
            reason(client.register("r-1", &memory, 0, 8 << 20, None)),
            reason(client.register("r-1", &memory, 8 << 20, 0x1000, None)),
        ]
    });
    assert_eq!(answers.await, ["ok", "MEMLOCK_LIMIT"]);
}

/// The same memory, open in another way.
fn reopened(memory: &OwnedFd, flags: OFlags) -> OwnedFd {
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn register(client: &Client, memory: &OwnedFd, write: bool) -> String {
    let request = Request::Register {
        reservation: "r-1".to_owned(),
        iova: None,
        length_bytes: 0x1000,
        offset: 0,
        write,
        read: true,
    };
    reason(client.ask(&request, &[memory.as_fd()]))
}

/// A device writes where the one who asks for it could, and nowhere else.
#[tokio::test(flavor = "multi_thread")]
async fn memory_that_the_client_may_not_write_is_not_written_for_it() {
    for backend in [Backend::Iommufd, Backend::Type1] {
        let desk = desk();
        attached(&desk, &Ask::new("r-1", Policy::Exclusive, &[DEVICE]).backend(backend));
        client(&desk.path, |client| {
            let memory = sealed(0x1000);
            let reading = reopened(&memory, OFlags::RDONLY);
            assert_eq!(register(&client, &reading, true), "INVALID_ARGUMENT");
            assert_eq!(register(&client, &reading, false), "ok");
            let writing = reopened(&memory, OFlags::WRONLY);
            assert_eq!(register(&client, &writing, true), "INVALID_ARGUMENT");
            assert_eq!(register(&client, &writing, false), "INVALID_ARGUMENT");
            assert_eq!(register(&client, &memory, true), "ok");
            for seal in [SealFlags::FUTURE_WRITE, SealFlags::WRITE] {
                let memory = sealed(0x1000);
                rustix::fs::fcntl_add_seals(&memory, seal).unwrap();
                assert_eq!(register(&client, &memory, true), "INVALID_ARGUMENT");
                assert_eq!(register(&client, &memory, false), "ok");
            }
            let zeroes = reopened(&memory, OFlags::RDWR);
            rustix::fs::ftruncate(&zeroes, 0).expect_err("sealed: the pages stay");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn registrations_are_bounded_in_number() {
    let desk = desk();
    let mut ask = Ask::new("r-1", Policy::Exclusive, &[DEVICE]);
    ask.memory_bytes = 1 << 30;
    attached(&desk, &ask);
    client(&desk.path, |client| {
        let memory = sealed(0x1000);
        for _ in 0..4096 {
            client.register("r-1", &memory, 0, 0x1000, None).unwrap();
        }
        let error = client.register("r-1", &memory, 0, 0x1000, Some(0x4000_0000)).unwrap_err();
        assert!(error.to_string().contains("4096 registrations"), "{error}");
        let at = client.register("r-1", &memory, 0, 0x1000, None).expect_err("full").to_string();
        assert!(at.starts_with("MEMLOCK_LIMIT"), "{at}");
    })
    .await;
    desk.world.detach("r-1").unwrap();
    desk.world.attach("r-1").unwrap();
    client(&desk.path, |client| client.register("r-1", sealed(0x1000), 0, 0x1000, None))
        .await
        .unwrap();
}

/// Two clients of one domain can't take each other's addresses, and what one leaves behind the
/// other never notices.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_one_domain_stay_out_of_each_others_way() {
    for backend in [Backend::Iommufd, Backend::Type1] {
        let desk = desk();
        let shared = |name, device| {
            let ask = Ask::new(name, Policy::Shared, device).backend(backend);
            ask.delivery(Delivery::Held)
        };
        attached(&desk, &shared("r-1", &["0000:02:01.0"]));
        attached(&desk, &shared("r-2", &["0000:02:02.0"]).domain("d-r-1"));
        client(&desk.path, |client| {
            let (mine, yours) = (sealed(0x4000), sealed(0x4000));
            client.register("r-1", &mine, 0, 0x4000, Some(0x10_0000)).unwrap();
            for at in [0x0f_f000, 0x10_0000, 0x10_3000] {
                let overlap = client.register("r-2", &yours, 0, 0x4000, Some(at)).unwrap_err();
                assert!(overlap.to_string().contains("overlaps"), "{overlap}");
            }
            assert_eq!(reason(client.unregister("r-2", 0x10_0000, 0x4000)), "NOT_FOUND");
            client.register("r-2", &yours, 0, 0x4000, Some(0x10_4000)).unwrap();
        })
        .await;
        desk.world.release("r-1").unwrap();
        client(&desk.path, |client| {
            let memory = sealed(0x4000);
            let freed = client.register("r-2", &memory, 0, 0x4000, Some(0x10_0000));
            assert_eq!(freed.expect("it ended with its reservation"), 0x10_0000);
            client.unregister("r-2", 0x10_4000, 0x4000).expect("that of the other one is there");
        })
        .await;
        desk.world.release("r-2").unwrap();
        desk.world.check_given_back();
    }
}
