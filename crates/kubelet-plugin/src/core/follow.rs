//! Keeps the inventory equal to what `berthd` says, what the configuration says, and what is given out.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::sync::watch;

use super::{Berthd, BerthdError, Held, Inventory, inventory::show};
use crate::config::Config;

/// How long `berthd` may be away before its groups count as unhealthy: a restart is shorter.
const AWAY: Duration = Duration::from_secs(30);
/// Changes that come together are looked at together.
const TOGETHER: Duration = Duration::from_millis(50);
/// Between two attempts to reach `berthd`.
const AGAIN: Duration = Duration::from_millis(500);

/// What the inventory is made of, and where it goes.
#[derive(Debug)]
pub struct Follower {
    /// Whose groups they are.
    pub berthd: Berthd,
    /// Which of them are which resource.
    pub configs: watch::Receiver<Arc<Config>>,
    /// Which of them are given out.
    pub held: watch::Receiver<Held>,
    /// Where it is told.
    pub publish: watch::Sender<Arc<Inventory>>,
}

impl Follower {
    /// Follows `berthd`'s events, and publishes what is offered after each change. Never returns.
    pub async fn follow(mut self) {
        let mut seen = tokio::time::Instant::now();
        loop {
            if let Err(error) = self.one_watch(&mut seen).await {
                tracing::debug!(%error, "berthd is away");
                if seen.elapsed() > AWAY {
                    let away = self.publish.borrow().all_unhealthy("berthd doesn't answer");
                    show(&self.publish, away);
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn one_watch(&mut self, seen: &mut tokio::time::Instant) -> Result<(), BerthdError> {
        let mut since = self.refresh(None).await?;
        let mut events = self.berthd.watch(since).await?;
        loop {
            *seen = tokio::time::Instant::now();
            let event = tokio::select! {
                event = events.message() => event.map_err(BerthdError::from)?,
                () = changed(&mut self.configs) => {
                    since = self.refresh(Some(SystemTime::now())).await?;
                    continue;
                }
                () = changed(&mut self.held) => {
                    since = self.refresh(Some(SystemTime::now())).await?;
                    continue;
                }
            };
            let Some(event) = event else { return Ok(()) };
            *seen = tokio::time::Instant::now();
            if event.seq > since {
                tokio::time::sleep(TOGETHER).await;
                since = self.refresh(event.time.map(when)).await?;
            }
        }
    }

    /// Looks at everything, because of an event of this time.
    async fn refresh(&mut self, event: Option<SystemTime>) -> Result<u64, BerthdError> {
        // Looked at below, whatever it is by then.
        let held = self.held.borrow_and_update().clone();
        let config = self.configs.borrow_and_update().clone();
        let answer = self.berthd.groups().await?;
        let reservations = self.berthd.list().await?;
        let before = self.publish.borrow().clone();
        let next = Inventory::of(&answer.groups, &reservations, &config.resources, &held, &before);
        show(&self.publish, Inventory { event, ..next });
        Ok(answer.resume_seq)
    }
}

/// Returns once there is another value; never where none will come.
async fn changed<T>(values: &mut watch::Receiver<T>) {
    if values.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn when(time: berth_proto::Timestamp) -> SystemTime {
    let seconds = u64::try_from(time.seconds).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::new(seconds, u32::try_from(time.nanos).unwrap_or(0))
}
