//! One service for each resource that is wanted: of the configuration, and of pods that still have
//! groups of one that the configuration has no more.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Arc,
};

use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use super::{DevicePlugin, serve};
use crate::{
    config::{Config, Resource},
    core::{Claims, Held, Inventory},
    metrics::Metrics,
};

type Resources = BTreeMap<String, Resource>;

/// A resource that is served.
#[derive(Debug)]
struct Serving {
    /// What its service goes by; its end ends the lists.
    resource: watch::Sender<Arc<Resource>>,
    task: AbortHandle,
}

/// What all services stand on.
#[derive(Debug)]
pub struct Classes {
    /// Which resources there are.
    pub configs: watch::Receiver<Arc<Config>>,
    /// What is offered.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// What is given out.
    pub claims: Arc<Claims>,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
}

impl Classes {
    /// Serves what is wanted. Returns only where that can't be done.
    ///
    /// # Errors
    /// Of the directory of device plugins.
    pub async fn keep_serving(mut self) -> anyhow::Result<()> {
        let mut held = self.claims.held();
        let (mut known, mut left) = (Resources::new(), BTreeSet::new());
        let mut serving: BTreeMap<String, Serving> = BTreeMap::new();
        let mut tasks = JoinSet::new();
        loop {
            let given_out = held.borrow_and_update().clone();
            self.wanted(&given_out, &mut known, &mut left).await;
            serving.retain(|name, one| {
                let stays = known.contains_key(name);
                if !stays {
                    tracing::info!(resource = name, "no more of the configuration's: let go");
                    one.task.abort();
                    self.metrics.forget(name);
                }
                stays
            });
            for (name, resource) in &known {
                match serving.get(name) {
                    Some(one) => turn(one, resource),
                    None => drop(serving.insert(name.clone(), self.start(resource, &mut tasks))),
                }
            }
            tokio::select! {
                Ok(()) = self.configs.changed() => {}
                Ok(()) = held.changed() => {}
                Some(ended) = tasks.join_next() => match ended {
                    Err(error) if error.is_cancelled() => {}
                    ended => ended??,
                },
                else => return Ok(()),
            }
        }
    }

    /// The configuration's resources, and those before it that somebody still has groups of.
    async fn wanted(&mut self, held: &Held, known: &mut Resources, left: &mut BTreeSet<String>) {
        let config = self.configs.borrow_and_update().clone();
        left.retain(|name| config.resource(name).is_none() && known.contains_key(name));
        let before = std::mem::take(known);
        known.extend(config.resources.iter().map(|one| (one.name.clone(), one.clone())));
        let out: BTreeSet<&String> = held.values().collect();
        for name in out.into_iter().filter(|name| config.resource(name).is_none()) {
            let resource = match before.get(name) {
                Some(resource) => Some(resource.clone()),
                None => self.claims.left_over(name).await,
            };
            match resource {
                Some(resource) => {
                    if left.insert(name.clone()) {
                        tracing::info!(resource = name, "served until its pods have ended");
                    }
                    known.insert(name.clone(), resource);
                }
                None => {
                    tracing::warn!(resource = name, "pods have it, and nothing says what it was");
                }
            }
        }
    }

    fn start(&self, resource: &Resource, tasks: &mut JoinSet<io::Result<()>>) -> Serving {
        let (turns, resource) = watch::channel(Arc::new(resource.clone()));
        let (inventory, claims) = (self.inventory.clone(), Arc::clone(&self.claims));
        let plugin = DevicePlugin::new(resource, inventory, claims, Arc::clone(&self.metrics));
        let dir: Arc<Path> = Arc::from(self.configs.borrow().device_plugins.as_path());
        Serving { resource: turns, task: tasks.spawn(serve(plugin, dir)) }
    }
}

/// The next container goes by what the configuration says now.
fn turn(serving: &Serving, resource: &Resource) {
    serving.resource.send_if_modified(|now| {
        let changed = **now != *resource;
        if changed {
            tracing::info!(resource = resource.name, "changed");
            *now = Arc::new(resource.clone());
        }
        changed
    });
}
