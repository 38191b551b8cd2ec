//! Everything together.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet};

use crate::{
    config::Config,
    core::{Berthd, Claims, Follower, Inventory, NotNow},
    metrics::{self, Metrics, Page},
    plugin::Classes,
};

/// Between two attempts to reach `berthd` at start.
const AGAIN: Duration = Duration::from_millis(500);

/// Runs with one configuration until something can't go on.
///
/// # Errors
/// Of the directories, at start.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let (_keep, configs) = watch::channel(Arc::new(config));
    run_with(configs, Arc::new(Metrics::default())).await
}

/// The same with configurations that come one after the other.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    configs: watch::Receiver<Arc<Config>>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    let config = configs.borrow().clone();
    let berthd = Berthd::new(&config.berthd, &config.handover);
    let claims = Arc::new(Claims::open(configs.clone(), berthd.clone())?);
    restore(&claims).await?;
    let (publish, inventory) = watch::channel(Arc::new(Inventory::default()));
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let mut ready = inventory.clone();
    let follower = Follower { berthd, configs: configs.clone(), held: claims.held(), publish };
    tasks.spawn(async move {
        follower.follow().await;
        Ok(())
    });
    // With nothing in the list the kubelet would take pods' devices for gone.
    let first = ready.wait_for(|inventory| !inventory.offers.is_empty());
    if tokio::time::timeout(Duration::from_secs(5), first).await.is_err() {
        tracing::warn!("no group fits a resource of the configuration");
    }
    let releasing = Arc::clone(&claims);
    tasks.spawn(async move {
        releasing.keep_releasing().await;
        Ok(())
    });
    let page = Page {
        metrics: Arc::clone(&metrics),
        inventory: inventory.clone(),
        claims: Arc::clone(&claims),
    };
    let numbers = configs.clone();
    tasks.spawn(async move {
        metrics::serve(page, numbers).await;
        Ok(())
    });
    let classes = Classes { configs, inventory, claims, metrics };
    tasks.spawn(classes.keep_serving());
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// Waits for `berthd`, which may start later.
async fn restore(claims: &Claims) -> anyhow::Result<()> {
    let mut told = false;
    loop {
        match claims.restore().await {
            Ok(()) => return Ok(()),
            Err(NotNow::Berthd(error)) if !told => {
                tracing::warn!(%error, "waiting for berthd");
                told = true;
            }
            Err(NotNow::Berthd(_)) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(AGAIN).await;
    }
}
