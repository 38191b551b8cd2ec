//! Quotas: nobody has more than the configuration allows, however they ask.

mod core_support;
mod front_support;

use berth_handover::{Client, ClientError};
use berth_ownership::Reason;
use berth_proto::v1;
use berthd::{
    ledger::LedgerConfig,
    model::{Caller, Live, Quota, Quotas, Role, Who, Whom},
};
use core_support::{World, pci, release, small};
use front_support::Running;
use rustix::fs::{MemfdFlags, SealFlags};
use serde_json::{Value, json};

/// Each in a group of its own.
const FREE: [&str; 5] =
    ["0000:00:05.0", "0000:00:06.0", "0000:04:00.0", "0000:03:00.0", "0000:02:01.0"];

/// A reservation of one of them, whatever the host does with it.
fn reserve(holder: &str, device: &str) -> v1::ReserveRequest {
    v1::ReserveRequest {
        policy: v1::Policy::Group.into(),
        take_from_host: true,
        host_uses_it_anyway: true,
        ..core_support::reserve(holder, device)
    }
}

fn quotas(who: Whom, reservations: Option<u64>, pinned_bytes: Option<u64>) -> Live<Quotas> {
    let place = "berthd.toml:1".to_owned();
    Live::new(Quotas(vec![Quota { who, reservations, dma_entries: None, pinned_bytes, place }]))
}

async fn world(dir: &std::path::Path, quotas: Live<Quotas>) -> World {
    World::with(LedgerConfig { quotas, ..LedgerConfig::new(dir) }, small()).await
}

fn me() -> u32 {
    rustix::process::getuid().as_raw()
}

fn ask(device: &str) -> Value {
    json!({
        "holder": "vm1", "policy": "GROUP", "devices": [{"pci": device}],
        "takeFromHost": true, "hostUsesItAnyway": true,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quota_is_told_with_who_and_the_numbers() {
    let quota = format!("[[quota]]\nuid = {}\nreservations = 2\n", me());
    let running = Running::with(&quota).await;
    let mut ids = Vec::new();
    for device in &FREE[..2] {
        let made = running.unix("POST", "/api/v1/reservations", Some(&ask(device))).await;
        assert_eq!(made.status, 201, "{made:?}");
        ids.push(made.json()["id"].as_str().expect("an id").to_owned());
    }
    for dry_run in [true, false] {
        let mut more = ask(FREE[2]);
        more["dryRun"] = json!(dry_run);
        let refused = running.unix("POST", "/api/v1/reservations", Some(&more)).await;
        let problem = refused.problem();
        assert_eq!(problem["reason"], "QUOTA_EXCEEDED", "{problem}");
        assert_eq!((&problem["errno"], &problem["errnoName"]), (&json!(122), &json!("EDQUOT")));
        let text = problem["detail"].as_str().expect("text");
        for told in [&format!("uid:{}", me()), "2 reservations", "berthd.toml:1", "has 2"] {
            assert!(text.contains(told), "{told}: {text}");
        }
        assert!(problem["resolve"].to_string().contains("raised at"), "{problem}");
    }
    let shown = running.unix("GET", "/api/v1/quotas", None).await.json();
    let own = &shown["quotas"][0];
    assert_eq!(own["account"], format!("uid:{}", me()), "{shown}");
    let amount = json!({"resource": "reservations", "used": "2", "limit": "2"});
    assert_eq!(own["amounts"][0], amount, "{shown}");
    let path = format!("/api/v1/reservations/{}", ids[0]);
    assert_eq!(running.unix("DELETE", &path, None).await.status, 200);
    let again = running.unix("POST", "/api/v1/reservations", Some(&ask(FREE[2]))).await;
    assert_eq!(again.status, 201, "what was given back counts no more: {again:?}");
    running.daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_those_who_ask_at_once_only_as_many_pass_as_a_quota_has_room_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = world(dir.path(), quotas(Whom::Others, Some(3), None)).await;
    let asks = FREE.map(|device| {
        let service = world.service.clone();
        tokio::spawn(async move {
            let caller = Caller::unix(7, None, Role::Operator);
            service.reserve(&caller, reserve("vm", device)).await
        })
    });
    let mut refused = Vec::new();
    for asked in asks {
        refused.extend(asked.await.expect("no panic").err());
    }
    assert_eq!(refused.len(), 2, "{refused:?}");
    assert!(refused.iter().all(|error| error.reason() == Reason::QuotaExceeded), "{refused:?}");
    // Somebody else's are counted for themselves.
    let taken = world.parts().reservations;
    let free = FREE.iter().find(|device| {
        !taken.iter().any(|record| record.devices().any(|it| it.as_str() == **device))
    });
    let other = Caller::unix(8, None, Role::Operator);
    world.service.reserve(&other, reserve("vm", free.expect("one"))).await.expect("its first");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_forgets_nothing_of_what_is_used() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = world(dir.path(), quotas(Whom::Peer(Who::Uid(7)), Some(1), None)).await;
    let caller = Caller::unix(7, None, Role::Operator);
    let made = first.service.reserve(&caller, reserve("vm", FREE[0])).await.expect("the first");
    let host = first.kill().await;
    let quotas = quotas(Whom::Peer(Who::Uid(7)), Some(1), None);
    let config = LedgerConfig { quotas: quotas.clone(), ..LedgerConfig::new(dir.path()) };
    let second = World::with(config, host).await;
    let refused = second.service.reserve(&caller, reserve("vm", FREE[1])).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::QuotaExceeded, "{refused}");
    // What is raised counts at once.
    let mut raised = Quotas::clone(&quotas.get());
    raised.0[0].reservations = Some(2);
    quotas.set(raised);
    second.service.reserve(&caller, reserve("vm", FREE[1])).await.expect("there is room now");
    second.service.release(&caller, release(&made.id)).await.expect("released");
}

#[tokio::test(flavor = "multi_thread")]
async fn pinned_memory_is_summed_for_whom_it_is_and_for_the_label() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().expect("a directory");
    let world = world(dir.path(), quotas(Whom::Peer(Who::Uid(60_001)), None, Some(24 * MIB))).await;
    let asks = |device: &str, uid: u32, memory_bytes| v1::ReserveRequest {
        for_identity: format!("uid:{uid}"),
        memory_bytes,
        ..reserve("vm", device)
    };
    let caller = Caller::unix(0, None, Role::Operator);
    let service = &world.service;
    service.reserve(&caller, asks(FREE[0], 60_001, 10 * MIB)).await.expect("within");
    let refused = service.reserve(&caller, asks(FREE[1], 60_001, 20 * MIB)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::QuotaExceeded, "{refused}");
    assert!(refused.refusal().resolve[0].contains(&(14 * MIB).to_string()), "{refused:?}");
    service.reserve(&caller, asks(FREE[1], 60_002, 20 * MIB)).await.expect("another user");
    // What states no memory may register some all the same.
    service.reserve(&caller, asks(FREE[2], 60_001, 0)).await.expect("8 MiB");
    let refused = service.reserve(&caller, asks(FREE[3], 60_001, 0)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::QuotaExceeded, "{refused}");

    let quota = |who, bytes| quotas(who, None, Some(bytes)).get().0[0].clone();
    let both = [quota(Whom::Label("red".into()), 4 * MIB), quota(Whom::Others, 100 * MIB)];
    world.ledger.quotas().set(Quotas(both.to_vec()));
    let red =
        |device, uid| v1::ReserveRequest { label: "red".to_owned(), ..asks(device, uid, 3 * MIB) };
    service.reserve(&caller, red(FREE[3], 60_003)).await.expect("within");
    let refused = service.reserve(&caller, red(FREE[4], 60_004)).await.unwrap_err();
    assert!(refused.refusal().message.contains("label red"), "{refused}");
}

/// A memfd that can't shrink.
fn memory(bytes: u64) -> std::os::fd::OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = rustix::fs::memfd_create("quota", flags).expect("a memfd");
    rustix::fs::ftruncate(&memory, bytes).expect("grown");
    rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK).expect("sealed");
    memory
}

#[tokio::test(flavor = "multi_thread")]
async fn mappings_of_all_reservations_of_one_user_are_counted() {
    let quota = "[[quota]]\ndma_entries = 3\n";
    let running = Running::with(quota).await;
    let service = running.daemon.service();
    let operator = Caller::unix(me(), None, Role::Operator);
    let mut ids = Vec::new();
    for device in &FREE[..2] {
        let request = v1::ReserveRequest {
            delivery: v1::Delivery::Held.into(),
            memory_bytes: 1 << 20,
            devices: vec![pci(device)],
            ..reserve("vm", device)
        };
        let made = service.reserve(&operator, request).await.expect("free");
        let order = v1::AttachRequest { id: made.id.clone(), ..Default::default() };
        service.attach(&operator, order).await.expect("attached");
        ids.push(made.id);
    }
    let path = running.dir.path().join("handover.sock");
    let answers = tokio::task::spawn_blocking(move || {
        let client = Client::connect(&path).expect("it listens");
        let whole = memory(1 << 20);
        let map = |id: &str, at: u64| match client.register(id, &whole, at, 0x1000, None) {
            Ok(iova) => Ok(iova),
            Err(ClientError::Refused(refusal)) => {
                Err(format!("{}: {}", refusal.reason, refusal.message))
            }
            Err(error) => panic!("{error}"),
        };
        let first = map(&ids[0], 0).expect("the first");
        map(&ids[0], 0x1000).expect("the second");
        map(&ids[1], 0).expect("the third");
        let refused = map(&ids[1], 0x1000).expect_err("the fourth");
        assert_eq!(client.unregister(&ids[0], first, 0x1000).expect("it is there"), 0x1000);
        let map = |id: &str, at: u64| client.register(id, &whole, at, 0x1000, None);
        map(&ids[1], 0x1000).expect("there is room again");
        refused
    });
    let refused = answers.await.expect("no panic");
    assert!(refused.starts_with("QUOTA_EXCEEDED: "), "{refused}");
    assert!(refused.contains("3 mappings") && refused.contains("has 3"), "{refused}");
    let shown = running.unix("GET", "/api/v1/quotas", None).await.json();
    let amount = json!({"resource": "dma_entries", "used": "3", "limit": "3"});
    assert_eq!(shown["quotas"][0]["amounts"][1], amount, "{shown}");
    running.daemon.stop().await;
}
