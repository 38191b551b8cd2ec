//! The page of numbers.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, atomic::Ordering},
};

use tokio::sync::watch;

use super::{Counts, Metrics, Registration};
use crate::core::{Claims, Inventory};

/// Everything that the numbers are taken from.
#[derive(Debug, Clone)]
pub struct Page {
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// What is offered.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// What is given out.
    pub claims: Arc<Claims>,
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a String can't fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

type Resources = BTreeMap<String, Counts>;

impl Page {
    /// As text, in Prometheus' format 0.0.4. Names of resources need no escapes: the configuration
    /// lets in none that would.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        head(&mut text, "berth_kubelet_build_info", "gauge", "The plugin's version.");
        let version = env!("CARGO_PKG_VERSION");
        let _ = writeln!(text, "berth_kubelet_build_info{{version=\"{version}\"}} 1");
        {
            let resources = self.metrics.lock();
            write_calls(&mut text, &resources);
            write_registrations(&mut text, &resources);
            let name = "berth_kubelet_event_to_list_seconds";
            let help = "From an event of berthd's to the list that tells the kubelet.";
            head(&mut text, name, "histogram", help);
            for (resource, counts) in &*resources {
                counts.to_list.write(&mut text, name, &format!("resource=\"{resource}\""));
            }
            self.write_groups(&mut text, &resources);
            self.write_reservations(&mut text, &resources);
        }
        let name = "berth_kubelet_reloads_total";
        head(&mut text, name, "counter", "Configurations read on SIGHUP, by outcome.");
        let reloads = *self.metrics.reloads.lock().unwrap_or_else(|broken| broken.into_inner());
        for (outcome, count) in ["taken", "refused"].iter().zip(reloads) {
            let _ = writeln!(text, "{name}{{outcome=\"{outcome}\"}} {count}");
        }
        text
    }

    fn write_groups(&self, text: &mut String, resources: &Resources) {
        let name = "berth_kubelet_groups";
        head(text, name, "gauge", "Groups that are offered, by health.");
        let inventory = self.inventory.borrow().clone();
        for resource in resources.keys() {
            let (healthy, not): (Vec<_>, Vec<_>) =
                inventory.of_resource(resource).partition(|offer| offer.unhealthy.is_none());
            for (health, count) in [("healthy", healthy.len()), ("unhealthy", not.len())] {
                let labels = format!("resource=\"{resource}\",health=\"{health}\"");
                let _ = writeln!(text, "{name}{{{labels}}} {count}");
            }
        }
    }

    fn write_reservations(&self, text: &mut String, resources: &Resources) {
        let name = "berth_kubelet_reservations";
        head(text, name, "gauge", "Allocations whose groups are reserved in berthd.");
        let all = self.claims.allocations();
        for resource in resources.keys() {
            let of = |one: &&crate::core::Allocation| {
                one.resource == *resource && one.reservation.is_some()
            };
            let count = all.iter().filter(of).count();
            let _ = writeln!(text, "{name}{{resource=\"{resource}\"}} {count}");
        }
    }
}

fn write_calls(text: &mut String, resources: &Resources) {
    let name = "berth_kubelet_allocations_total";
    head(text, name, "counter", "Allocate, by outcome.");
    for (resource, counts) in resources {
        for (outcome, count) in [("done", counts.allocated), ("refused", counts.not_allocated)] {
            let labels = format!("resource=\"{resource}\",outcome=\"{outcome}\"");
            let _ = writeln!(text, "{name}{{{labels}}} {count}");
        }
    }
    let name = "berth_kubelet_containers_let_in_total";
    head(text, name, "counter", "PreStartContainer after which the container starts.");
    for (resource, counts) in resources {
        let _ = writeln!(text, "{name}{{resource=\"{resource}\"}} {}", counts.let_in);
    }
    let name = "berth_kubelet_container_waits_total";
    head(text, name, "counter", "PreStartContainer after which the container waits, by reason.");
    for (resource, counts) in resources {
        for (reason, count) in &counts.waits {
            let labels = format!("resource=\"{resource}\",reason=\"{reason}\"");
            let _ = writeln!(text, "{name}{{{labels}}} {count}");
        }
    }
}

fn write_registrations(text: &mut String, resources: &Resources) {
    let name = "berth_kubelet_registration";
    head(text, name, "gauge", "How a resource stands with the kubelet: 1 for the state it is in.");
    for (resource, counts) in resources {
        for state in Registration::ALL {
            let is = u8::from(state == counts.registration);
            let labels = format!("resource=\"{resource}\",state=\"{}\"", state.word());
            let _ = writeln!(text, "{name}{{{labels}}} {is}");
        }
    }
    let name = "berth_kubelet_registrations_total";
    head(text, name, "counter", "Attempts to register with the kubelet, by outcome.");
    for (resource, counts) in resources {
        for (outcome, count) in [("done", counts.registered), ("refused", counts.refused)] {
            let labels = format!("resource=\"{resource}\",outcome=\"{outcome}\"");
            let _ = writeln!(text, "{name}{{{labels}}} {count}");
        }
    }
    let name = "berth_kubelet_lists_followed";
    head(text, name, "gauge", "Lists that the kubelet follows: 0 means that it forgot the plugin.");
    for (resource, counts) in resources {
        let _ = writeln!(
            text,
            "{name}{{resource=\"{resource}\"}} {}",
            counts.lists.load(Ordering::Acquire)
        );
    }
}
