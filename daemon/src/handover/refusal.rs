//! Refusals as the hand-over socket has them.

use berth_handover as wire;
use berth_ownership::{Blocker, OwnerInfo, Refusal};

pub(super) fn refusal(refusal: &Refusal) -> Box<wire::Refusal> {
    Box::new(wire::Refusal {
        reason: refusal.reason.name().to_owned(),
        errno: refusal.errno,
        errno_name: crate::view::errno::name(refusal.errno),
        object: refusal.object.clone(),
        message: refusal.message.clone(),
        owner: refusal.owner.as_ref().map(owner),
        blockers: refusal.blockers.iter().map(blocker).collect(),
        resolve: refusal.resolve.clone(),
    })
}

fn owner(owner: &OwnerInfo) -> wire::Owner {
    wire::Owner {
        kind: owner.kind.clone(),
        holder: owner.holder.as_ref().map(ToString::to_string),
        label: owner.label.as_ref().map(ToString::to_string),
        reservation: owner.reservation.as_ref().map(ToString::to_string),
        claims: owner.claims,
    }
}

fn blocker(blocker: &Blocker) -> wire::Blocker {
    wire::Blocker {
        device: blocker.device.to_string(),
        driver: blocker.driver.clone(),
        processes: blocker.processes.clone(),
        mounts: blocker.mounts.clone(),
        text: blocker.text.clone(),
    }
}
