//! The holder's `RLIMIT_MEMLOCK` at the hand-over.

use std::io::Read as _;

use berth_handover::ClientError;
use berth_host::sim::{Fault, Site};
use berth_ownership::{Backend, Delivery, Policy};
use berthd::acts::Records as _;
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, Resource, Rlimit, getrlimit, pidfd_open, setrlimit},
};

use crate::{
    handover::{client, desk, reason},
    world::{Ask, id},
};

const HANDED: [(Delivery, Backend); 5] = [
    (Delivery::Bound, Backend::Iommufd),
    (Delivery::Bound, Backend::Type1),
    (Delivery::Unbound, Backend::Iommufd),
    (Delivery::Node, Backend::Iommufd),
    (Delivery::Node, Backend::Type1),
];

/// The limit of this process, which fetches: lowered where there is none.
fn limit() -> u64 {
    let limit = getrlimit(Resource::Memlock);
    let current = limit.current.unwrap_or(8 << 20);
    setrlimit(Resource::Memlock, Rlimit { current: Some(current), ..limit }).unwrap();
    current
}

fn ask(delivery: Delivery, backend: Backend, memory_bytes: u64) -> Ask {
    let ask = Ask::new("r-1", Policy::Exclusive, &["0000:00:06.0"]);
    Ask { memory_bytes, ..ask.delivery(delivery).backend(backend) }
}

/// Whether the helper was asked shows in that it refuses.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_can_t_be_raised_is_told_with_the_numbers() {
    let stated = limit() + 4096;
    for (delivery, backend) in HANDED {
        let desk = desk();
        desk.world.reserve(&ask(delivery, backend, stated)).unwrap();
        if delivery == Delivery::Bound {
            desk.world.attach("r-1").unwrap();
        }
        let fetch = |epoch| client(&desk.path, move |client| client.fetch("r-1", epoch));
        desk.world.sim.fault(Fault::at(Site::Prlimit).errno(Errno::PERM));
        let Err(ClientError::Refused(refusal)) = fetch(0).await else {
            panic!("{delivery} on {backend} was handed over");
        };
        assert_eq!(refusal.reason, "MEMLOCK_LIMIT");
        for told in [std::process::id().to_string(), stated.to_string(), limit().to_string()] {
            assert!(refusal.message.contains(&told), "{told}: {refusal}");
        }
        assert!(refusal.resolve.iter().any(|way| way.contains("prlimit --pid")), "{refusal:?}");
        let snapshot = desk.world.book.snapshot();
        let record = snapshot.state.reservation(&id("r-1")).unwrap();
        assert_eq!(record.process, None, "{delivery} on {backend} is recorded as handed over");
        // An order that will be refused changes no limit.
        assert_eq!(reason(fetch(1).await), "STALE_EPOCH");
        desk.world.sim.clear_faults();
        assert_eq!(reason(fetch(0).await), "ok", "{delivery} on {backend}");
        desk.world.check();
    }
}

/// It is the holder's limit that counts, and not that of who fetches for it.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_of_a_named_process_is_looked_at() {
    let stated = limit();
    let desk = desk();
    desk.world.reserve(&ask(Delivery::Unbound, Backend::Iommufd, stated)).unwrap();
    let line = format!("ulimit -S -l {}; echo ready; exec sleep 600", stated / 1024 / 2);
    let mut named = std::process::Command::new("sh");
    let mut named = named.args(["-c", &line]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    named.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let pid = Pid::from_raw(i32::try_from(named.id()).unwrap()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let fetch = |pidfd: std::os::fd::OwnedFd| {
        client(&desk.path, move |client| client.fetch_for("r-1", 0, pidfd))
    };
    desk.world.sim.fault(Fault::at(Site::Prlimit).errno(Errno::PERM));
    let Err(ClientError::Refused(refusal)) = fetch(pidfd.try_clone().unwrap()).await else {
        panic!("its limit was not looked at");
    };
    assert_eq!(refusal.reason, "MEMLOCK_LIMIT");
    for told in [named.id().to_string(), (stated / 1024 / 2 * 1024).to_string()] {
        assert!(refusal.message.contains(&told), "{told}: {refusal}");
    }
    desk.world.sim.clear_faults();
    assert_eq!(reason(fetch(pidfd).await), "ok");
    named.kill().unwrap();
    named.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_left_alone_where_nothing_more_is_needed() {
    // Nothing is stated; what is stated may be locked already; nothing is mapped by the holder.
    let all = HANDED.into_iter().flat_map(|(d, b)| [(d, b, 0), (d, b, limit())]);
    for (delivery, backend, stated) in all.chain([(Delivery::Held, Backend::Iommufd, u64::MAX)]) {
        let desk = desk();
        desk.world.reserve(&ask(delivery, backend, stated)).unwrap();
        if matches!(delivery, Delivery::Bound | Delivery::Held) {
            desk.world.attach("r-1").unwrap();
        }
        desk.world.sim.fault(Fault::at(Site::Prlimit).errno(Errno::PERM));
        let fetched = client(&desk.path, |client| client.fetch("r-1", 0)).await;
        assert_eq!(reason(fetched), "ok", "{delivery} on {backend}, {stated}");
        desk.world.check();
    }
}
