//! SIGHUP: another configuration is put in force, or the last one stays.

use std::{path::Path, sync::Arc};

use tokio::sync::watch;

use crate::{config::Config, metrics::Metrics};

/// Reads the file again. One that can't be used changes nothing; the log says why.
pub fn reload(file: &Path, configs: &watch::Sender<Arc<Config>>, metrics: &Metrics) {
    match Config::load(file) {
        Ok(new) => {
            let (next, restart) = configs.borrow().reloaded(new);
            for key in restart {
                tracing::warn!("SIGHUP: {key} needs a restart: it stays as it was");
            }
            configs.send_replace(Arc::new(next));
            metrics.reload(true);
            tracing::info!("SIGHUP: the configuration is in force");
        }
        Err(error) => {
            metrics.reload(false);
            tracing::error!("SIGHUP: the last configuration stays in force: {error}");
        }
    }
}
