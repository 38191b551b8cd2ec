//! The power goes in the middle of kernel work: the next start is on a machine whose devices are as
//! the host makes them, and what was reserved is reserved.

#[path = "core_support/mod.rs"]
mod core_support;
#[path = "daemon_support/mod.rs"]
mod daemon_support;

use std::{path::Path, sync::Arc, sync::atomic::Ordering};

use berth_host::{Host as _, sim::SimHost};
use berth_ownership::{Command, HolderProcess, Order, ReservationState};
use berth_proto::v1;
use berthd::{model::Meta, run::Daemon};
use core_support::{FREE, World, attach, operator, release, reserve};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Work {
    Attach,
    Detach,
    HandOver,
}

async fn start(dir: &Path, host: &SimHost) -> Daemon {
    let config = daemon_support::settings(dir, "", &["--host=sim"]);
    Daemon::start(&config, Arc::new(host.clone())).await.expect("it starts")
}

/// A reservation whose work was begun when the power went.
async fn cut_off(dir: &Path, work: Work) -> String {
    let host = SimHost::builtin("small").expect("a built-in topology");
    let daemon = start(dir, &host).await;
    let mut request = reserve("vm", FREE);
    if work == Work::HandOver {
        request.delivery = v1::Delivery::Node.into();
    }
    let id = daemon.service().reserve(&operator(), request).await.expect("reserved").id;
    if work == Work::Detach {
        daemon.service().attach(&operator(), attach(&id)).await.expect("attached");
    }
    daemon.stop().await;
    let world = World::open(&dir.join("state"), Arc::new(host)).await;
    world.executor.keep.store(true, Ordering::SeqCst);
    match work {
        Work::Attach => {
            let request = v1::AttachRequest { no_wait: true, ..attach(&id) };
            world.service.attach(&operator(), request).await.expect("begun");
        }
        Work::Detach => {
            let base = v1::DetachRequest::default();
            let request = v1::DetachRequest { id: id.clone(), no_wait: true, ..base };
            world.service.detach(&operator(), request).await.expect("begun");
        }
        Work::HandOver => {
            let process = HolderProcess::new(std::process::id(), 1);
            let command = Command::HandOver { order: Order::new(id.as_str()), process };
            world.ledger.submit(command, Meta::internal("fetch")).await.expect("begun");
        }
    }
    world.kill().await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_outlives_the_power_in_the_middle_of_its_work() {
    for work in [Work::Attach, Work::Detach, Work::HandOver] {
        let dir = tempfile::tempdir().expect("a directory");
        let id = cut_off(dir.path(), work).await;
        let host = SimHost::builtin("small").expect("a built-in topology");
        let daemon = start(dir.path(), &host).await;
        let service = daemon.service();
        let state = |id: &str| {
            let snapshot = service.snapshot();
            let record = snapshot.state.reservation(&id.into());
            record.map(|record| (record.state, record.detail.clone()))
        };
        let found = state(&id).map(|(state, _)| state);
        assert_eq!(found, Some(ReservationState::Reserved), "{work:?}: {:?}", state(&id));
        if work != Work::HandOver {
            service.attach(&operator(), attach(&id)).await.expect("it can be attached");
        }
        service.release(&operator(), release(&id)).await.expect("it can be released");
        let device = host.device(FREE.parse().expect("an address")).expect("a device");
        assert_eq!(device.driver, None, "{work:?}");
        daemon.stop().await;
    }
}

/// Beside [`FREE`].
const SIBLING: &str = "0000:00:06.1";
const OTHER: &str = "0000:00:06.2";

fn with(sibling: &str) -> SimHost {
    let host = SimHost::builtin("small").expect("a built-in topology");
    let (free, sibling) = (FREE.parse().expect("one"), sibling.parse().expect("another"));
    let why = host.device(free).expect("there").grouping;
    host.plug_beside(sibling, free, &why).expect("nothing is there");
    host
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_with_the_members_on_record_is_the_same_after_a_reboot_and_no_other_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let host = with(SIBLING);
    let daemon = start(dir.path(), &host).await;
    let request = v1::ReserveRequest { policy: v1::Policy::Group.into(), ..reserve("vm", FREE) };
    let id = daemon.service().reserve(&operator(), request).await.expect("reserved").id;
    host.unplug(SIBLING.parse().expect("an address")).expect("nobody has it");
    let rescan = || daemon.service().ledger().rescan(Meta::internal("test"));
    rescan().await.expect("scanned");
    daemon.stop().await;

    let alone = SimHost::builtin("small").expect("a built-in topology");
    for (host, state) in
        [(alone, ReservationState::Reserved), (with(OTHER), ReservationState::Lost)]
    {
        let daemon = start(dir.path(), &host).await;
        let snapshot = daemon.service().snapshot();
        let record = snapshot.state.reservation(&id.as_str().into()).expect("on record");
        assert_eq!(record.state, state, "{}", record.detail);
        daemon.stop().await;
    }
}
