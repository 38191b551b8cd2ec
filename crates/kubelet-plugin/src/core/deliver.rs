//! Bringing a container to its devices: by nodes, which this process is let into for it, or by a
//! socket, at which one of its own processes becomes the holder.

use berth_proto::v1::{self, reservation::State};

use super::{Allocation, Claims, Node, NotNow, records::now_ms};
use crate::config::Resource;

impl Claims {
    /// Makes ready what the container comes to its devices by, and writes its CDI file.
    pub(super) async fn let_in(
        &self,
        resource: &Resource,
        allocation: &mut Allocation,
        reservation: &v1::Reservation,
    ) -> Result<(), NotNow> {
        let busy = |why: String| NotNow::Busy { by: allocation.title(), why };
        if reservation.state() == State::Preparing || !reservation.pending.is_empty() {
            let pending = reservation.pending.clone();
            return Err(NotNow::Preparing(reservation.id.clone(), pending));
        }
        if !may_come(allocation, reservation) {
            let state = reservation.state().as_str_name().to_lowercase();
            return Err(busy(format!("{} is {state} {}", reservation.id, reservation.detail)));
        }
        for group in &allocation.groups {
            let open = self.berthd.open_in(group).await?;
            if !open.is_empty() {
                return Err(busy(format!("{group} is open in {}", open.join(", "))));
            }
        }
        if allocation.delivery.is_attached() && reservation.state() == State::Reserved {
            let attached = self.berthd.attach(&reservation.id, reservation.epoch).await?;
            if attached.state() != State::Held {
                return Err(NotNow::Preparing(attached.id, attached.pending));
            }
        }
        self.deliver(allocation, reservation).await?;
        allocation.touched_ms = now_ms();
        allocation.cgroups.clear();
        self.cdi.write(&resource.cdi_kind(), allocation)?;
        self.records.put(allocation)?;
        tracing::info!(allocation = allocation.name, reservation = reservation.id, "let in");
        Ok(())
    }

    /// Serves the container's socket; or becomes the holder of nodes, for which the kernel's hold is
    /// dropped.
    pub(super) async fn deliver(
        &self,
        allocation: &mut Allocation,
        reservation: &v1::Reservation,
    ) -> Result<(), NotNow> {
        if allocation.delivery.by_socket() {
            return Ok(self.sockets.open(&allocation.name)?);
        }
        let nodes = self.berthd.hand_over(&reservation.id, reservation.epoch).await?;
        allocation.nodes = nodes.into_iter().map(|node| Node { path: node.path }).collect();
        Ok(self.records.put(allocation)?)
    }
}

/// Whether the reservation is in a state from which a container may start: no former run's process
/// has anything of it.
fn may_come(allocation: &Allocation, reservation: &v1::Reservation) -> bool {
    match reservation.state() {
        State::Reserved => true,
        // A former run had the nodes open, and this process is the holder for as long as it lives.
        State::Handed | State::Held if !allocation.delivery.by_socket() => true,
        // Attached, and fetched by nobody yet.
        State::Held => {
            allocation.delivery.is_attached()
                && reservation.claims.iter().all(|claim| claim.processes.is_empty())
        }
        _ => false,
    }
}
