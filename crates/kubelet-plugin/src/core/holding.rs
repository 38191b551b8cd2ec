//! Which groups are given out, and as which resource: these stay what they are until they are
//! released, whatever another configuration makes of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use berth_proto::v1;
use tokio::sync::watch;

use super::{Claims, records::now_ms};
use crate::{
    config::{Baseline, Resource, Selector},
    node::Listed,
};

/// Group to resource.
pub type Held = BTreeMap<String, String>;

/// What the kubelet last said of its pods, and what is published.
#[derive(Debug, Default)]
pub(super) struct Holding {
    /// (resource, group)
    listed: Mutex<BTreeSet<(String, String)>>,
    publish: watch::Sender<Held>,
}

impl Holding {
    /// The kubelet's list.
    pub(super) fn lists(&self, listed: &[Listed]) {
        let all = listed.iter().map(|one| (one.resource.clone(), one.device.clone())).collect();
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }
}

impl Claims {
    /// What is given out, now and after each change.
    #[must_use]
    pub fn held(&self) -> watch::Receiver<Held> {
        self.holding.publish.subscribe()
    }

    pub(super) fn settle_ms(&self) -> u64 {
        self.configs.borrow().settle_ms
    }

    /// Publishes what is given out, where that has changed.
    pub(super) fn tell_holding(&self) {
        let next = self.given_out();
        self.holding.publish.send_if_modified(|held| {
            let changed = *held != next;
            *held = next;
            changed
        });
    }

    /// What has a reservation, what a listed pod has, and what was allocated just now: its pod may
    /// be listed in a moment.
    fn given_out(&self) -> Held {
        let settle_ms = self.settle_ms();
        let listed = self.holding.listed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all = self.records.all();
        all.sort_by_key(|one| one.serial);
        let mut held = Held::new();
        for one in all.into_iter().filter(|one| !one.resource.is_empty()) {
            let firm =
                one.reservation.is_some() || now_ms().saturating_sub(one.touched_ms) < settle_ms;
            for group in one.groups {
                let key = (one.resource.clone(), group);
                if firm || listed.contains(&key) {
                    held.insert(key.1, key.0);
                }
            }
        }
        held
    }

    /// A resource that the configuration doesn't have, as its reservations have it: its pods go on
    /// after a restart of the plugin. None where there is no reservation.
    pub async fn left_over(&self, name: &str) -> Option<Resource> {
        let of = |one: &super::Allocation| one.resource == name;
        for one in self.records.all().into_iter().filter(of) {
            let (delivery, Some(id)) = (one.delivery, one.reservation) else { continue };
            let Ok(Some(reservation)) = self.berthd.get(&id).await else { continue };
            return Some(Resource {
                name: name.to_owned(),
                selector: Selector::default(),
                policy: v1::Policy::try_from(reservation.policy).ok()?,
                backend: v1::Backend::try_from(reservation.backend).ok()?,
                delivery,
                memory_bytes: Some(reservation.memory_bytes).filter(|bytes| *bytes > 0),
                label: reservation.label,
                take_from_host: false,
                baseline: Baseline::Original,
            });
        }
        None
    }
}
