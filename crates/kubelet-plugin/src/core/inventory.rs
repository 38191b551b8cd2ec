//! The groups that are offered, kept equal to what `berthd` says.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use berth_proto::v1;
use tokio::sync::watch;

use super::{HOLDER_PREFIX, Held};
use crate::config::{Baseline, Resource, Selector};

/// One device of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// In full, `0000:65:00.0`.
    pub address: String,
    /// Vendor's id.
    pub vendor: u32,
    /// Device's id.
    pub device: u32,
    /// 24 bits.
    pub class: u32,
}

/// One group that is offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The group's stable id, and the device's in Kubernetes.
    pub id: String,
    /// The kernel's number now.
    pub number: u32,
    /// The name of the resource that it is one of.
    pub resource: String,
    /// The function that the group is offered for; the first of `members`.
    pub primary: String,
    /// Its functions, bridges left out.
    pub members: Vec<Member>,
    /// Unset where the kernel doesn't know.
    pub numa_node: Option<i32>,
    /// Addresses outside of the group that a reset of it hits, too.
    pub reset_with: Vec<String>,
    /// Why it can't be used now; unset where it can.
    pub unhealthy: Option<String>,
}

/// All that is offered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// By stable id.
    pub offers: BTreeMap<String, Offer>,
    /// When the event was that led to it; unset where none did.
    pub event: Option<SystemTime>,
}

impl Inventory {
    /// What groups and reservations amount to; `before` tells which were offered already, and stay
    /// so while they are there.
    #[must_use]
    pub fn of(
        groups: &[v1::Group],
        reservations: &[v1::Reservation],
        resources: &[Resource],
        held: &Held,
        before: &Self,
    ) -> Self {
        let mut offers = BTreeMap::new();
        for group in groups {
            let fit = resource_of(group, resources);
            let id = &group.stable_id;
            if let Some(name) = held.get(id).filter(|name| !is_of(fit, name)) {
                offers.extend(left_over(group, name, fit, before).map(|one| (id.clone(), one)));
                continue;
            }
            let Some((resource, primary)) = fit else { continue };
            let unhealthy =
                unhealthy(group, resource).or_else(|| held_by_others(group, reservations));
            let reserved = !group.reservations.is_empty();
            let known = before.offers.get(id).is_some_and(|one| one.resource == resource.name);
            if unhealthy.is_none() || reserved || known {
                let offer = offer(group, &resource.name, primary, unhealthy);
                offers.insert(offer.id.clone(), offer);
            }
        }
        Self { offers, event: None }
    }

    /// The offers of one resource.
    pub fn of_resource<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = &'a Offer> {
        self.offers.values().filter(move |offer| offer.resource == resource)
    }

    pub(super) fn all_unhealthy(&self, why: &str) -> Self {
        let mut away = self.clone();
        away.offers.values_mut().for_each(|offer| offer.unhealthy = Some(why.to_owned()));
        away
    }
}

/// The first resource that the group is of, and its primary function.
fn resource_of<'a, 'b>(
    group: &'b v1::Group,
    resources: &'a [Resource],
) -> Option<(&'a Resource, &'b v1::Device)> {
    resources.iter().find_map(|resource| {
        let mut fitting: Vec<&v1::Device> =
            functions(group).filter(|device| fits(&resource.selector, device)).collect();
        fitting.sort_by_key(|device| address(device.address.as_ref()));
        Some((resource, *fitting.first()?))
    })
}

fn is_of(fit: Option<(&Resource, &v1::Device)>, name: &str) -> bool {
    fit.is_some_and(|(resource, _)| resource.name == name)
}

/// A group that a pod got as another resource than the configuration has it for now. It stays that
/// resource's until it is released, and nobody else gets it meanwhile.
fn left_over(
    group: &v1::Group,
    name: &str,
    fit: Option<(&Resource, &v1::Device)>,
    before: &Inventory,
) -> Option<Offer> {
    let was = before.offers.get(&group.stable_id).filter(|was| was.resource == name);
    let mut all: Vec<&v1::Device> = functions(group).collect();
    all.sort_by_key(|device| address(device.address.as_ref()));
    let same = |device: &&&v1::Device| {
        was.is_some_and(|was| was.primary == address(device.address.as_ref()))
    };
    let primary = all.iter().find(same).or(all.first())?;
    let now = fit.map_or("no resource", |(resource, _)| resource.name.as_str());
    let why = format!("given out as {name}; by the configuration it is of {now} once it is free");
    Some(offer(group, name, primary, Some(why)))
}

fn functions(group: &v1::Group) -> impl Iterator<Item = &v1::Device> {
    group.devices.iter().filter(|device| !device.is_bridge)
}

fn fits(selector: &Selector, device: &v1::Device) -> bool {
    let class = format!("{:06x}", device.class_code);
    class.starts_with(&selector.class)
        && selector.vendor.is_none_or(|id| id == device.vendor_id)
        && selector.device.is_none_or(|id| id == device.device_id)
        && selector.numa_node.is_none_or(|node| node == device.numa_node)
        && selector
            .address
            .as_ref()
            .is_none_or(|pattern| like(pattern, &address(device.address.as_ref())))
}

/// Whether a text fits a pattern in which `*` is any text.
fn like(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(left) = text.strip_prefix(head) else { return false };
    (0..=left.len()).any(|at| left.get(at..).is_some_and(|left| like(rest, left)))
}

fn address(address: Option<&v1::DeviceAddress>) -> String {
    match address.and_then(|address| address.kind.as_ref()) {
        Some(v1::device_address::Kind::Pci(text) | v1::device_address::Kind::Mdev(text)) => {
            text.clone()
        }
        Some(v1::device_address::Kind::Platform(text)) => text.clone(),
        None => String::new(),
    }
}

/// Why the group can't be given to a pod, now.
fn unhealthy(group: &v1::Group, resource: &Resource) -> Option<String> {
    match group.condition() {
        v1::Condition::Ok | v1::Condition::Degraded | v1::Condition::Unspecified => {}
        other => {
            let word = other.as_str_name().to_lowercase();
            return Some(match group.condition_note.as_str() {
                "" => word,
                note => format!("{word}: {note}"),
            });
        }
    }
    let owner = group.owner.clone().unwrap_or_default();
    if group.ownership() == v1::owner::Kind::Foreign {
        let pids: Vec<String> =
            owner.processes.iter().map(|p| format!("{} ({})", p.name, p.pid)).collect();
        return Some(format!("used by {}", pids.join(", ")));
    }
    if resource.baseline == Baseline::Vfio
        && let Some(other) = functions(group).find(|device| !is_vfio(device))
    {
        let driver = match before_berth(other) {
            "" => "no driver",
            driver => driver,
        };
        let address = address(other.address.as_ref());
        return Some(format!("{address} has {driver} while it is free, not {}", other.vfio_driver));
    }
    if group.viable {
        return None;
    }
    let blocking = |device: &&v1::Device| {
        !matches!(device.uses_kernel_dma(), v1::kernel_dma::Uses::No)
            && (!resource.take_from_host || !device.host_uses.is_empty())
    };
    group.devices.iter().find(blocking).map(|device| {
        let uses: Vec<&str> = device.host_uses.iter().map(|host| host.kind.as_str()).collect();
        let uses = if uses.is_empty() { String::new() } else { format!(", {}", uses.join(", ")) };
        format!("{} is on {}{uses}", address(device.address.as_ref()), device.driver)
    })
}

/// The driver that a device has while nobody has it.
fn before_berth(device: &v1::Device) -> &str {
    device.baseline.as_ref().map_or(&device.driver, |baseline| &baseline.driver)
}

fn is_vfio(device: &v1::Device) -> bool {
    let driver = before_berth(device);
    driver == "vfio-pci" || (!driver.is_empty() && driver == device.vfio_driver)
}

/// A reservation that isn't of the kubelet's, with claims or without.
fn held_by_others(group: &v1::Group, reservations: &[v1::Reservation]) -> Option<String> {
    group.reservations.iter().find_map(|id| {
        let holder = reservations.iter().find(|one| one.id == *id)?.holder.as_ref()?;
        let ours = holder.name.starts_with(HOLDER_PREFIX);
        (!ours).then(|| format!("held by {} ({id})", holder.name))
    })
}

fn offer(
    group: &v1::Group,
    resource: &str,
    primary: &v1::Device,
    unhealthy: Option<String>,
) -> Offer {
    let first = address(primary.address.as_ref());
    let mut members: Vec<Member> = functions(group)
        .map(|device| Member {
            address: address(device.address.as_ref()),
            vendor: device.vendor_id,
            device: device.device_id,
            class: device.class_code,
        })
        .collect();
    members.sort_by_key(|member| (member.address != first, member.address.clone()));
    let own = |other: &String| members.iter().any(|member| member.address == *other);
    let reset_with = functions(group)
        .flat_map(|device| &device.reset_with)
        .map(|other| address(Some(other)))
        .filter(|other| !own(other))
        .collect();
    Offer {
        id: group.stable_id.clone(),
        number: group.number,
        resource: resource.to_owned(),
        primary: first,
        numa_node: Some(primary.numa_node).filter(|node| *node >= 0),
        reset_with,
        unhealthy,
        members,
    }
}

/// Publishes what is offered, and logs what is different.
pub(super) fn show(publish: &watch::Sender<Arc<Inventory>>, next: Inventory) {
    let before = publish.borrow().clone();
    if before.offers == next.offers {
        return;
    }
    for offer in next.offers.values() {
        let was = before.offers.get(&offer.id).map(|was| &was.unhealthy);
        let (group, resource) = (&offer.id, &offer.resource);
        match (&offer.unhealthy, was) {
            (now, Some(was)) if now == was => {}
            (None, _) => tracing::info!(group, resource, device = offer.primary, "healthy"),
            (Some(why), _) => {
                tracing::warn!(group, resource, device = offer.primary, why, "unhealthy");
            }
        }
    }
    for gone in before.offers.keys().filter(|id| !next.offers.contains_key(*id)) {
        tracing::warn!(group = gone, "gone");
    }
    publish.send_replace(Arc::new(next));
}

#[cfg(test)]
mod tests {
    use super::like;

    #[test]
    fn a_star_is_any_text() {
        for (pattern, text, fits) in [
            ("0000:65:*", "0000:65:00.0", true),
            ("0000:65:*", "0000:66:00.0", false),
            ("*:00.0", "0000:65:00.0", true),
            ("*:00.0", "0000:65:00.1", false),
            ("0000:65:00.0", "0000:65:00.0", true),
            ("*6*.0", "0000:65:00.0", true),
        ] {
            assert_eq!(like(pattern, text), fits, "{pattern} {text}");
        }
    }
}
