//! Refusals as the API has them.

use berth_ownership::{Blocker, OwnerInfo, Reason, Refusal};
use berth_proto::v1;

use super::{device::process, errno, words::address};

/// A refusal as the API has it.
#[must_use]
pub fn refusal(refusal: &Refusal) -> v1::Refusal {
    v1::Refusal {
        reason: refusal.reason.name().to_owned(),
        errno: refusal.errno,
        errno_name: errno::name(refusal.errno),
        object: refusal.object.clone(),
        message: refusal.message.clone(),
        owner: refusal
            .owner
            .as_ref()
            .map(|it| v1::Owner { processes: owners(refusal), ..owner(it) }),
        blockers: refusal.blockers.iter().map(|blocker| one(blocker, &refusal.resolve)).collect(),
        resolve: refusal.resolve.clone(),
    }
}

/// The processes outside that own what was refused, each once.
fn owners(refusal: &Refusal) -> Vec<v1::Process> {
    if refusal.reason != Reason::ForeignOwner {
        return Vec::new();
    }
    let mut found: Vec<v1::Process> = Vec::new();
    for text in refusal.blockers.iter().flat_map(|blocker| &blocker.processes) {
        let one = process(text);
        if one.pid != 0 && !found.contains(&one) {
            found.push(one);
        }
    }
    found
}

fn owner(owner: &OwnerInfo) -> v1::Owner {
    use v1::owner::Kind;
    let kind = match owner.kind.as_str() {
        // A reservation without claims holds the group, but owns no DMA yet.
        "hold" | "free" => Kind::Free,
        "kernel" => Kind::Kernel,
        "private" => Kind::Private,
        "exclusive" => Kind::Exclusive,
        "shared" => Kind::Shared,
        "group" => Kind::Group,
        "foreign" => Kind::Foreign,
        _ => Kind::Unspecified,
    };
    v1::Owner {
        kind: kind.into(),
        holder: owner.holder.as_ref().map(ToString::to_string).unwrap_or_default(),
        label: owner.label.as_ref().map(ToString::to_string).unwrap_or_default(),
        reservation: owner.reservation.as_ref().map(ToString::to_string).unwrap_or_default(),
        domain: String::new(),
        claims: owner.claims,
        processes: Vec::new(),
    }
}

fn one(blocker: &Blocker, resolve: &[String]) -> v1::Blocker {
    let device = blocker.device.as_str();
    v1::Blocker {
        device: Some(address(device)),
        driver: blocker.driver.clone().unwrap_or_default(),
        processes: blocker.processes.iter().map(|text| process(text)).collect(),
        uses: blocker.mounts.iter().map(|text| host_use(text)).collect(),
        text: blocker.text.clone(),
        resolve: resolve.iter().find(|line| line.contains(device)).cloned().unwrap_or_default(),
    }
}

fn host_use(text: &str) -> v1::HostUse {
    let (kind, detail) = text.split_once(' ').unwrap_or((text, ""));
    v1::HostUse { kind: kind.to_owned(), detail: detail.to_owned() }
}
