//! Taking the exclusive right before a container starts, on proof that whoever had it is gone.

use std::{collections::BTreeSet, io, sync::Arc};

use berth_proto::v1::{self, reservation::State};

use tokio::sync::watch;

use super::{
    Allocation, Berthd, BerthdError, HOLDER_PREFIX, Memlock, Records, holding::Holding, memlock,
    records::now_ms,
};
use crate::{
    config::{Config, Resource},
    handout::Sockets,
    node::{Cdi, Pods, Processes},
};

/// Why a container can't start now. The kubelet shows the text and asks again.
#[derive(Debug, thiserror::Error)]
pub enum NotNow {
    /// Somebody has a group.
    #[error("busy: held by {by}; {why}")]
    Busy {
        /// The pod, the reservation's holder.
        by: String,
        /// What proves it.
        why: String,
    },
    /// There was no Allocate for these groups.
    #[error("no allocation of {0} is known here; delete the pod, so that it is admitted again")]
    Unknown(String),
    /// It could not lock what it maps.
    #[error(transparent)]
    Memlock(#[from] Memlock),
    /// `berthd` is at it.
    #[error("reservation {0} is being prepared: {1}")]
    Preparing(String, String),
    /// `berthd` said no, or nothing.
    #[error("busy: {0}")]
    Berthd(#[from] BerthdError),
    /// The kubelet doesn't say what its pods have.
    #[error("the kubelet's PodResources: {0}")]
    Kubelet(#[from] Box<tonic::Status>),
    /// The state directory or the CDI directory.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Everything that gives groups out and takes them back.
#[derive(Debug)]
pub struct Claims {
    pub(super) configs: watch::Receiver<Arc<Config>>,
    pub(super) berthd: Berthd,
    pub(super) records: Arc<Records>,
    pub(super) pods: Pods,
    pub(super) cdi: Cdi,
    pub(super) sockets: Sockets,
    pub(super) holding: Holding,
    /// Two containers that want the same group are looked at one after the other.
    pub(super) turn: tokio::sync::Mutex<()>,
}

impl Claims {
    /// With the records of the state directory.
    ///
    /// # Errors
    /// They can't be read.
    pub fn open(configs: watch::Receiver<Arc<Config>>, berthd: Berthd) -> io::Result<Self> {
        let config = configs.borrow().clone();
        let records = Arc::new(Records::open(&config.state_dir)?);
        Ok(Self {
            sockets: Sockets::new(&config, Arc::clone(&records)),
            records,
            pods: Pods::new(&config.pod_resources),
            cdi: Cdi::new(&config.cdi_dir, &config.socket_dir),
            turn: tokio::sync::Mutex::new(()),
            holding: Holding::default(),
            berthd,
            configs,
        })
    }

    /// Records what a container is to get. Nothing is taken yet, so nothing can be in the way.
    pub fn allocate(&self, resource: &Resource, groups: &BTreeSet<String>) -> Allocation {
        let allocation = self.records.add(resource, groups);
        self.tell_holding();
        allocation
    }

    /// What is recorded.
    #[must_use]
    pub fn allocations(&self) -> Vec<Allocation> {
        self.records.all()
    }

    /// Takes the exclusive right to groups that were allocated, and writes their CDI file.
    ///
    /// # Errors
    /// Why it can't be had now.
    pub async fn take(&self, resource: &Resource, groups: &BTreeSet<String>) -> Result<(), NotNow> {
        let _turn = self.turn.lock().await;
        let Some(mut allocation) = self.records.newest(&resource.name, groups) else {
            let names: Vec<&str> = groups.iter().map(String::as_str).collect();
            return Err(NotNow::Unknown(names.join(", ")));
        };
        if !allocation.delivery.by_socket() {
            let config = self.configs.borrow().clone();
            memlock::check(resource, config.memlock, config.runtime.as_deref()).await?;
        }
        let processes = self.look().await?;
        if let Some(by) = processes.running(&allocation) {
            // Its own former run: the kubelet starts a container again once it has ended.
            let why = "its processes have not ended".to_owned();
            return Err(NotNow::Busy { by: format!("{} by {by}", allocation.title()), why });
        }
        self.evict_others(&allocation, &processes).await?;
        let reservation = self.reserved(resource, &mut allocation).await?;
        self.let_in(resource, &mut allocation, &reservation).await
    }

    pub(super) async fn look(&self) -> io::Result<Processes> {
        let root = self.configs.borrow().cgroup_root.clone();
        let looked = tokio::task::spawn_blocking(move || Processes::look(&root)).await;
        looked.map_err(io::Error::other)
    }

    /// Frees the groups of older allocations, an init container's or a dead pod's, which are here
    /// because the kubelet says nothing when they end.
    async fn evict_others(
        &self,
        allocation: &Allocation,
        processes: &Processes,
    ) -> Result<(), NotNow> {
        let older = |one: &Allocation| one.serial < allocation.serial && one.meets(allocation);
        for other in self.records.all().into_iter().filter(older) {
            if let Some(why) = self.in_use(&other, processes) {
                return Err(NotNow::Busy { by: other.title(), why });
            }
            self.free(&other).await?;
        }
        Ok(())
    }

    /// Why an allocation's container may still run, whatever the kubelet says.
    pub(super) fn in_use(&self, allocation: &Allocation, processes: &Processes) -> Option<String> {
        if let Some(by) = processes.running(allocation) {
            return Some(format!("its container still runs: {by}"));
        }
        let age = now_ms().saturating_sub(allocation.touched_ms);
        let fresh = allocation.reservation.is_some()
            && allocation.cgroups.is_empty()
            && age < self.settle_ms();
        fresh.then(|| format!("its container was let in {age} ms ago"))
    }

    /// Gives an allocation's groups back. `berthd` refuses while anybody has one open. It is forgotten
    /// once there is a newer one: a kubelet that starts lists no pods at first, and asks for no
    /// other allocation when it starts their containers again.
    pub(super) async fn free(&self, allocation: &Allocation) -> Result<(), NotNow> {
        if let Some(id) = &allocation.reservation {
            let released = match self.berthd.release(id).await {
                Err(error) if error.is_not_found() => None,
                released => Some(released.map_err(|error| match error {
                    BerthdError::Refused(refusal) if refusal.reason == "HOLDER_DRAINING" => {
                        NotNow::Busy { by: allocation.title(), why: refusal.message }
                    }
                    error => error.into(),
                })?),
            };
            if let Some(still) = released.filter(|now| now.state() != State::Released) {
                let state = still.state().as_str_name().to_lowercase();
                let why = format!("{id} is {state} {}", still.detail);
                return Err(NotNow::Busy { by: allocation.title(), why });
            }
        }
        self.cdi.remove(&allocation.name)?;
        self.sockets.close(&allocation.name)?;
        if self.is_current(allocation) {
            self.records.put(&allocation.without_reservation())?;
        } else {
            self.records.remove(&allocation.name)?;
        }
        tracing::info!(allocation = allocation.name, pod = allocation.pod, "given back");
        Ok(())
    }

    /// The allocation's reservation, made now unless it is there.
    async fn reserved(
        &self,
        resource: &Resource,
        allocation: &mut Allocation,
    ) -> Result<v1::Reservation, NotNow> {
        if let Some(id) = &allocation.reservation
            && let Some(there) = self.berthd.get(id).await?
            && there.state() != State::Lost
        {
            return Ok(there);
        }
        // A new id for each attempt that had an answer, and the same for one that had none.
        if allocation.request_id.is_empty() || allocation.reservation.is_some() {
            allocation.request_id = uuid::Uuid::new_v4().to_string();
            allocation.reservation = None;
            self.records.put(allocation)?;
        }
        let made = self.berthd.reserve(request(resource, allocation)).await;
        if matches!(made, Err(BerthdError::Refused(_))) {
            allocation.request_id.clear();
            self.records.put(allocation)?;
        }
        let made = made.map_err(|error| self.named(error))?;
        allocation.reservation = Some(made.id.clone());
        self.records.put(allocation)?;
        Ok(made)
    }

    /// A refusal names our own reservations by the allocation; people know the pod.
    fn named(&self, error: BerthdError) -> NotNow {
        let BerthdError::Refused(refusal) = &error else { return error.into() };
        let holder = refusal.owner.as_ref().map(|owner| owner.holder.as_str()).unwrap_or("");
        let name = holder.strip_prefix(HOLDER_PREFIX).unwrap_or("");
        match self.records.all().into_iter().find(|one| one.name == name) {
            Some(ours) => NotNow::Busy { by: ours.title(), why: error.to_string() },
            None => error.into(),
        }
    }
}

/// What the holder's limit is raised to. With nodes the holder is this process, which maps nothing.
fn memory_bytes(resource: &Resource, allocation: &Allocation) -> u64 {
    resource.memory_bytes.filter(|_| allocation.delivery.by_socket()).unwrap_or(0)
}

fn request(resource: &Resource, allocation: &Allocation) -> v1::ReserveRequest {
    v1::ReserveRequest {
        holder: format!("{HOLDER_PREFIX}{}", allocation.name),
        groups: allocation.groups.iter().cloned().collect(),
        policy: resource.policy.into(),
        delivery: v1::Delivery::from(allocation.delivery).into(),
        backend: resource.backend.into(),
        label: resource.label.clone(),
        take_from_host: resource.take_from_host,
        memory_bytes: memory_bytes(resource, allocation),
        request_id: allocation.request_id.clone(),
        ..v1::ReserveRequest::default()
    }
}
