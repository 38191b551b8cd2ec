//! Host drivers in a group, and what the host does by them.

use std::cmp::Reverse;

use berth_host::{DeviceFacts, DmaKind, HostUse, PciAddress, PrivateDomain};
use berth_ownership::Group;
use berth_proto::v1;

use super::{Code, finding, fixed_by};
use crate::model::Snapshot;

/// Members, without the bridges.
fn functions<'s>(snapshot: &'s Snapshot, group: &Group) -> Vec<&'s DeviceFacts> {
    let members = group.devices.iter().filter_map(|id| snapshot.device_by_id(id));
    members.filter(|facts| !facts.bridge).collect()
}

fn uses_kernel_dma(facts: &DeviceFacts) -> bool {
    matches!(facts.dma, DmaKind::Kernel | DmaKind::Assumed)
}

/// Members on host drivers that use kernel DMA.
pub(super) fn on_host<'s>(snapshot: &'s Snapshot, group: &Group) -> Vec<&'s DeviceFacts> {
    functions(snapshot, group).into_iter().filter(|facts| uses_kernel_dma(facts)).collect()
}

/// Devices on host drivers that keep others of their group, which are on none, from being given away.
pub(super) fn siblings(snapshot: &Snapshot, group: &Group) -> Vec<v1::Finding> {
    let functions = functions(snapshot, group);
    let others: Vec<String> = functions
        .iter()
        .filter(|facts| !uses_kernel_dma(facts))
        .map(|facts| facts.address.to_string())
        .collect();
    if others.is_empty() {
        return Vec::new();
    }
    let keeps = functions.into_iter().filter(|facts| uses_kernel_dma(facts)).map(|facts| {
        let cause = format!(
            "it is on {}, so {} of its group can't be given away either",
            driver(facts),
            others.join(", ")
        );
        released(snapshot, facts, finding(Code::SiblingDriver, facts.address, cause))
    });
    keeps.collect()
}

/// Of every device of a group that is on a host driver: that, and what the host does by it.
pub(super) fn of(snapshot: &Snapshot, group: &Group) -> Vec<v1::Finding> {
    let functions = functions(snapshot, group);
    let alone = functions.iter().all(|facts| uses_kernel_dma(facts));
    let mut found = if alone { Vec::new() } else { siblings(snapshot, group) };
    for facts in functions.into_iter().filter(|facts| uses_kernel_dma(facts)) {
        if alone {
            let cause = format!("it is on {}, which uses kernel DMA", driver(facts));
            let finding = finding(Code::HostDriver, facts.address, cause);
            found.push(released(snapshot, facts, finding));
        }
        found.extend(snapshot.uses_of(facts.address).iter().map(|used| in_use(facts, used)));
    }
    found
}

fn driver(facts: &DeviceFacts) -> String {
    let name = facts.driver.as_deref().unwrap_or("a driver");
    match facts.dma {
        DmaKind::Assumed => format!("{name}, a driver that Berth doesn't know"),
        DmaKind::None | DmaKind::Managed | DmaKind::Kernel => format!("host driver {name}"),
    }
}

/// With what takes the driver away.
pub(super) fn released(
    snapshot: &Snapshot,
    facts: &DeviceFacts,
    finding: v1::Finding,
) -> v1::Finding {
    let at = facts.address;
    let keepers = facts.private_domain.as_ref().map(PrivateDomain::keepers).unwrap_or_default();
    if !keepers.is_empty() {
        return fixed_by(finding, format!("first end {}", keepers.join(", ")));
    }
    fixed_by(finding, release(at, snapshot.uses_of(at)))
}

/// What takes the driver away, once the host does nothing by the device any more: what ends that
/// stands before it, as a command where it is one. Nobody is told to take a disk from under a mount.
pub(in crate::view) fn release(device: PciAddress, uses: &[HostUse]) -> String {
    let release = format!("berth kernel-dma release {device}");
    // What is mounted inside another mount goes before that, and both before what they are made of.
    let mut uses: Vec<&HostUse> = uses.iter().collect();
    uses.sort_by_key(|used| (used.kind == "md", Reverse(used.target())));
    match uses.into_iter().map(ended_by).collect::<Option<Vec<_>>>() {
        Some(commands) => commands.into_iter().chain([release]).collect::<Vec<_>>().join(" && "),
        None => format!("end what the host does by {device}, then: {release}"),
    }
}

/// The command that ends a use, where one does.
fn ended_by(used: &HostUse) -> Option<String> {
    let command = match used.kind.as_str() {
        "mount" => "umount",
        "swap" => "swapoff",
        "md" => "mdadm --stop",
        _ => return None,
    };
    Some(format!("{command} {}", quoted(used.target())))
}

/// As a shell takes it for one word: a mount point may be named like anything.
fn quoted(word: &str) -> String {
    let plain = |char: char| char.is_ascii_alphanumeric() || "/._-+:@%=,".contains(char);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn in_use(facts: &DeviceFacts, used: &HostUse) -> v1::Finding {
    let (kind, detail) = (used.kind.as_str(), used.detail.as_str());
    let command = ended_by(used).unwrap_or_default();
    let (cause, fix) = match kind {
        "mount" => (format!("{} is mounted from it", used.target()), command),
        "swap" => (format!("the host swaps to {detail} on it"), command),
        "md" => (format!("it is part of the array {detail}"), command),
        "dm" | "lvm" => (
            format!("it carries {detail} of the device mapper"),
            format!("vgchange -an, cryptsetup close or dmsetup remove, whichever made {detail}"),
        ),
        "route" => {
            (format!("the host's route goes over it: {detail}"), "take that route away".to_owned())
        }
        "bond" => (format!("it is in the bond {detail}"), format!("take it out of {detail}")),
        "bridge" => (format!("it is in the bridge {detail}"), format!("take it out of {detail}")),
        "boot-display" => (
            format!("it is the host's display: {detail}"),
            "let another card or a serial line have the console".to_owned(),
        ),
        _ => (format!("the host uses it: {kind} {detail}"), format!("end that use: {kind}")),
    };
    fixed_by(finding(Code::HostUsesDevice, facts.address, cause), fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_does_is_ended_before_the_driver_goes() {
        let at = "0000:65:00.0".parse().expect("an address");
        let told = |uses: &[(&str, &str)]| {
            let of = |(kind, target): &(&str, &str)| {
                HostUse::new(*kind, format!("{target} on nvme0n1")).with_target(*target)
            };
            release(at, &uses.iter().map(of).collect::<Vec<_>>())
        };
        let goes = "berth kernel-dma release 0000:65:00.0";
        assert_eq!(told(&[]), goes);
        let mounted = told(&[("mount", "/srv/it's here"), ("swap", "/dev/nvme0n1p2")]);
        assert_eq!(
            mounted,
            format!("umount '/srv/it'\\''s here' && swapoff /dev/nvme0n1p2 && {goes}")
        );
        let stacked = told(&[("md", "/dev/md0"), ("mount", "/srv"), ("mount", "/srv/deep")]);
        let ends = "umount /srv/deep && umount /srv && mdadm --stop /dev/md0";
        assert_eq!(stacked, format!("{ends} && {goes}"));
        let both = told(&[("mount", "/srv"), ("route", "default dev eth0")]);
        assert_eq!(both, format!("end what the host does by 0000:65:00.0, then: {goes}"));
    }
}
