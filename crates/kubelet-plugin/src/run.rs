//! Everything together.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{sync::watch, task::JoinSet};

use crate::{
    config::Config,
    core::{Berthd, Claims, Inventory, NotNow, follow},
    plugin::{DevicePlugin, serve},
};

/// Between two attempts to reach `berthd` at start.
const AGAIN: Duration = Duration::from_millis(500);

/// Runs until something can't go on.
///
/// # Errors
/// Of the directories, at start.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let config = Arc::new(config);
    let berthd = Berthd::new(&config.berthd, &config.handover);
    let claims = Arc::new(Claims::open(Arc::clone(&config), berthd.clone())?);
    restore(&claims).await?;
    let (publish, inventory) = watch::channel(Arc::new(Inventory::default()));
    let mut tasks = JoinSet::new();
    let mut ready = inventory.clone();
    let following = follow(berthd, Arc::clone(&config), publish);
    tasks.spawn(async move {
        following.await;
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
    let dir: Arc<Path> = Arc::from(config.device_plugins.as_path());
    for resource in &config.resources {
        let plugin = DevicePlugin::new(resource.clone(), inventory.clone(), Arc::clone(&claims));
        tasks.spawn(serve(plugin, Arc::clone(&dir)));
    }
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
