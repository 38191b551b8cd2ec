//! The ledger and the store: what was answered is durable, a restart changes nothing.

mod core_support;

use std::{sync::atomic::Ordering, time::Duration};

use berth_host::{
    Act, Host as _, PciAddress,
    sim::{Fault, Site},
};
use berth_ownership::{Command, DeviceId, Reason};
use berth_proto::v1::owner::Kind;
use berthd::{
    ledger::{self, LedgerConfig},
    model::{Baseline, Meta, StepNote},
};
use core_support::{FREE, PATIENCE, World, attach, operator, release, reserve, small, topology};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rustix::io::Errno;
use sqlx::{ConnectOptions as _, sqlite::SqliteConnectOptions};

async fn raw(dir: &std::path::Path) -> sqlx::SqliteConnection {
    SqliteConnectOptions::new().filename(dir.join("berth.db")).connect().await.expect("a database")
}

/// Everything that must survive, in words that can be compared.
fn all(world: &World) -> String {
    let snapshot = world.ledger.snapshot();
    format!(
        "{}\n{:?}\n{:?}\n{:?}\n{}",
        serde_json::to_string(&world.parts()).expect("plain data"),
        snapshot.extras,
        snapshot.baselines,
        snapshot.intents,
        snapshot.seq
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_time_changes_nothing_that_was_answered() {
    for seed in 0..12 {
        let dir = tempfile::tempdir().expect("a directory");
        let mut random = StdRng::seed_from_u64(seed);
        let mut world = World::open(dir.path(), topology("gpu-server")).await;
        for round in 0..4 {
            let orders = random.random_range(1..20);
            for _ in 0..orders {
                order(&world, &mut random).await;
            }
            if random.random_bool(0.3) {
                world.executor.keep.store(true, Ordering::SeqCst);
                order(&world, &mut random).await;
            }
            let before = all(&world);
            let host = world.kill().await;
            world = World::open(dir.path(), host).await;
            assert_eq!(before, all(&world), "seed {seed}, round {round}");
            for open in std::mem::take(&mut world.intents) {
                let snapshot = world.ledger.snapshot();
                let outcome = core_support::outcome_of(&open.intent, &snapshot, false);
                let meta = Meta::internal("reconcile");
                world.ledger.outcome(open.intent.id, outcome, meta).await.expect("open");
            }
        }
    }
}

/// Any order, allowed or not.
async fn order(world: &World, random: &mut StdRng) {
    let (service, me) = (&world.service, operator());
    let snapshot = world.ledger.snapshot();
    let devices: Vec<_> =
        snapshot.devices().filter(|device| !device.bridge).map(|device| device.address).collect();
    let ids: Vec<_> = snapshot.state.reservations().map(|record| record.id.to_string()).collect();
    let device = devices[random.random_range(0..devices.len())].to_string();
    let id = match ids.len() {
        0 => "r-000000000000".to_owned(),
        many => ids[random.random_range(0..many)].clone(),
    };
    let no_wait = world.executor.keep.load(Ordering::SeqCst);
    // Refusals are as good as anything here: they must change nothing.
    match random.random_range(0..8) {
        0..=2 => {
            let mut request = reserve("vm-a", &device);
            request.policy = random.random_range(1..=3);
            request.take_from_host = random.random_bool(0.5);
            request.no_wait = no_wait;
            request.ttl_ms = if random.random_bool(0.3) { 3_600_000 } else { 0 };
            request.request_id = format!("id-{}", random.random_range(0..40));
            drop(service.reserve(&me, request).await);
        }
        3 => drop(
            service.attach(&me, berth_proto::v1::AttachRequest { no_wait, ..attach(&id) }).await,
        ),
        4 | 5 => {
            drop(
                service
                    .release(&me, berth_proto::v1::ReleaseRequest { no_wait, ..release(&id) })
                    .await,
            );
        }
        6 => {
            let device = Some(core_support::pci(&device));
            let request = berth_proto::v1::CordonRequest { device, ..Default::default() };
            drop(service.cordon(&me, request).await);
        }
        _ => {
            let device = Some(core_support::pci(&device));
            let request = berth_proto::v1::UncordonRequest { device, ..Default::default() };
            drop(service.uncordon(&me, request).await);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_precedes_the_commit() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let mut other = raw(dir.path()).await;
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.expect("the write lock");
    let service = world.service.clone();
    let asked = tokio::spawn(async move { service.reserve(&operator(), reserve("a", FREE)).await });
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!asked.is_finished(), "answered while the commit could not happen");
    assert_eq!(world.ledger.snapshot().state.reservations().count(), 0, "published too early");
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.expect("unlocked");
    let answer = tokio::time::timeout(PATIENCE, asked).await.expect("in time").expect("no panic");
    let id = answer.expect("reserved").id;
    let rows = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM reservations WHERE id = ?")
        .bind(&id)
        .fetch_one(&mut other)
        .await
        .expect("a count");
    assert_eq!(rows, 1, "answered, so it is in the database");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_can_not_be_written_changes_nothing_and_keeps_serving_reads() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let before = all(&world);
    let mut other = raw(dir.path()).await;
    // Longer than the writer waits for the lock.
    sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.expect("the write lock");
    let refused = world.service.reserve(&operator(), reserve("a", FREE)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Unavailable, "{refused}");
    assert_eq!(before, all(&world));
    let request = berth_proto::v1::GetGroupRequest { group: FREE.to_owned() };
    world.service.get_group(&operator(), request).await.expect("reads need no store");
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.expect("unlocked");
    world.service.reserve(&operator(), reserve("a", FREE)).await.expect("writable again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_refuses_a_second_owner_by_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let held = world.service.reserve(&operator(), reserve("a", FREE)).await.expect("reserved");
    let group = &held.targets[0].group;
    let mut other = raw(dir.path()).await;
    let second =
        sqlx::query("INSERT INTO targets VALUES ('0000:ff:00.0', ?, 'r-rogue', 'r-rogue')")
            .bind(group)
            .execute(&mut other)
            .await
            .unwrap_err();
    assert!(second.to_string().contains("second owner"), "{second}");
    let same_device = sqlx::query("INSERT INTO targets VALUES (?, 'g-other', 'r-x', 'r-x')")
        .bind(FREE)
        .execute(&mut other)
        .await;
    assert!(same_device.is_err(), "one device, one reservation");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_daemon_per_state_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let second = ledger::open(LedgerConfig::new(dir.path()), small()).await.unwrap_err();
    assert!(second.to_string().contains("another berthd"), "{second}");
    let host = world.kill().await;
    World::open(dir.path(), host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_and_baselines_are_durable_until_the_intent_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    world.executor.keep.store(true, Ordering::SeqCst);
    let request = berth_proto::v1::ReserveRequest { no_wait: true, ..reserve("a", FREE) };
    let pending = world.service.reserve(&operator(), request).await.expect("recorded");
    assert_eq!(pending.pending, "prepare");
    let intent = world.executor.kept.lock().expect("no panic")[0].clone();
    let device = DeviceId::new(FREE);
    let baseline = |driver: &str| Baseline {
        device: device.clone(),
        driver: Some(driver.to_owned()),
        driver_override: None,
    };
    world.ledger.record_baselines(intent.id, vec![baseline("nvme")]).await.expect("open");
    world.ledger.record_baselines(intent.id, vec![baseline("vfio-pci")]).await.expect("open");
    for step in ["unbind", "bind"] {
        let note = StepNote { step: step.to_owned(), detail: FREE.to_owned() };
        world.ledger.note(intent.id, note).await.expect("open");
    }
    let host = world.kill().await;

    let world = World::open(dir.path(), host).await;
    let [open] = &world.intents[..] else { panic!("{:?}", world.intents) };
    assert_eq!(open.intent, intent);
    let steps: Vec<_> = open.steps.iter().map(|step| step.step.as_str()).collect();
    assert_eq!(steps, ["unbind", "bind"]);
    let kept = world.ledger.snapshot().baseline(&device).cloned().expect("a baseline");
    assert_eq!(kept.driver.as_deref(), Some("nvme"), "the first look counts");

    let failed = core_support::outcome_of(&intent, &world.ledger.snapshot(), true);
    let meta = Meta::internal("reconcile");
    world.ledger.outcome(intent.id, failed.clone(), meta.clone()).await.expect("open");
    assert!(world.ledger.snapshot().baseline(&device).is_none(), "restored, so forgotten");
    let again = world.ledger.outcome(intent.id, failed, meta).await.unwrap_err();
    assert_eq!(again.reason(), Reason::NoOperation);
    let host = world.kill().await;
    let world = World::open(dir.path(), host).await;
    assert!(world.intents.is_empty());
    assert!(world.ledger.snapshot().baselines.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_have_no_gaps_and_say_before_and_after() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let held = world.service.reserve(&operator(), reserve("a", FREE)).await.expect("reserved");
    world.service.attach(&operator(), attach(&held.id)).await.expect("attached");
    world.service.release(&operator(), release(&held.id)).await.expect("released");
    let events = world.ledger.store().events(0, 10_000, "").await.expect("events");
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event.seq, u64::try_from(at).expect("small") + 1);
        assert_eq!(&*event.boot_id, world.ledger.clock().boot_id().as_str());
    }
    let mine = world.ledger.store().events(0, 10_000, &held.id).await.expect("events");
    let kinds: Vec<&str> = mine.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(
        kinds,
        [
            "reservation.created",
            "reservation.prepared",
            "reservation.attaching",
            "reservation.attached",
            "reservation.releasing",
            "reservation.released"
        ]
    );
    assert_eq!(mine[0].before, None);
    for pair in mine.windows(2) {
        assert_eq!(pair[0].after, pair[1].before, "{} to {}", pair[0].kind, pair[1].kind);
    }
    assert!(mine[3].after.as_deref().is_some_and(|json| json.contains("\"HELD\"")));
    assert_eq!(mine[0].actor, "uid:0");
    assert_eq!(mine[0].cause, "reserve");
    assert_eq!(mine[0].devices, [FREE]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_events_go_and_their_readers_are_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = LedgerConfig { retain_events: 20, ..LedgerConfig::new(dir.path()) };
    let world = World::with(config, small()).await;
    for _ in 0..10 {
        let held = world.service.reserve(&operator(), reserve("a", FREE)).await.expect("reserved");
        world.service.release(&operator(), release(&held.id)).await.expect("released");
    }
    let oldest = world.ledger.store().oldest_seq().await.expect("a number");
    assert!(oldest > 2, "nothing was let go");
    let request =
        |since_seq| berth_proto::v1::ListEventsRequest { since_seq, ..Default::default() };
    let gone = world.service.list_events(&operator(), request(1)).await.unwrap_err();
    assert_eq!(gone.reason(), Reason::EventsCompacted);
    assert!(gone.to_string().contains(&oldest.to_string()), "names the oldest: {gone}");
    let kept = world.service.list_events(&operator(), request(0)).await.expect("from the oldest");
    assert_eq!(kept.events[0].seq, oldest);
    assert!(kept.events.len() >= 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_commands_stand_or_fall_together() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let before = all(&world);
    let commands = vec![
        Command::Cordon { device: DeviceId::new(FREE), why: "test".to_owned(), ttl_ms: None },
        Command::Cordon {
            device: DeviceId::new("0000:ff:1f.7"),
            why: "test".to_owned(),
            ttl_ms: None,
        },
    ];
    let refused = world.ledger.submit_all(commands, Meta::internal("test")).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::NotFound);
    assert_eq!(before, all(&world));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_whose_users_can_not_be_looked_at_is_free_on_the_kernels_word_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let sim = small();
    let world = World::open(dir.path(), sim.clone()).await;
    let device: PciAddress = FREE.parse().expect("an address");
    sim.perform(&Act::Bind { device, driver: "vfio-pci".to_owned() }).expect("bound");
    let number = sim.device(device).expect("there").group.expect("a group");
    let blind = || sim.fault(Fault::at(Site::WhoHolds).errno(Errno::ACCESS).always());
    let owner = async || {
        world.ledger.rescan(Meta::internal("test")).await.expect("a scan");
        let request = berth_proto::v1::GetGroupRequest { group: FREE.to_owned() };
        let group = world.service.get_group(&operator(), request).await.expect("the group");
        group.owner.expect("an owner").kind()
    };
    blind();
    assert_eq!(owner().await, Kind::Free, "the kernel says so");
    let rival = sim.foreign_open_group(number).expect("opened");
    assert_eq!(owner().await, Kind::Foreign, "nobody is seen, and the kernel knows better");
    let refused = world.service.reserve(&operator(), reserve("a", FREE)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::ForeignOwner, "{refused}");
    assert!(refused.to_string().contains("a process that berthd can't see"), "{refused}");
    sim.clear_faults();
    assert_eq!(owner().await, Kind::Foreign);
    drop(rival);
    assert_eq!(owner().await, Kind::Free);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_the_answer_of_its_request_id_also_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let held = world.service.reserve(&operator(), reserve("a", FREE)).await.expect("reserved");
    let again = || {
        let request_id = "once".to_owned();
        berth_proto::v1::ReserveRequest { request_id, ..reserve("b", FREE) }
    };
    let refused = world.service.reserve(&operator(), again()).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::GroupOwned, "{refused}");
    world.service.release(&operator(), release(&held.id)).await.expect("released");
    let host = world.kill().await;
    let world = World::open(dir.path(), host).await;
    let repeated = world.service.reserve(&operator(), again()).await.unwrap_err();
    assert_eq!(repeated, refused, "the same call has the same answer, though the group is free");
    let mut changed = again();
    changed.memory_bytes = 4096;
    let reused = world.service.reserve(&operator(), changed).await.unwrap_err();
    assert_eq!(reused.reason(), Reason::RequestIdReused, "{reused}");
    world.service.reserve(&operator(), reserve("b", FREE)).await.expect("a new call is new");
}
