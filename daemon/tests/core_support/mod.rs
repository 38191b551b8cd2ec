//! A ledger and a service on a simulated host, with an executor that does no kernel work.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use berth_host::{
    Host,
    sim::{SimHost, Topology},
};
use berth_ownership::{
    Command, DeviceId, DeviceReturn, DriverDma, Hold, Parts, Reason, Refusal, ReservationId,
    ResetOutcome,
};
use berth_proto::v1;
use berthd::{
    ledger::{self, LedgerConfig, LedgerHandle, Opened},
    model::{
        Caller, Executor, GivenBack, Intent, IntentBody, IntentKind, Meta, Outcome, Role, Snapshot,
    },
    service::{Service, ServiceConfig},
};

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Says of every intent that it is done, or keeps it, or says that it failed.
#[derive(Debug)]
pub(crate) struct Instant {
    ledger: LedgerHandle,
    /// Intents are kept as long as this is set.
    pub(crate) keep: AtomicBool,
    /// Kinds that fail, each once.
    pub(crate) fail: Mutex<Vec<IntentKind>>,
    /// What was kept.
    pub(crate) kept: Mutex<Vec<Intent>>,
}

impl Instant {
    /// Does what was kept.
    pub(crate) async fn go_on(&self) {
        self.keep.store(false, Ordering::SeqCst);
        let kept: Vec<Intent> = std::mem::take(&mut *self.kept.lock().expect("no panic"));
        for intent in kept {
            let outcome = outcome_of(&intent, &self.ledger.snapshot(), false);
            let meta = Meta::internal("acts");
            self.ledger.outcome(intent.id, outcome, meta).await.expect("an open intent");
        }
    }
}

impl Executor for Instant {
    fn submit(&self, intent: Intent, snapshot: Arc<Snapshot>) {
        if self.keep.load(Ordering::SeqCst) {
            self.kept.lock().expect("no panic").push(intent);
            return;
        }
        let mut fail = self.fail.lock().expect("no panic");
        let at = fail.iter().position(|kind| *kind == intent.kind);
        let failed = at.map(|at| fail.remove(at)).is_some();
        drop(fail);
        let ledger = self.ledger.clone();
        tokio::spawn(async move {
            let outcome = outcome_of(&intent, &snapshot, failed);
            // An intent that was superseded meanwhile has ended.
            let _ = ledger.outcome(intent.id, outcome, Meta::internal("acts")).await;
        });
    }
}

/// What a release gives back, all of it as it was.
fn returned(reservation: &ReservationId, snapshot: &Snapshot) -> Vec<DeviceReturn> {
    let devices = snapshot.state.reservation(reservation).map(|record| record.devices());
    let back = |device: &DeviceId| DeviceReturn {
        device: device.clone(),
        reset: ResetOutcome::Verified,
        baseline_restored: true,
        note: String::new(),
    };
    devices.into_iter().flatten().map(back).collect()
}

/// The outcome of an intent, done or failed.
pub(crate) fn outcome_of(intent: &Intent, snapshot: &Snapshot, failed: bool) -> Outcome {
    let reservation = intent.reservation.clone().unwrap_or_else(|| ReservationId::new(""));
    let returned = returned(&reservation, snapshot);
    if failed {
        let why = "the test says so".to_owned();
        let command = match &intent.body {
            IntentBody::Prepare => Command::PrepareFailed { reservation, why, returned },
            IntentBody::Attach { .. } => Command::AttachFailed { reservation, why },
            IntentBody::Detach => Command::DetachFailed { reservation, why },
            IntentBody::Replace { .. } => Command::ReplaceFailed { reservation, why },
            IntentBody::HandOver => Command::HandOverFailed { reservation, why },
            IntentBody::Release { .. } => Command::ReleaseFailed { reservation, why },
            IntentBody::KernelDmaSet { device, .. } | IntentBody::KernelDmaRelease { device } => {
                Command::KernelDmaFailed { device: device.clone(), why }
            }
            IntentBody::Sriov { device, .. } => {
                let (device, undone, functions) = (device.clone(), true, None);
                Command::SriovFailed { device, why, undone, functions }
            }
        };
        let refusal = Refusal::new(Reason::KernelRefused, "device", "the test refuses");
        return Outcome::failed(command, refusal.with_errno(16));
    }
    match &intent.body {
        IntentBody::Prepare => {
            Outcome::done(Command::PrepareDone { reservation, hold: Hold::Kernel })
        }
        IntentBody::Attach { .. } => Outcome::done(Command::AttachDone { reservation }),
        IntentBody::Detach => Outcome::done(Command::DetachDone { reservation }),
        IntentBody::Replace { .. } => Outcome::done(Command::ReplaceDone { reservation }),
        IntentBody::HandOver => Outcome::done(Command::HandOverDone { reservation }),
        IntentBody::Release { .. } => {
            let given_back = returned
                .iter()
                .map(|device| GivenBack {
                    device: device.device.clone(),
                    reset: device.reset,
                    reset_method: "flr".to_owned(),
                    baseline_restored: true,
                    driver: String::new(),
                    note: String::new(),
                })
                .collect();
            let command = Command::ReleaseDone { reservation, returned };
            Outcome { given_back, ..Outcome::done(command) }
        }
        IntentBody::KernelDmaSet { device, .. } => Outcome::done(Command::KernelDmaDone {
            device: device.clone(),
            dma: DriverDma::Kernel("test".to_owned()),
        }),
        IntentBody::KernelDmaRelease { device } => {
            Outcome::done(Command::KernelDmaDone { device: device.clone(), dma: DriverDma::None })
        }
        IntentBody::Sriov { device, op } => {
            let (device, now, functions) = (device.clone(), op.to, Vec::new());
            Outcome::done(Command::SriovDone { device, now, functions })
        }
    }
}

/// A ledger that runs, on a host that outlives it.
pub(crate) struct World {
    pub(crate) host: Arc<SimHost>,
    pub(crate) ledger: LedgerHandle,
    pub(crate) service: Service,
    pub(crate) executor: Arc<Instant>,
    pub(crate) task: tokio::task::JoinHandle<()>,
    pub(crate) intents: Vec<berthd::model::OpenIntent>,
    dir: PathBuf,
}

pub(crate) fn small() -> Arc<SimHost> {
    Arc::new(SimHost::builtin("small").expect("a built-in topology"))
}

pub(crate) fn topology(name: &str) -> Arc<SimHost> {
    Arc::new(SimHost::from_topology(Topology::builtin(name).expect("a built-in topology")))
}

impl World {
    /// Opens the ledger of a directory, scans, and names the executor.
    pub(crate) async fn open(dir: &Path, host: Arc<SimHost>) -> Self {
        Self::with(LedgerConfig::new(dir), host).await
    }

    pub(crate) async fn with(config: LedgerConfig, host: Arc<SimHost>) -> Self {
        let shared: Arc<dyn Host> = Arc::clone(&host) as Arc<dyn Host>;
        let dir = config.state_dir.clone();
        let Opened { ledger, intents, task, .. } =
            ledger::open(config, Arc::clone(&shared)).await.expect("a store that opens");
        ledger.rescan(Meta::internal("start")).await.expect("a scan");
        let executor = Arc::new(Instant {
            ledger: ledger.clone(),
            keep: AtomicBool::new(false),
            fail: Mutex::default(),
            kept: Mutex::default(),
        });
        ledger.set_executor(Arc::clone(&executor) as Arc<dyn Executor>).expect("none before");
        let service = Service::new(ledger.clone(), shared, ServiceConfig::default());
        Self { host, ledger, service, executor, task, intents, dir }
    }

    /// Ends as a kill does: nothing is told that it ends.
    pub(crate) async fn kill(self) -> Arc<SimHost> {
        self.task.abort();
        let _ = self.task.await;
        // A process that is killed takes SQLite's thread with it. This one doesn't end here: the thread
        // still does what it was told, which the next ledger must not run into.
        let ends = tokio::time::Instant::now() + PATIENCE;
        while is_written(&self.dir) {
            assert!(tokio::time::Instant::now() < ends, "the writer doesn't end");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.host
    }

    pub(crate) fn parts(&self) -> Parts {
        self.ledger.snapshot().state.parts()
    }
}

/// Whether this process has a directory's database open for writing.
fn is_written(dir: &Path) -> bool {
    let database = dir.join("berth.db");
    let open = std::fs::read_dir("/proc/self/fd").expect("of this process").flatten();
    open.filter(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == database)).any(|file| {
        let info = Path::new("/proc/self/fdinfo").join(file.file_name());
        let info = std::fs::read_to_string(info).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        // O_RDWR.
        flags
            .and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok())
            .is_some_and(|f| f & 3 == 2)
    })
}

pub(crate) fn operator() -> Caller {
    Caller::unix(0, None, Role::Operator)
}

pub(crate) fn caller(uid: u32, role: Role) -> Caller {
    Caller::unix(uid, None, role)
}

pub(crate) fn pci(address: &str) -> v1::DeviceAddress {
    v1::DeviceAddress { kind: Some(v1::device_address::Kind::Pci(address.to_owned())) }
}

/// A free device of the topology `small`, alone in its group.
pub(crate) const FREE: &str = "0000:00:06.0";

/// An exclusive reservation of a device.
pub(crate) fn reserve(holder: &str, device: &str) -> v1::ReserveRequest {
    v1::ReserveRequest {
        holder: holder.to_owned(),
        devices: vec![pci(device)],
        policy: v1::Policy::Exclusive.into(),
        ..v1::ReserveRequest::default()
    }
}

pub(crate) fn release(id: &str) -> v1::ReleaseRequest {
    v1::ReleaseRequest { id: id.to_owned(), ..v1::ReleaseRequest::default() }
}

pub(crate) fn attach(id: &str) -> v1::AttachRequest {
    v1::AttachRequest { id: id.to_owned(), ..v1::AttachRequest::default() }
}
