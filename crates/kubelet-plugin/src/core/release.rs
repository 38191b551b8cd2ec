//! Release without a Deallocate: PodResources, processes, control groups and open descriptors
//! decide together. What the kubelet leaves out of its list is not free for that alone.

use std::{collections::BTreeSet, time::Duration};

use berth_proto::v1;

use super::{Allocation, Claims, HOLDER_PREFIX, NotNow};
use crate::{config::cdi_kind, node::Listed};

impl Claims {
    /// Looks at every allocation, again and again. Never returns.
    pub async fn keep_releasing(&self) {
        loop {
            if let Err(error) = self.release_pass().await {
                tracing::debug!(%error, "nothing is given back now");
            }
            self.tell_holding();
            let beat = self.configs.borrow().release_ms;
            tokio::time::sleep(Duration::from_millis(beat)).await;
        }
    }

    /// Gives back what nobody has any more; answers with the names of those allocations.
    ///
    /// # Errors
    /// The kubelet doesn't say what its pods have, or processes can't be looked at: then nothing is
    /// free.
    pub async fn release_pass(&self) -> Result<Vec<String>, NotNow> {
        let _turn = self.turn.lock().await;
        let listed = self.pods.list().await?;
        self.holding.lists(&listed);
        let processes = self.look().await?;
        let mut freed = Vec::new();
        for mut allocation in self.records.all() {
            let seen = processes.cgroups(&allocation.name);
            let before = allocation.clone();
            allocation.cgroups.extend(seen);
            let current = self.is_current(&allocation);
            let pod = listed.iter().find(|one| current && one.is_of(&allocation));
            if let Some(pod) = pod {
                allocation.pod = Some(pod.pod.clone());
            }
            if allocation != before
                && let Err(error) = self.records.put(&allocation)
            {
                tracing::warn!(%error, "the record is not on disk");
            }
            if pod.is_some() || self.in_use(&allocation, &processes).is_some() {
                continue;
            }
            let nothing_held = current && allocation.reservation.is_none();
            if nothing_held || self.waits(&allocation, &listed) {
                continue;
            }
            match self.free(&allocation).await {
                Ok(()) => freed.push(allocation.name),
                Err(NotNow::Busy { by, why }) => tracing::info!(by, why, "not free yet"),
                Err(error) => {
                    tracing::warn!(%error, allocation = allocation.name, "not given back")
                }
            }
        }
        Ok(freed)
    }

    /// Whether the kubelet's list is about this allocation: it is about the newest of a group.
    pub(super) fn is_current(&self, allocation: &Allocation) -> bool {
        let newer = |one: &Allocation| one.serial > allocation.serial && one.meets(allocation);
        !self.records.all().iter().any(newer)
    }

    /// An allocation that never started: its pod may be listed in a moment. An init container's,
    /// that the main container's follows, is what the kubelet's list is about as long as the main
    /// one has taken nothing.
    fn waits(&self, allocation: &Allocation, listed: &[Listed]) -> bool {
        let age = super::records::now_ms().saturating_sub(allocation.touched_ms);
        let newer_waits = self.records.all().iter().any(|one| {
            one.serial > allocation.serial && one.meets(allocation) && one.reservation.is_none()
        });
        age < self.settle_ms() || (newer_waits && listed.iter().any(|one| one.is_of(allocation)))
    }

    /// At start: reservations and records are matched, and what a container may be using is handed
    /// over to this process and written for the runtime again, as both end with a reboot.
    ///
    /// # Errors
    /// `berthd` doesn't answer, or a directory can't be written.
    pub async fn restore(&self) -> Result<(), NotNow> {
        let _turn = self.turn.lock().await;
        let reservations = self.berthd.list().await?;
        for reservation in &reservations {
            self.adopt(reservation)?;
        }
        let all = self.records.all();
        let names: BTreeSet<String> = all.iter().map(|one| one.name.clone()).collect();
        self.cdi.keep_only(&names)?;
        self.sockets.keep_only(&names)?;
        for mut allocation in all {
            let Some(id) = allocation.reservation.clone() else { continue };
            match reservations.iter().find(|one| one.id == id) {
                Some(there) => {
                    if let Err(error) = self.deliver(&mut allocation, there).await {
                        tracing::warn!(%error, reservation = id, "not handed over again");
                    }
                }
                None => tracing::warn!(reservation = id, "berthd knows it no more"),
            }
            // Also of a resource that the configuration has no more: its pods run.
            if allocation.is_delivered() && !allocation.resource.is_empty() {
                self.cdi.write(&cdi_kind(&allocation.resource), &allocation)?;
            }
        }
        self.tell_holding();
        Ok(())
    }

    /// A reservation of ours that no record knows: made just before a crash, or the records were
    /// lost. It is recorded, so that it is given back once nobody has it.
    fn adopt(&self, reservation: &v1::Reservation) -> Result<(), NotNow> {
        let holder = reservation.holder.as_ref().map(|holder| holder.name.as_str()).unwrap_or("");
        let Some(name) = holder.strip_prefix(HOLDER_PREFIX) else { return Ok(()) };
        let known = self.records.all().into_iter().find(|one| one.name == name);
        if known.as_ref().is_some_and(|one| one.reservation.is_some()) {
            return Ok(());
        }
        let groups = reservation.targets.iter().map(|target| target.group.clone()).collect();
        let mut allocation = known.unwrap_or_else(|| Allocation {
            name: name.to_owned(),
            groups,
            touched_ms: super::records::now_ms(),
            ..Allocation::default()
        });
        allocation.reservation = Some(reservation.id.clone());
        self.records.put(&allocation)?;
        Ok(())
    }
}
