//! Our side: a ledger whose commands need no kernel work.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use berth_host::sim::{SimHost, Topology};
use berth_ownership::{
    Backend, Command, Delivery, Flags, GroupId, Hold, Order, Policy, ReservationId, Reserve,
    ResetPolicy, TargetRequest,
};
use berthd::{
    ledger::{self, LedgerConfig, LedgerHandle},
    model::Meta,
};
use tokio::task::JoinSet;

use berth_measure::rate;

/// A ledger and the groups that it gives away.
#[derive(Debug)]
pub(crate) struct Pairs {
    ledger: LedgerHandle,
    groups: Vec<GroupId>,
    next: AtomicU64,
}

/// The part of the ids that differs from pair to pair; a workload finds it again.
pub(super) fn id(number: u64) -> String {
    format!("ba5e{number:08x}")
}

impl Pairs {
    /// Opens a ledger in a directory, on a machine with as many groups.
    ///
    /// # Errors
    /// Of the store.
    pub(crate) async fn open(dir: &Path, groups: usize) -> Result<Self> {
        let count = u32::try_from(groups).context("fewer groups")?;
        let host = Arc::new(SimHost::from_topology(Topology::generated(count)));
        let opened = ledger::open(LedgerConfig::new(dir), host)
            .await
            .map_err(|error| anyhow!("open the ledger: {error}"))?;
        let ledger = opened.ledger;
        let meta = Meta::internal("bench");
        ledger.rescan(meta).await.map_err(|error| anyhow!("scan: {error}"))?;
        let groups: Vec<GroupId> =
            ledger.snapshot().state.groups().map(|group| group.id.clone()).collect();
        Ok(Self { ledger, groups, next: AtomicU64::new(1) })
    }

    /// How many groups there are.
    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Reserves a client's group. Answers what the pair is called.
    ///
    /// # Errors
    /// The refusal.
    pub(super) async fn reserve(&self, client: usize) -> Result<String> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = id(number);
        let group = self.groups.get(client).context("more clients than groups")?.clone();
        let command = Command::Reserve(Box::new(order(&id, group)));
        self.submit(command).await?;
        Ok(id)
    }

    /// Gives it back.
    ///
    /// # Errors
    /// The refusal.
    pub(super) async fn release(&self, id: &str) -> Result<()> {
        let order = Order::new(ReservationId::new(format!("r-{id}")));
        self.submit(Command::Release { order, force: false }).await
    }

    async fn submit(&self, command: Command) -> Result<()> {
        let meta = Meta { actor: "uid:0".to_owned(), ..Meta::internal("bench") };
        let applied = self.ledger.submit(command, meta).await;
        applied.map(drop).map_err(|error| anyhow!("{error}"))
    }

    /// Pairs in a second, by clients that ask again as soon as they are answered.
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) async fn slice(self: &Arc<Self>, clients: usize, length: Duration) -> Result<f64> {
        let began = Instant::now();
        let mut running = JoinSet::new();
        for client in 0..clients {
            running.spawn(Arc::clone(self).client(client, began + length));
        }
        let mut done = 0;
        while let Some(count) = running.join_next().await {
            done += count??;
        }
        Ok(rate(done, began.elapsed()))
    }

    async fn client(self: Arc<Self>, client: usize, end: Instant) -> Result<u64> {
        let mut done = 0;
        while Instant::now() < end {
            let id = self.reserve(client).await?;
            self.release(&id).await?;
            done += 1;
        }
        Ok(done)
    }
}

fn order(id: &str, group: GroupId) -> Reserve {
    Reserve {
        id: format!("r-{id}").into(),
        new_context: format!("c-{id}").into(),
        new_domain: format!("d-{id}").into(),
        holder: "vm-a".into(),
        label: "uid:0".into(),
        requester: "uid:0".to_owned(),
        for_identity: "uid:0".to_owned(),
        policy: Policy::Exclusive,
        delivery: Delivery::Bound,
        backend: Backend::Iommufd,
        targets: vec![TargetRequest { group, devices: Vec::new() }],
        domain: None,
        join: None,
        memory_bytes: 1 << 30,
        ttl_ms: None,
        flags: Flags::default(),
        reset_policy: ResetPolicy::AllowSameLabel,
        hold: Hold::Ledger,
        prepare: false,
    }
}
