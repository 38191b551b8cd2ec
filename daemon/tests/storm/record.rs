//! What all clients share: the machine, what is known of it, and what was seen.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::{RwLock, RwLockReadGuard, Semaphore};

use super::{
    machine::{Cell, Machine},
    model::{Call, Delivery, Devices, History, Id, Op, Policy, Reply},
};

/// So many reservations are remembered of a cell: those that are gone, too.
const KNOWN: usize = 12;
/// Fewer than one user may have at the hand-over socket.
const FETCHES: usize = 48;

/// A reservation that some client was given.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) name: String,
    pub(crate) id: Id,
    pub(crate) epoch: u64,
    pub(crate) policy: Policy,
    pub(crate) delivery: Delivery,
    pub(crate) devices: Devices,
}

pub(crate) struct Shared {
    /// Written while `berthd` is down.
    machine: RwLock<Machine>,
    began: Instant,
    pub(crate) cells: Vec<Cell>,
    pub(crate) socket: PathBuf,
    pub(crate) handover: PathBuf,
    pub(crate) left: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) fetches: Semaphore,
    ids: Mutex<HashMap<String, Id>>,
    ops: Vec<Mutex<Vec<Op>>>,
    known: Vec<Mutex<VecDeque<Known>>>,
}

impl Shared {
    pub(crate) fn new(machine: Machine, operations: u64) -> Self {
        let cells = machine.cells.clone();
        Self {
            began: Instant::now(),
            socket: machine.socket(),
            handover: machine.handover(),
            left: AtomicU64::new(operations),
            retries: AtomicU64::new(0),
            fetches: Semaphore::new(FETCHES),
            ids: Mutex::default(),
            ops: cells.iter().map(|_| Mutex::default()).collect(),
            known: cells.iter().map(|_| Mutex::default()).collect(),
            machine: RwLock::new(machine),
            cells,
        }
    }

    /// Takes one of the operations that are left.
    pub(crate) fn take(&self) -> bool {
        let take = |left: u64| left.checked_sub(1);
        self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
    }

    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).expect("not that long")
    }

    pub(crate) fn id(&self, name: &str) -> Id {
        let mut ids = self.ids.lock().expect("no panic");
        let next = Id::try_from(ids.len()).expect("few");
        *ids.entry(name.to_owned()).or_insert(next)
    }

    pub(crate) fn record(&self, cell: usize, op: Op) {
        self.ops[cell].lock().expect("no panic").push(op);
    }

    pub(crate) fn know(&self, cell: usize, known: Known) {
        let mut all = self.known[cell].lock().expect("no panic");
        all.push_front(known);
        all.truncate(KNOWN);
    }

    pub(crate) fn known(&self, cell: usize) -> Vec<Known> {
        self.known[cell].lock().expect("no panic").iter().cloned().collect()
    }

    /// Waits until `berthd` isn't being started again.
    pub(crate) async fn up(&self) -> RwLockReadGuard<'_, Machine> {
        self.machine.read().await
    }

    pub(crate) async fn log(&self) -> String {
        self.machine.read().await.log()
    }

    /// Kills `berthd` and starts it again, which happens to every cell.
    pub(crate) async fn restart(&self) {
        let mut machine = self.machine.write().await;
        let called = self.now();
        machine.restart().await;
        let answered = self.now();
        for cell in 0..self.cells.len() {
            let (call, reply) = (Call::Restart, Reply::Done);
            self.record(cell, Op { call, reply, called, answered });
        }
    }

    /// What was seen of each cell.
    pub(crate) fn histories(&self) -> Vec<History> {
        let of = |(cell, ops): (&Cell, &Mutex<Vec<Op>>)| History {
            groups: groups(cell),
            ops: ops.lock().expect("no panic").clone(),
        };
        self.cells.iter().zip(&self.ops).map(of).collect()
    }
}

/// The devices of a cell's groups, as sets.
pub(crate) fn groups(cell: &Cell) -> Vec<Devices> {
    let mut first = 0;
    let mut set = |count: usize| {
        let set = ((1_u8 << count) - 1) << first;
        first += count;
        set
    };
    cell.iter().map(|group| set(group.len())).collect()
}

/// How often what was asked got which answer.
pub(crate) fn tally<'o>(ops: impl Iterator<Item = &'o Op>) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for op in ops {
        let call = match op.call {
            Call::Reserve { policy, .. } => format!("reserve {policy:?}"),
            Call::Attach(_) => "attach".to_owned(),
            Call::Renew(_) => "renew".to_owned(),
            Call::Release(_, force) => format!("release{}", if force { " by force" } else { "" }),
            Call::Fetch(_) => "fetch".to_owned(),
            Call::Group(_) => "read a group".to_owned(),
            Call::Look(_) => "read a reservation".to_owned(),
            Call::Restart => "restart".to_owned(),
        };
        let reply = match &op.reply {
            Reply::Granted { .. } | Reply::Done => "done",
            Reply::Refused(reason) => reason,
            Reply::Group(_) | Reply::Standing(..) => "answered",
            Reply::Lost => "lost",
        };
        *tally.entry(format!("{call}: {reply}")).or_insert(0) += 1;
    }
    tally
}
