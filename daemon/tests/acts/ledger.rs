//! The engine over the real ledger and its SQLite file: what was answered survives, what was not
//! is finished or undone.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use berth_host::{
    Host, PciAddress,
    sim::{SimHost, Topology},
};
use berth_ownership::{Command, Order, Policy, ReservationState};
use berth_uapi::VfToken;
use berthd::{
    acts::{Engine, EngineConfig, LedgerRecords, Records},
    ledger::{self, LedgerConfig, LedgerHandle},
    model::{ApiError, Baseline, Executor, Intent, Meta, Outcome, Snapshot, StepNote},
    reconcile,
};
use sqlx::{Connection, SqliteConnection};

use crate::{
    book::PATIENCE,
    crash::{Crash, CrashHost},
    world::{Ask, World, at, id},
};

/// The ledger's end must not wait for an engine that waits for the ledger.
#[derive(Debug)]
struct Through(Weak<Engine>);

impl Executor for Through {
    fn submit(&self, intent: Intent, snapshot: Arc<Snapshot>) {
        if let Some(engine) = self.0.upgrade() {
            engine.submit(intent, snapshot);
        }
    }
}

/// The ledger up to the crash; what comes later is never heard.
#[derive(Debug)]
struct UpToCrash {
    records: LedgerRecords,
    crash: Arc<Crash>,
    full: Arc<Full>,
}

/// Makes the store unwritable once an outcome is to be recorded: somebody else has its lock, for
/// longer than the writer waits.
#[derive(Debug, Default)]
struct Full {
    armed: Mutex<Option<(tokio::runtime::Handle, SqliteConnection)>>,
    locked: Mutex<Option<SqliteConnection>>,
    refused: AtomicUsize,
}

impl Full {
    async fn arm(&self, dir: &Path) {
        let url = format!("sqlite://{}", dir.join("berth.db").display());
        let other = SqliteConnection::connect(&url).await.unwrap();
        *self.armed.lock().unwrap() = Some((tokio::runtime::Handle::current(), other));
    }

    fn begin(&self) {
        let Some((runtime, mut other)) = self.armed.lock().unwrap().take() else { return };
        let begun = sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other);
        runtime.block_on(begun).unwrap();
        *self.locked.lock().unwrap() = Some(other);
    }

    async fn has_room_again(&self) {
        let mut other = self.locked.lock().unwrap().take().unwrap();
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
    }
}

impl Records for UpToCrash {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.records.snapshot()
    }
    fn note(&self, intent: u64, step: StepNote) -> Result<(), ApiError> {
        self.crash.point("before a note");
        self.records.note(intent, step)
    }
    fn remember(&self, intent: u64, baseline: Baseline) -> Result<(), ApiError> {
        self.crash.point("before a baseline");
        self.records.remember(intent, baseline)
    }
    fn vf_token(&self, physical: PciAddress) -> Result<VfToken, ApiError> {
        self.crash.point("before a VF token");
        self.records.vf_token(physical)
    }
    fn outcome(&self, intent: u64, outcome: Outcome) -> Result<(), ApiError> {
        self.crash.point("before an outcome");
        self.full.begin();
        let recorded = self.records.outcome(intent, outcome);
        if recorded.is_err() {
            self.full.refused.fetch_add(1, Ordering::SeqCst);
        }
        recorded
    }
    fn command(&self, command: Command, cause: &str) -> Result<(), ApiError> {
        self.crash.point("before a command");
        self.records.command(command, cause)
    }
    fn carry_out(&self, command: Command, cause: &str) -> Result<bool, ApiError> {
        self.crash.point("before a command");
        self.records.carry_out(command, cause)
    }
    fn look(&self, cause: &str) -> Result<(), ApiError> {
        self.crash.point("before a look");
        self.records.look(cause)
    }
    fn changed(&self, devices: &[PciAddress]) -> Result<(), ApiError> {
        self.records.changed(devices)
    }
}

/// A daemon's core on one simulated machine and one state directory.
pub struct Core {
    ledger: LedgerHandle,
    engine: Arc<Engine>,
    report: reconcile::Report,
    task: tokio::task::JoinHandle<()>,
    crash: Arc<Crash>,
    full: Arc<Full>,
}

pub async fn start(sim: &SimHost, crash: &Arc<Crash>, dir: &Path) -> Core {
    let host: Arc<dyn Host> = Arc::new(CrashHost { sim: sim.clone(), crash: Arc::clone(crash) });
    let opened = ledger::open(LedgerConfig::new(dir), Arc::clone(&host)).await.unwrap();
    let ledger = opened.ledger.clone();
    let records = LedgerRecords::new(ledger.clone());
    let full = Arc::new(Full::default());
    let records = UpToCrash { records, crash: Arc::clone(crash), full: Arc::clone(&full) };
    let records = Arc::new(records);
    let engine = Arc::new(Engine::new(Arc::clone(&host), records, &EngineConfig::default()));
    ledger.rescan(Meta::internal("start")).await.unwrap();
    ledger.set_executor(Arc::new(Through(Arc::downgrade(&engine)))).unwrap();
    let (worker, intents, boot) = (Arc::clone(&engine), opened.intents, opened.previous_boot);
    let report = tokio::task::spawn_blocking(move || {
        reconcile::run(&worker, intents, boot.as_deref(), PATIENCE)
    })
    .await
    .unwrap();
    Core { ledger, engine, report, task: opened.task, crash: Arc::clone(crash), full }
}

impl Core {
    pub async fn order(&self, command: Command) -> Result<(), String> {
        let applied = self.ledger.submit(command, Meta::internal("test")).await;
        let applied = applied.map_err(|error| error.to_string())?;
        let Some(completion) = applied.completion else { return Ok(()) };
        // A crash ends the work without an outcome, and the completion never comes.
        let crashed = async {
            while !self.crash.happened() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::select! {
            end = completion => {
                let end = end.map_err(|_| "no outcome".to_owned())?;
                end.failure.map_or(Ok(()), |failure| Err(failure.message))
            }
            () = crashed => Err("crashed".to_owned()),
        }
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.ledger.snapshot()
    }

    async fn vf_token(&self, physical: &str) -> VfToken {
        let (ledger, physical) = (self.ledger.clone(), at(physical));
        let asked = tokio::task::spawn_blocking(move || ledger.vf_token_blocking(physical));
        asked.await.unwrap().unwrap()
    }

    fn state(&self, name: &str) -> Option<ReservationState> {
        self.snapshot().state.reservation(&id(name)).map(|record| record.state)
    }

    /// The process ends: all of its descriptors close, the state directory is free.
    pub async fn end(self) {
        let Self { ledger, engine, task, .. } = self;
        drop(ledger);
        tokio::task::spawn_blocking(move || engine.close(PATIENCE)).await.unwrap();
        tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vf_token_survives_the_process_goes_with_its_device_and_is_told_nowhere() {
    const PF: &str = "0000:3b:00.0";
    let sim = SimHost::builtin("sriov-nic").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let crash = Arc::new(Crash::default());
    let core = start(&sim, &crash, dir.path()).await;
    let token = core.vf_token(PF).await;
    assert_eq!(core.vf_token(PF).await, token);
    assert_ne!(core.vf_token("0000:3b:00.1").await, token, "one for two cards");
    core.end().await;
    let core = start(&sim, &crash, dir.path()).await;
    assert_eq!(core.vf_token(PF).await, token, "after the restart");
    let (text, told) = (token.text(), format!("{:?}", core.snapshot()));
    assert!(!told.contains(&text) && !told.contains(&format!("{:?}", token.0)));
    let url = format!("sqlite://{}", dir.path().join("berth.db").display());
    let mut store = SqliteConnection::connect(&url).await.unwrap();
    let events = "SELECT count(*) FROM events WHERE instr(concat(before, after, cause), ?) > 0";
    let told: i64 = sqlx::query_scalar(events).bind(&text).fetch_one(&mut store).await.unwrap();
    assert_eq!(told, 0, "an event tells it");
    let kept = "SELECT token FROM vf_tokens WHERE address = ?";
    let kept: String = sqlx::query_scalar(kept).bind(PF).fetch_one(&mut store).await.unwrap();
    assert_eq!(kept, text);

    // Also where others may look into the directory, and after an older berthd.
    core.end().await;
    let mode = |name: &str| dir.path().join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("berth.db"), 0o600);
    let wider = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(dir.path().join("berth.db"), wider).unwrap();
    let core = start(&sim, &crash, dir.path()).await;
    assert_eq!([mode("berth.db"), mode("berth.db-wal")], [0o600; 2]);

    core.order(Command::SriovSet {
        device: PF.into(),
        to: berth_ownership::SriovTo::Vfs(0),
        from: berth_ownership::Sriov { vfs: 8, autoprobe: true },
    })
    .await
    .unwrap();
    sim.unplug(at(PF)).unwrap();
    core.ledger.rescan(Meta::internal("unplugged")).await.unwrap();
    assert_ne!(core.vf_token(PF).await, token, "another card has another");
    core.end().await;
}

fn commands(world: &World) -> Vec<Command> {
    let ask = Ask::new("r-1", Policy::Exclusive, &["0000:04:00.0"]).take();
    vec![
        Command::Reserve(Box::new(world.request(&ask))),
        Command::Attach { order: Order::new("r-1"), domain: None },
        Command::Release { order: Order::new("r-1"), force: false },
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_and_its_baseline_survive_the_process() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let crash = Arc::new(Crash::default());
    let core = start(&world.sim, &crash, dir.path()).await;
    let [reserve, attach, release] = commands(&world).try_into().unwrap();
    core.order(reserve).await.unwrap();
    core.order(attach).await.unwrap();
    assert_eq!(core.state("r-1"), Some(ReservationState::Held));
    core.end().await;
    let core = start(&world.sim, &crash, dir.path()).await;
    assert_eq!(core.report.ended, [id("r-1")]);
    assert_eq!(core.state("r-1"), Some(ReservationState::Reserved));
    let number = world.number_of("0000:04:00.0");
    assert!(!world.sim.probe_free(number).unwrap(), "the hold stands again");
    core.order(release).await.unwrap();
    let driver = world.sim.device("0000:04:00.0".parse().unwrap()).unwrap().driver;
    assert_eq!(driver.as_deref(), Some("e1000e"));
    assert!(core.snapshot().baselines.is_empty());
    core.end().await;
}

/// Each look costs a walk over all processes of the machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_scan_looks_once_at_who_has_devices_however_many_there_are() {
    let text = Topology::generated(600).to_toml().unwrap();
    let on_vfio = text.replace("[[device]]\n", "[[device]]\ndriver = \"vfio-pci\"\n");
    let sim = SimHost::from_topology(Topology::parse(&on_vfio, "many").unwrap());
    let (dir, crash) = (tempfile::tempdir().unwrap(), Arc::new(Crash::default()));
    let core = start(&sim, &crash, dir.path()).await;
    let looks = || [0, 1].map(|at: usize| crash.looks[at].swap(0, Ordering::SeqCst));
    assert_eq!(looks(), [1, 0]);
    let open = sim.scan().unwrap().devices[7].address;
    let friend = sim.foreign("friend");
    friend.open_by_group(open).unwrap();
    core.ledger.rescan(Meta::internal("again")).await.unwrap();
    assert_eq!(looks(), [1, 1], "who has the one that is open");
    core.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_any_two_host_calls_is_settled_from_the_file() {
    let mut at = 1;
    loop {
        let world = World::new();
        let dir = tempfile::tempdir().unwrap();
        let crash = Arc::new(Crash::default());
        let core = start(&world.sim, &crash, dir.path()).await;
        crash.arm(at);
        for command in commands(&world) {
            if !crash.happened() {
                let _ = core.order(command).await;
            }
        }
        let crashed = crash.happened();
        core.end().await;
        crash.arm(0);
        let core = start(&world.sim, &crash, dir.path()).await;
        let snapshot = core.snapshot();
        let extra = snapshot.extras.get(&id("r-1")).and_then(|extra| extra.last_failure.clone());
        let why = extra.map(|failure| failure.message);
        let place = format!("crash {at}: {}, {:?}, {why:?}", crash.place(), core.report);
        assert!(snapshot.intents.is_empty(), "{place}: {:?}", snapshot.intents);
        berth_ownership::invariants::check(&snapshot.state).unwrap();
        let number = world.number_of("0000:04:00.0");
        let free = world.sim.probe_free(number).unwrap_or(true);
        match core.state("r-1") {
            Some(ReservationState::Reserved) => assert!(!free, "{place}: held in the kernel too"),
            // That its host driver is back, below, is the proof: it would be refused.
            Some(ReservationState::Released) | None => {}
            other => panic!("{place}: {other:?}"),
        }
        if core.state("r-1") == Some(ReservationState::Reserved) {
            let release = Command::Release { order: Order::new("r-1"), force: false };
            core.order(release).await.unwrap_or_else(|why| panic!("{place}: {why}"));
        }
        let facts = world.sim.device("0000:04:00.0".parse().unwrap()).unwrap();
        assert_eq!(facts.driver.as_deref(), Some("e1000e"), "{place}");
        assert_eq!(facts.driver_override, None, "{place}");
        core.end().await;
        if !crashed {
            break;
        }
        at += 1;
    }
    println!("{at} points");
    assert!(at > 15, "{at}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_the_store_did_not_take_is_recorded_when_it_can_be_written_again() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let core = start(&world.sim, &Arc::default(), dir.path()).await;
    let [reserve, attach, _] = commands(&world).try_into().unwrap();
    core.order(reserve).await.unwrap();
    core.full.arm(dir.path()).await;
    let applied = core.ledger.submit(attach, Meta::internal("test")).await.unwrap();
    let deadline = std::time::Instant::now() + PATIENCE;
    while core.full.refused.load(Ordering::SeqCst) == 0 {
        assert!(std::time::Instant::now() < deadline, "the store took the outcome");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let pending = |core: &Core| {
        core.snapshot().state.reservation(&id("r-1")).is_some_and(|r| r.pending.is_some())
    };
    assert!(pending(&core), "what is not recorded is not shown either");
    core.full.has_room_again().await;
    let end = tokio::time::timeout(PATIENCE, applied.completion.unwrap()).await.unwrap().unwrap();
    assert_eq!(end.failure, None);
    assert!(!pending(&core));
    assert_eq!(core.state("r-1"), Some(ReservationState::Held));
    assert!(core.snapshot().intents.is_empty());
    core.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_that_nobody_can_take_does_not_keep_the_daemon_from_stopping() {
    let world = World::new();
    let dir = tempfile::tempdir().unwrap();
    let core = start(&world.sim, &Arc::default(), dir.path()).await;
    let [reserve, attach, release] = commands(&world).try_into().unwrap();
    core.order(reserve).await.unwrap();
    core.full.arm(dir.path()).await;
    core.ledger.submit(attach, Meta::internal("test")).await.unwrap();
    while core.full.refused.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let full = Arc::clone(&core.full);
    core.end().await;
    full.has_room_again().await;
    let core = start(&world.sim, &Arc::default(), dir.path()).await;
    assert_eq!(core.report.undone.len(), 1, "{:?}", core.report);
    core.order(release).await.unwrap();
    core.end().await;
}
