//! What the ledger does by itself, now and then: end leases and cordons.

use std::time::Duration;

use berth_ownership::Command;
use tokio::time::{MissedTickBehavior, interval};

use super::LedgerHandle;
use crate::model::Meta;

/// How often leases are looked at.
const EVERY: Duration = Duration::from_secs(1);

impl LedgerHandle {
    /// Ends leases and cordons that are due, for as long as it is polled.
    pub async fn expire_leases(self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.expire_due().await;
        }
    }

    /// Ends the leases and cordons that are due now.
    pub async fn expire_due(&self) {
        // It ends as soon as that can be written.
        if self.degraded().is_some() {
            return;
        }
        let (snapshot, now) = (self.snapshot(), self.clock().now());
        for reservation in snapshot.state.due(&now) {
            let command = Command::Expire { reservation: reservation.clone() };
            if let Err(error) = self.submit(command, Meta::internal("expiry")).await {
                tracing::warn!(%reservation, %error, "ending a lease");
            }
        }
        for device in snapshot.state.due_cordons(&now) {
            let command = Command::EndCordon { device: device.clone() };
            if let Err(error) = self.submit(command, Meta::internal("expiry")).await {
                tracing::warn!(%device, %error, "ending a cordon");
            }
        }
    }
}
