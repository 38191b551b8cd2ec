//! Network interfaces of a device, what is built on them, and the routes that use them.

use std::collections::BTreeSet;

use super::routes;
use crate::{
    HostError, HostUse, PciAddress,
    linux::tree::{self, Root},
};

/// Finds routes, bonds and bridges that use a device's interfaces.
///
/// # Errors
/// Of the tables of routes.
pub(super) fn find(root: &Root, address: PciAddress) -> Result<Vec<HostUse>, HostError> {
    let own = interfaces(root, address);
    if own.is_empty() {
        return Ok(Vec::new());
    }
    let mut uses = Vec::new();
    let mut seen = own.clone();
    let mut todo: Vec<String> = own.iter().cloned().collect();
    while let Some(lower) = todo.pop() {
        for upper in uppers(root, &lower) {
            if let Some(kind) = kind_of(root, &upper) {
                uses.push(HostUse::new(kind, format!("{upper} has {lower}")));
            }
            if seen.insert(upper.clone()) {
                todo.push(upper);
            }
        }
    }
    let mut all = routes::parse_v4(&super::table(root.join("proc/net/route"))?);
    all.extend(routes::parse_v6(&super::table(root.join("proc/net/ipv6_route"))?));
    for route in all.iter().filter(|route| seen.contains(&route.interface)) {
        uses.push(HostUse::new("route", format!("{} by {}", route.network, route.interface)));
    }
    uses.sort_by(|a, b| (&a.kind, &a.detail).cmp(&(&b.kind, &b.detail)));
    uses.dedup();
    Ok(uses)
}

/// The interfaces of a device: its own, or those of a virtio device in it.
fn interfaces(root: &Root, address: PciAddress) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let Ok(dir) = tree::open_dir(&root.device(address)) else { return names };
    let mut places = vec!["net".to_owned()];
    tree::each_name_at(&dir, ".", |name| {
        if name.starts_with("virtio") {
            places.push(format!("{name}/net"));
        }
    });
    for place in places {
        tree::each_name_at(&dir, &place, |name| {
            names.insert(name.to_owned());
        });
    }
    names
}

/// Interfaces that are built on one: bonds, bridges, VLANs.
fn uppers(root: &Root, interface: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(dir) = tree::open_dir(&root.join("sys/class/net").join(interface)) else {
        return found;
    };
    tree::each_name_at(&dir, ".", |name| {
        if let Some(upper) = name.strip_prefix("upper_") {
            found.insert(upper.to_owned());
        }
    });
    let mut link = vec![0; tree::PAGE_BYTES];
    found.extend(tree::link_name_at(&dir, "master", &mut link).map(str::to_owned));
    found
}

fn kind_of(root: &Root, interface: &str) -> Option<&'static str> {
    let dir = root.join("sys/class/net").join(interface);
    if dir.join("bonding").is_dir() {
        Some("bond")
    } else if dir.join("bridge").is_dir() {
        Some("bridge")
    } else {
        None
    }
}
