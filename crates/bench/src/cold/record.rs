//! A database with a reservation of every group.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result, anyhow, bail};
use berth_host::linux::{Direct, LinuxConfig, LinuxHost};
use berth_ownership::{
    Backend, Command, Delivery, Flags, GroupId, Hold, Policy, Reserve, ResetPolicy, TargetRequest,
};
use berthd::{
    ledger::{self, LedgerConfig, LedgerHandle},
    model::Meta,
};
use tokio::task::JoinSet;

/// Fills the ledger of a directory. Answers how many reservations there are.
///
/// # Errors
/// Of the store; a refusal.
pub(super) async fn make(tree: &Path, dir: &Path) -> Result<usize> {
    let privileged = Arc::new(Direct::new(tree));
    let host = Arc::new(LinuxHost::new(LinuxConfig { root: tree.to_owned(), privileged }));
    let opened = ledger::open(LedgerConfig::new(dir), host)
        .await
        .map_err(|error| anyhow!("open the ledger: {error}"))?;
    let ledger = opened.ledger;
    ledger.rescan(Meta::internal("bench")).await.map_err(|error| anyhow!("scan: {error}"))?;
    let groups: Vec<GroupId> =
        ledger.snapshot().state.groups().map(|group| group.id.clone()).collect();
    let mut running = JoinSet::new();
    for (number, group) in groups.into_iter().enumerate() {
        running.spawn(reserve(ledger.clone(), number, group));
    }
    while let Some(answer) = running.join_next().await {
        answer??;
    }
    let snapshot = ledger.snapshot();
    let reserved = snapshot.state.reservations().filter(|record| record.holds()).count();
    let unfinished = snapshot.intents.len();
    drop((snapshot, ledger));
    opened.task.await.context("close the ledger")?;
    if unfinished > 0 {
        bail!("{unfinished} reservations have kernel work to be done: a start would measure that");
    }
    Ok(reserved)
}

async fn reserve(ledger: LedgerHandle, number: usize, group: GroupId) -> Result<()> {
    let id = format!("{number:012x}");
    let order = Reserve {
        id: format!("r-{id}").into(),
        new_context: format!("c-{id}").into(),
        new_domain: format!("d-{id}").into(),
        holder: format!("vm-{number}").into(),
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
        flags: Flags { take_from_host: true, host_uses_it_anyway: false },
        reset_policy: ResetPolicy::AllowSameLabel,
        hold: Hold::Ledger,
        prepare: false,
    };
    let meta = Meta { actor: "uid:0".to_owned(), ..Meta::internal("bench") };
    let command = Command::Reserve(Box::new(order));
    ledger.submit(command, meta).await.map(drop).map_err(|error| anyhow!("reserve: {error}"))
}
