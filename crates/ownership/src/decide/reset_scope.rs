//! The reset scope: what can only be reset together stays with one holder.
//!
//! A bus or slot reset hits every device there, whatever their groups. The kernel refuses one to a
//! user who doesn't own them all, and does it by itself at the last close where the others aren't
//! open. So two holders there could neither be given back clean nor be sure of what they have.

use super::refuse::{blocker, claims_in, owner_info};
use crate::command::Reserve;
use crate::ids::{DeviceId, GroupId};
use crate::model::ResetPolicy;
use crate::reason::Reason;
use crate::record::{Device, Reservation, Target};
use crate::refusal::Refusal;
use crate::state::State;

/// A device of another group that the reset of a reserved one hits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetHit {
    /// The device whose reset it is.
    pub by: DeviceId,
    /// The device that is hit too.
    pub hits: DeviceId,
    /// Its group.
    pub group: GroupId,
}

impl State {
    /// What giving these targets back resets beside them. Empty where nothing has to come of the
    /// reset, as then none is asked for.
    pub fn reset_hits(&self, targets: &[Target], policy: ResetPolicy) -> Vec<ResetHit> {
        if policy == ResetPolicy::None {
            return Vec::new();
        }
        let claimed = targets.iter().flat_map(|target| &target.devices);
        let reaching =
            claimed.filter_map(|id| self.device(id)).filter(|device| device.facts.resets_peers);
        let mut hits = Vec::new();
        for device in reaching {
            for peer in self.peers_outside(device, targets) {
                hits.push(ResetHit {
                    by: device.facts.id.clone(),
                    hits: peer.facts.id.clone(),
                    group: peer.group.clone(),
                });
            }
        }
        hits
    }

    /// Refuses what would share a reset with another holder, whoever of the two comes first.
    pub(super) fn check_reset_scope(
        &self,
        request: &Reserve,
        targets: &[Target],
    ) -> Result<(), Box<Refusal>> {
        for hit in self.reset_hits(targets, request.reset_policy) {
            let stranger = self.group(&hit.group).and_then(|group| {
                self.reservations_of(group).find(|other| is_strange(request, other))
            });
            if let (Some(other), Some(device)) = (stranger, self.device(&hit.hits)) {
                let text = format!("a reset of {} hits {} too", hit.by, hit.hits);
                return Err(self.refuse_reset_scope(&hit.by, device, other, text));
            }
        }
        for target in targets {
            let Some(group) = self.group(&target.group) else { continue };
            for device in self.devices_of(group) {
                for peer in self.peers_outside(device, targets) {
                    if let Some(other) = self.reaches(request, peer) {
                        let id = &device.facts.id;
                        let text = format!("a reset of {} hits {id} too", peer.facts.id);
                        return Err(self.refuse_reset_scope(id, peer, other, text));
                    }
                }
            }
        }
        Ok(())
    }

    /// The stranger whose giving back resets this device and its peers.
    fn reaches(&self, request: &Reserve, device: &Device) -> Option<&Reservation> {
        let other = self.device_reservation(device)?;
        let resets = device.facts.resets_peers && other.reset_policy != ResetPolicy::None;
        (resets && is_strange(request, other)).then_some(other)
    }

    /// The devices on a device's bus or slot that are in none of the targets' groups.
    fn peers_outside<'s>(
        &'s self,
        device: &'s Device,
        targets: &'s [Target],
    ) -> impl Iterator<Item = &'s Device> {
        device
            .facts
            .reset_peers
            .iter()
            .filter_map(|id| self.device(id))
            .filter(|peer| targets.iter().all(|target| target.group != peer.group))
    }

    fn refuse_reset_scope(
        &self,
        object: &DeviceId,
        theirs: &Device,
        other: &Reservation,
        text: String,
    ) -> Box<Refusal> {
        let claims = self.group(&theirs.group).map_or(0, |group| claims_in(other, group));
        let owner = format!("{} for {} (label {})", other.id, other.holder, other.label);
        let message = format!(
            "reserve {object}: {text}, as there is no reset of it alone, and group {} is {owner}'s",
            theirs.group
        );
        let blocked = blocker(theirs, format!("in one reset with {object}, reserved by {owner}"));
        let together = format!(
            "reserve both for one holder: --holder {} --label {}",
            other.holder, other.label
        );
        Refusal::new(Reason::ResetScope, object, message)
            .with_owner(Some(owner_info(other, claims)))
            .with_blockers(vec![blocked])
            .with_resolve(vec![other.release_command(), together])
    }
}

/// Whether a reservation is for somebody else than the one who asks.
fn is_strange(request: &Reserve, other: &Reservation) -> bool {
    other.holder != request.holder || other.label != request.label
}
