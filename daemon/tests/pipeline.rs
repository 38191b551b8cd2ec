//! One batch is written while the next is decided on it: nothing leaves before what it rests on is
//! durable, and what can't be made durable takes all that rests on it along.

mod core_support;

use std::{path::Path, sync::atomic::Ordering, time::Duration};

use berth_ownership::{Command, DeviceId, Reason};
use berth_proto::v1;
use berthd::{
    ledger::{self, LedgerConfig, LedgerHandle, Opened},
    model::{AnswerOf, ApiError, Applied, Meta, RequestId},
    service::Service,
};
use core_support::{
    FREE, PATIENCE, World, operator, outcome_of, release, reserve, small, topology,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, SqliteConnection,
    sqlite::SqliteConnectOptions,
};
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::timeout};

/// Another free device of the topology `small`, alone in its group.
const OTHER: &str = "0000:00:05.0";

/// Long enough for what was asked to be decided, and far less than the writer waits for a lock.
const DECIDED: Duration = Duration::from_secs(1);

/// A second connection, which can keep the writer from writing.
struct Rival(SqliteConnection);

impl Rival {
    async fn new(dir: &Path) -> Self {
        let options = SqliteConnectOptions::new().filename(dir.join("berth.db"));
        Self(options.connect().await.expect("a database"))
    }

    async fn execute(&mut self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.0).await.expect(sql);
    }

    /// What is written from here on waits.
    async fn lock(&mut self) {
        self.execute("BEGIN IMMEDIATE").await;
    }

    async fn unlock(&mut self) {
        self.execute("COMMIT").await;
    }

    /// Batches with an event of this cause can't be written.
    async fn forbid(&mut self, cause: &str) {
        self.execute(&format!(
            "CREATE TRIGGER planted BEFORE INSERT ON events WHEN NEW.cause = '{cause}'
             BEGIN SELECT RAISE(ABORT, 'planted'); END"
        ))
        .await;
    }

    async fn allow(&mut self) {
        self.execute("DROP TRIGGER planted").await;
    }
}

type Asked<T> = JoinHandle<Result<T, ApiError>>;

async fn answer<T>(asked: Asked<T>) -> Result<T, ApiError> {
    timeout(PATIENCE, asked).await.expect("an answer in time").expect("no panic")
}

/// Waits until what was asked is decided, though not answered.
async fn decided<T>(asked: Asked<T>) -> Asked<T> {
    tokio::time::sleep(DECIDED).await;
    asked
}

fn ask_reserve(world: &World, request: v1::ReserveRequest) -> Asked<v1::Reservation> {
    let service = world.service.clone();
    tokio::spawn(async move { service.reserve(&operator(), request).await })
}

fn cordon(device: &str) -> Command {
    Command::Cordon { device: DeviceId::new(device), why: "test".to_owned(), ttl_ms: None }
}

fn submit(ledger: &LedgerHandle, command: Command, meta: Meta) -> Asked<Applied> {
    let ledger = ledger.clone();
    tokio::spawn(async move { ledger.submit(command, meta).await })
}

fn with_id(cause: &str, id: &str, device: &str) -> Meta {
    let request = RequestId {
        id: id.to_owned(),
        body: [7; 32],
        answer: AnswerOf::Device(DeviceId::new(device)),
    };
    Meta { request_id: Some(request), ..Meta::internal(cause) }
}

fn is_cordoned(world: &World, device: &str) -> bool {
    let snapshot = world.ledger.snapshot();
    let device = snapshot.state.device(&DeviceId::new(device)).expect("a device");
    !device.marks.is_empty()
}

/// Everything that a failed write must leave as it was.
fn all(world: &World) -> String {
    let snapshot = world.ledger.snapshot();
    let parts = serde_json::to_string(&world.parts()).expect("plain data");
    format!("{parts}\n{:?}\n{}", snapshot.intents, snapshot.seq)
}

/// A world, and a rival that doesn't let it write.
async fn locked() -> (TempDir, World, Rival) {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let mut rival = Rival::new(dir.path()).await;
    rival.lock().await;
    (dir, world, rival)
}

/// A call with a request id.
fn once() -> v1::ReserveRequest {
    v1::ReserveRequest { request_id: "once".into(), ..reserve("a", FREE) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaves_before_it_and_what_it_rests_on_is_durable() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    world.executor.keep.store(true, Ordering::SeqCst);
    let mut events = world.ledger.follow(world.ledger.snapshot().seq);
    let no_wait = |holder, device| v1::ReserveRequest { no_wait: true, ..reserve(holder, device) };
    let mut rival = Rival::new(dir.path()).await;
    rival.lock().await;
    let first = decided(ask_reserve(&world, no_wait("a", FREE))).await;
    let rest = [ask_reserve(&world, no_wait("b", OTHER)), ask_reserve(&world, no_wait("c", FREE))];
    tokio::time::sleep(DECIDED).await;
    assert!(!first.is_finished(), "answered before its commit");
    assert!(rest.iter().all(|asked| !asked.is_finished()), "answered before the commit before");
    assert_eq!(world.ledger.snapshot().state.reservations().count(), 0, "published too early");
    assert!(events.try_next().is_none(), "sent too early");
    assert!(world.executor.kept.lock().expect("no panic").is_empty(), "handed over too early");

    rival.unlock().await;
    let first = answer(first).await.expect("reserved");
    let [second, refused] = rest;
    let second = answer(second).await.expect("reserved");
    let refused = answer(refused).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::GroupOwned);
    assert!(refused.to_string().contains(&first.id), "it names the other one: {refused}");
    let sent: Vec<_> = std::iter::from_fn(|| events.try_next()).collect();
    assert!(
        sent.windows(2).all(|pair| pair[0].record().seq + 1 == pair[1].record().seq),
        "in order"
    );
    let created: Vec<&str> = sent.iter().map(|event| event.record().reservation.as_str()).collect();
    let created: Vec<&str> = created.into_iter().filter(|id| !id.is_empty()).collect();
    assert_eq!(created, [&first.id, &second.id]);
    let kept: Vec<_> = world.executor.kept.lock().expect("no panic").clone();
    let kept: Vec<String> =
        kept.iter().filter_map(|intent| Some(intent.reservation.as_ref()?.to_string())).collect();
    assert_eq!(kept, [first.id, second.id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_needs_no_commit_waits_for_the_one_that_it_rests_on() {
    let (_dir, world, mut rival) = locked().await;
    let first = decided(ask_reserve(&world, reserve("a", FREE))).await;
    let refused = decided(ask_reserve(&world, reserve("b", FREE))).await;
    assert!(!first.is_finished() && !refused.is_finished(), "answered before the commit");
    rival.unlock().await;
    answer(first).await.expect("reserved");
    assert_eq!(answer(refused).await.unwrap_err().reason(), Reason::GroupOwned);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_can_not_be_written_leaves_the_one_before_it_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let mut events = world.ledger.follow(world.ledger.snapshot().seq);
    let mut rival = Rival::new(dir.path()).await;
    rival.forbid("bad").await;
    rival.lock().await;
    let good = decided(submit(&world.ledger, cordon(FREE), Meta::internal("good"))).await;
    let bad = submit(&world.ledger, cordon(OTHER), Meta::internal("bad"));
    let with_it = decided(ask_reserve(&world, reserve("a", "0000:00:1c.0"))).await;
    rival.unlock().await;
    answer(good).await.expect("cordoned");
    assert_eq!(answer(bad).await.unwrap_err().reason(), Reason::Unavailable);
    assert_eq!(answer(with_it).await.unwrap_err().reason(), Reason::Unavailable);
    assert!(is_cordoned(&world, FREE) && !is_cordoned(&world, OTHER));
    let sent: Vec<_> = std::iter::from_fn(|| events.try_next()).collect();
    assert_eq!(
        sent.iter().map(|event| event.record().cause.as_str()).collect::<Vec<_>>(),
        ["good"]
    );
    let before = all(&world);

    rival.allow().await;
    let bad = submit(&world.ledger, cordon(OTHER), Meta::internal("bad"));
    let applied = answer(bad).await.expect("writable again");
    assert_eq!(applied.seq, sent[0].record().seq + 1, "the next number after what is durable");
    assert_ne!(before, all(&world));
    drop(rival);
    let host = world.kill().await;
    let world = World::open(dir.path(), host).await;
    assert!(is_cordoned(&world, FREE) && is_cordoned(&world, OTHER));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_can_not_be_written_takes_along_what_was_decided_on_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let before = all(&world);
    let mut rival = Rival::new(dir.path()).await;
    rival.forbid("bad").await;
    rival.lock().await;
    let ledger = &world.ledger;
    let bad = decided(submit(ledger, cordon(FREE), with_id("bad", "once", FREE))).await;
    let repeated = submit(ledger, cordon(FREE), with_id("bad", "once", FREE));
    let uncordon = Command::Uncordon { device: DeviceId::new(OTHER) };
    let uncordoned = submit(ledger, uncordon, with_id("test", "uncordoned", OTHER));
    let other = submit(ledger, cordon(OTHER), with_id("test", "other", OTHER));
    let taken = v1::ReserveRequest { request_id: "taken".into(), ..reserve("a", FREE) };
    let taken = decided(ask_reserve(&world, taken)).await;
    rival.unlock().await;
    for asked in [bad, repeated, uncordoned, other] {
        assert_eq!(answer(asked).await.unwrap_err().reason(), Reason::Unavailable);
    }
    // It is refused as the device is cordoned, which it never was.
    assert_eq!(answer(taken).await.unwrap_err().reason(), Reason::Unavailable);
    assert_eq!(before, all(&world), "back to what is durable");

    // None of the ids was ever used.
    rival.allow().await;
    let taken = v1::ReserveRequest { request_id: "taken".into(), ..reserve("a", FREE) };
    let held = answer(ask_reserve(&world, taken)).await.expect("a new call");
    world.service.release(&operator(), release(&held.id)).await.expect("released");
    for (device, id) in [(FREE, "once"), (OTHER, "uncordoned")] {
        let applied = answer(submit(ledger, cordon(device), with_id("bad", id, device))).await;
        assert_eq!(applied.expect("a new call").events.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_is_only_remembered_goes_with_its_batch() {
    let dir = tempfile::tempdir().expect("a directory");
    let world = World::open(dir.path(), small()).await;
    let ledger = &world.ledger;
    let unknown = |id: &str| submit(ledger, cordon("0000:ff:1f.7"), with_id("test", id, OTHER));
    // As many as the store keeps of one caller.
    let stored: Vec<_> = (0..4096).map(|number| unknown(&number.to_string())).collect();
    for asked in stored {
        assert_eq!(answer(asked).await.unwrap_err().reason(), Reason::NotFound);
    }
    let mut rival = Rival::new(dir.path()).await;
    rival.forbid("bad").await;
    rival.lock().await;
    let bad = decided(submit(ledger, cordon(FREE), Meta::internal("bad"))).await;
    let refused = decided(unknown("beyond")).await;
    rival.unlock().await;
    assert_eq!(answer(bad).await.unwrap_err().reason(), Reason::Unavailable);
    assert_eq!(answer(refused).await.unwrap_err().reason(), Reason::Unavailable);

    rival.allow().await;
    let again = submit(ledger, cordon(OTHER), with_id("test", "beyond", OTHER));
    answer(again).await.expect("a new call: it was never refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_finds_the_same_one_that_is_not_durable() {
    let (_dir, world, mut rival) = locked().await;
    let first = decided(ask_reserve(&world, once())).await;
    let again = ask_reserve(&world, once());
    let changed =
        decided(ask_reserve(&world, v1::ReserveRequest { memory_bytes: 4096, ..once() })).await;
    assert!(!first.is_finished() && !again.is_finished() && !changed.is_finished());
    rival.unlock().await;
    let first = answer(first).await.expect("reserved");
    assert_eq!(answer(again).await.expect("the same answer"), first);
    assert_eq!(answer(changed).await.unwrap_err().reason(), Reason::RequestIdReused);
    assert_eq!(world.ledger.snapshot().state.reservations().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_finds_how_its_work_ended_in_a_batch_that_is_not_durable() {
    for fails in [false, true] {
        let dir = tempfile::tempdir().expect("a directory");
        let world = World::open(dir.path(), small()).await;
        world.executor.keep.store(true, Ordering::SeqCst);
        let once = |no_wait| v1::ReserveRequest {
            request_id: "once".into(),
            no_wait,
            ..reserve("a", FREE)
        };
        let pending = world.service.reserve(&operator(), once(true)).await.expect("recorded");
        assert_eq!(pending.pending, "prepare");
        let intent = world.executor.kept.lock().expect("no panic")[0].clone();
        let outcome = outcome_of(&intent, &world.ledger.snapshot(), fails);
        let mut rival = Rival::new(dir.path()).await;
        rival.lock().await;
        let ledger = world.ledger.clone();
        let ended = tokio::spawn(async move {
            ledger.outcome(intent.id, outcome, Meta::internal("acts")).await
        });
        tokio::time::sleep(DECIDED).await;
        let again = decided(ask_reserve(&world, once(false))).await;
        assert!(!ended.is_finished() && !again.is_finished());
        rival.unlock().await;
        answer(ended).await.expect("an open intent");
        match answer(again).await {
            Ok(held) => {
                assert!(!fails);
                assert_eq!((held.id, held.pending.as_str()), (pending.id, ""));
            }
            Err(refused) => assert!(fails && refused.reason() == Reason::KernelRefused),
        }
    }
}

// On one thread, so that what is asked together is received together.
#[tokio::test]
async fn a_request_finds_the_same_one_that_became_durable_after_it_was_looked_up() {
    let (_dir, world, mut rival) = locked().await;
    let first = decided(ask_reserve(&world, once())).await;
    // More than a batch takes: the last of them are decided when the first one is durable, which
    // it wasn't when the store was asked about them.
    let unknown = || {
        let meta = Meta::internal("test");
        submit(&world.ledger, cordon("0000:ff:1f.7"), meta)
    };
    let mut others: Vec<_> = (0..1000).map(|_| unknown()).collect();
    tokio::time::sleep(DECIDED).await;
    others.extend((0..100).map(|_| unknown()));
    let again = decided(ask_reserve(&world, once())).await;
    rival.unlock().await;
    let first = answer(first).await.expect("reserved");
    assert_eq!(answer(again).await.expect("the same answer"), first);
    for other in others {
        assert_eq!(answer(other).await.unwrap_err().reason(), Reason::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_task_ends_after_its_last_write() {
    let dir = tempfile::tempdir().expect("a directory");
    let Opened { ledger, task, .. } =
        ledger::open(LedgerConfig::new(dir.path()), small()).await.expect("a store");
    ledger.rescan(Meta::internal("start")).await.expect("a scan");
    let mut rival = Rival::new(dir.path()).await;
    rival.lock().await;
    for (device, id) in [(FREE, "first"), (OTHER, "second")] {
        // A caller that goes away.
        let asked = decided(submit(&ledger, cordon(device), with_id("test", id, device))).await;
        asked.abort();
        assert!(asked.await.is_err_and(|ended| ended.is_cancelled()));
    }
    drop(ledger);
    tokio::time::sleep(DECIDED).await;
    assert!(!task.is_finished(), "ended while it writes");
    rival.unlock().await;
    rival.0.close().await.expect("closed");
    timeout(PATIENCE, task).await.expect("in time").expect("no panic");
    assert!(!dir.path().join("berth.db-wal").exists(), "the log is folded into the database");
    let world = World::open(dir.path(), small()).await;
    assert!(is_cordoned(&world, FREE) && is_cordoned(&world, OTHER));
}

/// What one client knows when the daemon is killed: its last reservation, and whether it is given
/// back; `None` when nobody was told.
type Last = Option<(String, Option<bool>)>;

/// Reserves a device and gives it back, again and again, until the ledger is gone.
async fn client(service: Service, device: String, round: u64) -> Last {
    let mut last = None;
    for number in 0.. {
        let request = v1::ReserveRequest {
            take_from_host: true,
            request_id: format!("{round}-{device}-{number}"),
            ..reserve("a", &device)
        };
        match service.reserve(&operator(), request).await {
            Ok(held) => last = Some((held.id, Some(false))),
            Err(error) if error.reason() == Reason::Unavailable => break,
            Err(_) => continue,
        }
        let Some((id, given_back)) = &mut last else { break };
        *given_back = service.release(&operator(), release(id)).await.is_ok().then_some(true);
        if given_back.is_none() {
            break;
        }
    }
    last
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_under_load_changes_nothing_that_was_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut random = StdRng::seed_from_u64(7);
    let mut world = World::open(dir.path(), topology("gpu-server")).await;
    let inventory = world.ledger.inventory();
    let alone = inventory.groups.iter().filter(|group| group.members.len() == 1);
    let devices: Vec<String> = alone.map(|group| group.members[0].to_string()).take(12).collect();
    assert!(devices.len() > 4, "too few groups of one device");
    let mut answers = 0;
    for round in 0..8 {
        let clients: Vec<_> = devices
            .iter()
            .map(|device| tokio::spawn(client(world.service.clone(), device.clone(), round)))
            .collect();
        tokio::time::sleep(Duration::from_millis(random.random_range(20..200))).await;
        let host = world.kill().await;
        let mut known = Vec::new();
        for client in clients {
            known.extend(timeout(PATIENCE, client).await.expect("in time").expect("no panic"));
        }
        answers += known.len();
        world = World::open(dir.path(), host).await;
        let snapshot = world.ledger.snapshot();
        for (id, given_back) in known {
            let record = snapshot.state.reservation(&id.as_str().into()).expect(&id);
            if let Some(given_back) = given_back {
                assert_eq!(record.holds(), !given_back, "round {round}: {id}");
            }
        }
        for open in std::mem::take(&mut world.intents) {
            let outcome = outcome_of(&open.intent, &world.ledger.snapshot(), false);
            let meta = Meta::internal("reconcile");
            world.ledger.outcome(open.intent.id, outcome, meta).await.expect("open");
        }
        let snapshot = world.ledger.snapshot();
        for left in snapshot.state.reservations().filter(|record| record.holds()) {
            let id = left.id.as_str();
            world.service.release(&operator(), release(id)).await.expect("released");
        }
    }
    assert!(answers > 8, "nobody was answered: {answers}");
}
