//! Numbers for Prometheus: what the kubelet asked, why containers wait, how fast it is told.

mod histogram;
mod page;
mod serve;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicUsize},
    time::{Duration, SystemTime},
};

use histogram::Histogram;
pub use page::Page;
pub use serve::serve;

/// What a container may wait for, beside what `berthd` refuses with.
const REASONS: [&str; 6] =
    ["busy", "not_allocated", "preparing", "berthd_away", "kubelet_away", "io"];

/// How a resource stands with the kubelet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Registration {
    /// Another instance serves it.
    #[default]
    WaitsForInstance,
    /// The kubelet's socket isn't there.
    WaitsForKubelet,
    /// The kubelet said no, or nothing.
    Refused,
    /// The kubelet took it.
    Registered,
}

impl Registration {
    const ALL: [Self; 4] =
        [Self::WaitsForInstance, Self::WaitsForKubelet, Self::Refused, Self::Registered];

    fn word(self) -> &'static str {
        match self {
            Self::WaitsForInstance => "waits_for_instance",
            Self::WaitsForKubelet => "waits_for_kubelet",
            Self::Refused => "refused",
            Self::Registered => "registered",
        }
    }
}

/// Of one resource.
#[derive(Debug, Default)]
struct Counts {
    allocated: u64,
    not_allocated: u64,
    let_in: u64,
    waits: BTreeMap<String, u64>,
    registration: Registration,
    registered: u64,
    refused: u64,
    to_list: Histogram,
    /// How many lists the kubelet follows.
    lists: Arc<AtomicUsize>,
}

/// What is counted. Everything in it is cheap: the kubelet asks a few times for each pod.
#[derive(Debug, Default)]
pub struct Metrics {
    resources: Mutex<BTreeMap<String, Counts>>,
    reloads: Mutex<[u64; 2]>,
}

impl Metrics {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Counts>> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, resource: &str, count: impl FnOnce(&mut Counts)) {
        let mut resources = self.lock();
        count(resources.entry(resource.to_owned()).or_insert_with(|| Counts {
            // At zero, so that the first of a kind is an increase.
            waits: REASONS.iter().map(|reason| ((*reason).to_owned(), 0)).collect(),
            ..Counts::default()
        }));
    }

    /// An Allocate was answered.
    pub fn allocate(&self, resource: &str, done: bool) {
        self.count(resource, |counts| {
            *(if done { &mut counts.allocated } else { &mut counts.not_allocated }) += 1;
        });
    }

    /// A PreStartContainer was answered: the container starts.
    pub fn let_in(&self, resource: &str) {
        self.count(resource, |counts| counts.let_in += 1);
    }

    /// The same: it waits.
    pub fn waits(&self, resource: &str, reason: &str) {
        self.count(resource, |counts| *counts.waits.entry(reason.to_owned()).or_default() += 1);
    }

    /// How a resource stands with the kubelet, from now on.
    pub fn registration(&self, resource: &str, now: Registration) {
        self.count(resource, |counts| {
            counts.registration = now;
            match now {
                Registration::Registered => counts.registered += 1,
                Registration::Refused => counts.refused += 1,
                Registration::WaitsForInstance | Registration::WaitsForKubelet => {}
            }
        });
    }

    /// The kubelet gets a list that an event changed.
    pub fn listed(&self, resource: &str, event: SystemTime) {
        // The clock may have been set back in between.
        let took = event.elapsed().unwrap_or(Duration::ZERO);
        self.count(resource, |counts| counts.to_list.observe(took));
    }

    /// Where the lists of a resource that the kubelet follows are counted.
    pub(crate) fn lists(&self, resource: &str) -> Arc<AtomicUsize> {
        let mut lists = Arc::default();
        self.count(resource, |counts| lists = Arc::clone(&counts.lists));
        lists
    }

    /// A resource is served no more.
    pub fn forget(&self, resource: &str) {
        self.lock().remove(resource);
    }

    /// Another configuration was taken, or refused.
    pub fn reload(&self, taken: bool) {
        let mut reloads = self.reloads.lock().unwrap_or_else(PoisonError::into_inner);
        let [took, refused] = &mut *reloads;
        *(if taken { took } else { refused }) += 1;
    }
}
