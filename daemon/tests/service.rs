//! The API's calls, on a simulated host: who may, what is refused, what a repeated call answers.

mod core_support;

use std::sync::atomic::Ordering;

use berth_ownership::Reason;
use berth_proto::v1;
use berthd::model::{IntentKind, Role};
use core_support::{
    FREE, PATIENCE, World, attach, caller, operator, pci, release, reserve, small, topology,
};
use futures::StreamExt as _;

fn with_id(id: &str, request: v1::ReserveRequest) -> v1::ReserveRequest {
    v1::ReserveRequest { request_id: id.to_owned(), ..request }
}

async fn world() -> (tempfile::TempDir, World) {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    (dir, world)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_is_reserved_attached_and_given_back() {
    let (_dir, world) = world().await;
    let (service, me) = (&world.service, operator());
    let held = service.reserve(&me, reserve("vm-a", FREE)).await.expect("reserved");
    assert_eq!(held.state(), v1::reservation::State::Reserved);
    assert_eq!((held.label.as_str(), held.token.as_str()), ("uid:0", held.id.as_str()));
    let group = service
        .get_group(&me, v1::GetGroupRequest { group: FREE.to_owned() })
        .await
        .expect("the group");
    assert_eq!((group.owner_cnt, group.ownership()), (0, v1::owner::Kind::Free), "a hold");
    assert_eq!(group.reservations, [held.id.as_str()]);

    let held = service.attach(&me, attach(&held.id)).await.expect("attached");
    assert_eq!(held.state(), v1::reservation::State::Held);
    assert_eq!(held.claims.len(), 1);
    let group = service
        .get_group(&me, v1::GetGroupRequest { group: group.stable_id })
        .await
        .expect("the group");
    assert_eq!((group.owner_cnt, group.ownership()), (1, v1::owner::Kind::Exclusive));
    assert_eq!(group.owner.expect("an owner").holder, "vm-a");

    let gone = service.release(&me, release(&held.id)).await.expect("released");
    assert_eq!(gone.state(), v1::reservation::State::Released);
    assert_eq!(gone.given_back[0].reset(), v1::given_back::Reset::Verified);
    let listed =
        service.list_reservations(&me, v1::ListReservationsRequest {}).await.expect("the list");
    assert!(listed.reservations.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_limit_what_callers_may() {
    let (_dir, world) = world().await;
    let service = &world.service;
    for role in [Role::Viewer, Role::Holder] {
        let refused = service.reserve(&caller(7, role), reserve("a", FREE)).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::PermissionDenied, "{role}");
        assert!(!refused.refusal().resolve.is_empty());
    }
    let orchestrator = caller(7, Role::Orchestrator);
    let mut request = reserve("a", FREE);
    request.for_identity = "uid:60001".to_owned();
    let held = service.reserve(&orchestrator, request).await.expect("reserved");
    assert_eq!(held.label, "uid:60001");
    assert_eq!(held.holder.expect("a holder").requester, "uid:7");

    let stranger = caller(60002, Role::Holder);
    let refused = service.attach(&stranger, attach(&held.id)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::NotForYou);
    let viewer = caller(60001, Role::Viewer);
    let refused = service.attach(&viewer, attach(&held.id)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::PermissionDenied);
    let holder = caller(60001, Role::Holder);
    service.attach(&holder, attach(&held.id)).await.expect("its own");
    let forced = v1::ReleaseRequest { force: true, ..release(&held.id) };
    let refused = service.release(&holder, forced.clone()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::PermissionDenied);
    service.release(&orchestrator, forced).await.expect("who asked for it may");

    let cordon = v1::CordonRequest { device: Some(pci(FREE)), ..Default::default() };
    let refused = service.cordon(&orchestrator, cordon).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::PermissionDenied);
    let anyway = v1::ReserveRequest {
        take_from_host: true,
        host_uses_it_anyway: true,
        ..reserve("a", FREE)
    };
    let refused = service.reserve(&orchestrator, anyway).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_gets_the_same_answer() {
    let (dir, world) = world().await;
    let me = operator();
    let request = with_id("one", reserve("vm-a", FREE));
    let first = world.service.reserve(&me, request.clone()).await.expect("reserved");
    let again = world.service.reserve(&me, request.clone()).await.expect("the same answer");
    assert_eq!(first, again);
    let other = with_id("one", reserve("vm-b", FREE));
    let refused = world.service.reserve(&me, other).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::RequestIdReused);
    let waits = v1::ReserveRequest { wait_ms: 5, ..request.clone() };
    assert_eq!(world.service.reserve(&me, waits).await.expect("the same"), first);
    // Another caller's ids are its own.
    let refused = world.service.reserve(&caller(7, Role::Operator), request.clone()).await;
    assert_eq!(refused.unwrap_err().reason(), Reason::GroupOwned);

    world.service.release(&me, release(&first.id)).await.expect("released");
    assert_eq!(world.service.reserve(&me, request.clone()).await.expect("still"), first);
    let host = world.kill().await;
    let world = World::open(dir.path(), host).await;
    // With the first id that a daemon gets it learns of all that the store has.
    world.service.reserve(&me, with_id("two", reserve("vm-b", FREE))).await.expect("a new call");
    assert_eq!(world.service.reserve(&me, request).await.expect("after a restart"), first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_repeated_while_its_work_goes_on_waits_for_the_same_work() {
    let (_dir, world) = world().await;
    world.executor.keep.store(true, Ordering::SeqCst);
    let me = operator();
    let request = with_id("one", reserve("vm-a", FREE));
    let quick = v1::ReserveRequest { no_wait: true, ..request.clone() };
    let first = world.service.reserve(&me, quick).await.expect("recorded");
    assert_eq!(
        (first.state(), first.pending.as_str()),
        (v1::reservation::State::Preparing, "prepare")
    );
    let service = world.service.clone();
    let waits = tokio::spawn(async move { service.reserve(&operator(), request).await });
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert!(!waits.is_finished());
    world.executor.go_on().await;
    let done = tokio::time::timeout(PATIENCE, waits).await.expect("in time").expect("no panic");
    let done = done.expect("prepared");
    assert_eq!(done.id, first.id, "one reservation");
    assert_eq!(done.state(), v1::reservation::State::Reserved);
    assert_eq!(world.ledger.snapshot().state.reservations().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_work_is_a_refusal_and_stays_one() {
    let (_dir, world) = world().await;
    let me = operator();
    world.executor.fail.lock().expect("no panic").push(IntentKind::Prepare);
    let request = with_id("one", reserve("vm-a", FREE));
    let refused = world.service.reserve(&me, request.clone()).await.unwrap_err();
    assert_eq!((refused.reason(), refused.refusal().errno), (Reason::KernelRefused, 16));
    let again = world.service.reserve(&me, request).await.unwrap_err();
    assert_eq!(refused, again);

    let held = world.service.reserve(&me, reserve("vm-a", FREE)).await.expect("free again");
    world.executor.fail.lock().expect("no panic").push(IntentKind::Attach);
    let refused = world.service.attach(&me, attach(&held.id)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::KernelRefused);
    let get = v1::GetReservationRequest { id: held.id.clone() };
    let shown = world.service.get_reservation(&me, get.clone()).await.expect("there");
    assert_eq!(shown.state(), v1::reservation::State::Reserved);
    assert_eq!(shown.last_failure.expect("kept").reason, "KERNEL_REFUSED");
    world.service.attach(&me, attach(&held.id)).await.expect("the next try");
    let shown = world.service.get_reservation(&me, get).await.expect("there");
    assert_eq!(shown.last_failure, None, "a new order forgets the old failure");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wait_that_ends_early_shows_what_goes_on() {
    let (_dir, world) = world().await;
    world.executor.keep.store(true, Ordering::SeqCst);
    let request = v1::ReserveRequest { wait_ms: 20, ..reserve("vm-a", FREE) };
    let shown = world.service.reserve(&operator(), request).await.expect("recorded");
    assert_eq!(shown.pending, "prepare");
    let busy = world.service.attach(&operator(), attach(&shown.id)).await.unwrap_err();
    assert_eq!(busy.reason(), Reason::ReservationBusy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_changes_nothing() {
    let (_dir, world) = world().await;
    let seq = world.ledger.snapshot().seq;
    let request = v1::ReserveRequest { dry_run: true, ..reserve("vm-a", FREE) };
    let shown = world.service.reserve(&operator(), request.clone()).await.expect("it would do");
    assert!(shown.detail.contains("dry run"));
    assert_eq!(world.ledger.snapshot().seq, seq);
    world.service.reserve(&operator(), reserve("vm-b", FREE)).await.expect("reserved");
    let refused = world.service.reserve(&operator(), request).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::GroupOwned);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn input_errors_name_the_field_and_the_way_out() {
    let (_dir, world) = world().await;
    let good = || reserve("vm-a", FREE);
    let cases: Vec<(&str, v1::ReserveRequest)> = vec![
        ("holder", v1::ReserveRequest { holder: String::new(), ..good() }),
        ("policy", v1::ReserveRequest { policy: 0, ..good() }),
        ("policy", v1::ReserveRequest { policy: 99, ..good() }),
        ("groups", v1::ReserveRequest { devices: Vec::new(), ..good() }),
        ("groups", v1::ReserveRequest { groups: vec!["2".to_owned()], ..good() }),
        ("devices", v1::ReserveRequest { devices: vec![pci("../../etc")], ..good() }),
        ("for_identity", v1::ReserveRequest { for_identity: "root".to_owned(), ..good() }),
        ("label", v1::ReserveRequest { label: "a b".to_owned(), ..good() }),
        ("ttl_ms", v1::ReserveRequest { ttl_ms: 1, ..good() }),
        ("delivery", v1::ReserveRequest { delivery: 99, ..good() }),
        ("backend", v1::ReserveRequest { backend: 99, ..good() }),
        ("host_uses_it_anyway", v1::ReserveRequest { host_uses_it_anyway: true, ..good() }),
        ("request_id", v1::ReserveRequest { request_id: "x".repeat(200), ..good() }),
    ];
    for (field, request) in cases {
        let refused = world.service.reserve(&operator(), request).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::InvalidArgument, "{field}: {refused}");
        assert!(refused.refusal().message.contains(field), "{field}: {refused}");
        assert!(!refused.refusal().resolve.is_empty(), "{field}");
    }
    let on_type1 = v1::ReserveRequest {
        delivery: v1::Delivery::Unbound.into(),
        backend: v1::Backend::Type1.into(),
        ..good()
    };
    let refused = world.service.reserve(&operator(), on_type1).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::BackendCannot);
    assert!(refused.refusal().resolve[0].contains("--delivery node"), "{refused}");
    assert_eq!(world.ledger.snapshot().state.reservations().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_chosen_by_class_on_one_node() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), topology("gpu-server")).await;
    let class = |count: u32| v1::ClassSelector {
        class: "gpu".to_owned(),
        count,
        ..v1::ClassSelector::default()
    };
    let request = |class| v1::ReserveRequest {
        holder: "vm-a".to_owned(),
        class: Some(class),
        policy: v1::Policy::Exclusive.into(),
        take_from_host: true,
        ..v1::ReserveRequest::default()
    };
    let me = operator();
    let held = world.service.reserve(&me, request(class(3))).await.expect("three of eight");
    let snapshot = world.ledger.snapshot();
    let nodes: std::collections::BTreeSet<i32> = held
        .targets
        .iter()
        .flat_map(|target| &target.devices)
        .map(|device| match device.kind.as_ref().expect("an address") {
            v1::device_address::Kind::Pci(pci) => {
                snapshot.device(pci.parse().expect("in full")).expect("there").numa_node
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(held.targets.len(), 3);
    assert_eq!(nodes.len(), 1, "on one node: {nodes:?}");
    let refused = world.service.reserve(&me, request(class(200))).await.unwrap_err();
    assert!(refused.refusal().message.contains("may be had"), "{refused}");
    let none = v1::ClassSelector { class: "0880".to_owned(), ..class(1) };
    let refused = world.service.reserve(&me, request(none)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_without_claims_lapses() {
    let (_dir, world) = world().await;
    let request = v1::ReserveRequest { ttl_ms: 1000, ..reserve("vm-a", FREE) };
    let held = world.service.reserve(&operator(), request).await.expect("reserved");
    assert!(held.expires_at.is_some());
    let ends = std::time::Instant::now() + PATIENCE;
    loop {
        world.ledger.expire_due().await;
        let get = v1::GetReservationRequest { id: held.id.clone() };
        let shown = world.service.get_reservation(&operator(), get).await.expect("remembered");
        if shown.state() == v1::reservation::State::Released {
            break;
        }
        assert!(std::time::Instant::now() < ends, "never lapsed: {shown:?}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    world.service.reserve(&operator(), reserve("vm-b", FREE)).await.expect("free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_sees_every_change_once_from_where_it_left_off() {
    let (_dir, world) = world().await;
    let me = operator();
    let held = world.service.reserve(&me, reserve("vm-a", FREE)).await.expect("reserved");
    let since = v1::WatchRequest { since_seq: Some(0), object: String::new() };
    let mut stream = Box::pin(world.service.watch(&me, since).await.expect("a stream"));
    world.service.release(&me, release(&held.id)).await.expect("released");
    let last = world.ledger.snapshot().seq;
    let mut seen = 0;
    while seen < last {
        let event = tokio::time::timeout(PATIENCE, stream.next()).await.expect("in time");
        let event = event.expect("no end").expect("no error");
        let event = event.record();
        assert_eq!(event.seq, seen + 1);
        seen = event.seq;
    }
    let late = v1::WatchRequest { since_seq: Some(last + 5), object: String::new() };
    assert!(world.service.watch(&me, late).await.is_err(), "the future can't be watched from");

    let only = v1::WatchRequest { since_seq: Some(0), object: held.id.clone() };
    let mut stream = Box::pin(world.service.watch(&me, only).await.expect("a stream"));
    let first = stream.next().await.expect("no end").expect("no error");
    let first = first.record();
    assert_eq!((&*first.kind, &first.reservation), ("reservation.created", &held.id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_names_what_blocks_and_what_does_not() {
    let (_dir, world) = world().await;
    let snapshot = world.ledger.snapshot();
    let mounted = snapshot
        .devices()
        .find(|device| snapshot.uses_of(device.address).iter().any(|one| one.kind == "mount"))
        .expect("small has a mounted disk");
    let request = v1::ExplainRequest { object: mounted.address.to_string(), ..Default::default() };
    let shown = world.service.explain(&operator(), request).await.expect("explained");
    let disk = shown
        .devices
        .iter()
        .find(|verdict| verdict.device.as_ref().is_some_and(|device| !device.is_bridge))
        .expect("the disk");
    assert!(disk.blocks && disk.text.contains("mount"), "{}", disk.text);
    assert!(disk.resolve.contains("umount"), "{}", disk.resolve);
    assert!(shown.policies.iter().all(|verdict| !verdict.may));

    let request = v1::ExplainRequest { object: "0000:02:01.0".to_owned(), ..Default::default() };
    let shown = world.service.explain(&operator(), request).await.expect("explained");
    let bridge = shown
        .devices
        .iter()
        .find(|verdict| verdict.device.as_ref().is_some_and(|device| device.is_bridge))
        .expect("the bridge");
    assert!(!bridge.blocks && bridge.text.contains("doesn't block"), "{}", bridge.text);
    let may: Vec<bool> = shown.policies.iter().map(|verdict| verdict.may).collect();
    assert_eq!(may, [false, true, true], "exclusive needs a group of one: {}", shown.summary);
    let refusal = shown.policies[0].refusal.as_ref().expect("why not");
    assert_eq!(
        (refusal.reason.as_str(), refusal.errno_name.as_str()),
        ("GROUP_NOT_SINGLETON", "EINVAL")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shared_domain_is_joined_by_presenting_it() {
    let (_dir, world) = world().await;
    let me = operator();
    let share = |holder: &str, device: &str, domain: &str| v1::ReserveRequest {
        policy: v1::Policy::Shared.into(),
        domain: domain.to_owned(),
        ..reserve(holder, device)
    };
    let made = world.service.create_domain(&me, v1::CreateDomainRequest::default()).await;
    let made = made.expect("a domain in a new context");
    let first = world.service.reserve(&me, share("a", "0000:02:01.0", &made.id)).await;
    let first = first.expect("the first presents it");
    assert_eq!(first.domain, made.id);
    let other = world.service.reserve(&me, share("b", "0000:02:02.0", "")).await.unwrap_err();
    assert_eq!(other.reason(), Reason::DomainMismatch, "{other}");
    let second = world.service.reserve(&me, share("b", "0000:02:02.0", &made.id)).await;
    let second = second.expect("the same domain joins");
    for id in [&first.id, &second.id] {
        world.service.attach(&me, attach(id)).await.expect("attached");
    }
    let get = v1::GetDomainRequest { id: made.id.clone() };
    let shown = world.service.get_domain(&me, get).await.expect("there");
    assert_eq!(shown.claims.len(), 2);
    let delete = v1::DeleteDomainRequest { id: made.id.clone(), ..Default::default() };
    let refused = world.service.delete_domain(&me, delete.clone()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::DomainInUse);
    for id in [&first.id, &second.id] {
        world.service.release(&me, release(id)).await.expect("released");
    }
    world.service.delete_domain(&me, delete).await.expect("nobody uses it");
    let left = world.service.list_domains(&me, v1::ListDomainsRequest {}).await.expect("a list");
    assert!(left.domains.is_empty() && left.contexts.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_request_stays_refused_so_that_a_late_attempt_does_nothing() {
    let (_dir, world) = world().await;
    let me = operator();
    let held = world.service.reserve(&me, reserve("vm-a", FREE)).await.expect("reserved");
    let request = with_id("late", reserve("vm-b", FREE));
    let refused = world.service.reserve(&me, request.clone()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::GroupOwned);
    world.service.release(&me, release(&held.id)).await.expect("released");
    let again = world.service.reserve(&me, request).await.unwrap_err();
    assert_eq!(refused, again, "the same request, the same answer");
    let other = with_id("late", reserve("vm-c", FREE));
    let reused = world.service.reserve(&me, other).await.unwrap_err();
    assert_eq!(reused.reason(), Reason::RequestIdReused);
    let fresh = with_id("new", reserve("vm-b", FREE));
    world.service.reserve(&me, fresh).await.expect("a new request");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_is_renewed_within_the_bounds_that_it_was_given_in() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let me = operator();
    let asked = v1::ReserveRequest { ttl_ms: 60_000, ..reserve("vm", FREE) };
    let held = world.service.reserve(&me, asked).await.expect("reserved");
    for ttl_ms in [1, 999, u64::MAX] {
        let other = v1::ReserveRequest { ttl_ms, ..reserve("other", "0000:00:05.0") };
        let reserved = world.service.reserve(&me, other).await.unwrap_err();
        let request = v1::RenewRequest { id: held.id.clone(), ttl_ms, ..Default::default() };
        let renewed = world.service.renew(&me, request).await.unwrap_err();
        assert_eq!(renewed.reason(), Reason::InvalidArgument, "{renewed}");
        assert_eq!(renewed, reserved, "the same error for both");
    }
    let request = v1::RenewRequest { id: held.id, ttl_ms: 90_000, ..Default::default() };
    let renewed = world.service.renew(&me, request).await.expect("renewed");
    assert_eq!(renewed.ttl_ms, 90_000);
}
