//! The daemon's heartbeat: it is alive while its parts turn, not while a timer runs.
//!
//! The ledger turns when it answers a message, behind whatever had to be written for those before.
//! The engine turns when it starts work on a thread and that ends. Neither waits for the kernel or a
//! helper for that: work that hangs there makes devices wedged and not the daemon dead. The thread of
//! a hand-over socket turns when it comes to a task that is new.

use std::{future::Future, io, pin::Pin, time::Duration};

use tokio::time::{sleep, timeout};

use crate::{acts::Engine, handover::Serving, ledger::LedgerHandle, notify};

/// How often within the period the parts are asked: one that is slow once is no dead one.
const TIMES: u32 = 4;

type Turn = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Something that has to turn.
pub(crate) struct Part {
    name: &'static str,
    /// Asks it to; done when it has.
    turn: Box<dyn Fn() -> Turn + Send + Sync>,
}

impl Part {
    fn new<F: Future<Output = ()> + Send + 'static>(
        name: &'static str,
        turn: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self {
        Self { name, turn: Box::new(move || Box::pin(turn())) }
    }
}

/// The parts of a daemon.
pub(crate) fn parts(ledger: LedgerHandle, engine: &Engine, handover: Vec<Serving>) -> Vec<Part> {
    let engine = engine.clone();
    let mut parts = vec![
        Part::new("ledger", move || {
            let ledger = ledger.clone();
            async move { ledger.turn().await }
        }),
        Part::new("engine", move || {
            let engine = engine.clone();
            async move { engine.turn().await }
        }),
    ];
    let sockets = handover.into_iter();
    parts.extend(sockets.map(|socket| Part::new("hand-over", move || socket.turn())));
    parts
}

/// Feeds the service manager's watchdog, which wants to hear of us once within `period`.
pub(crate) async fn feed_watchdog(parts: Vec<Part>, period: Duration) {
    beat(parts, period, || {
        // The manager's socket may be full: not on a thread of the runtime.
        tokio::task::spawn_blocking(|| report(notify::service_manager(&["WATCHDOG=1"])));
    })
    .await;
}

fn report(told: io::Result<()>) {
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager's watchdog was not fed");
    }
}

/// Calls `alive` whenever all parts have turned, some times within each period; never ends.
async fn beat(parts: Vec<Part>, period: Duration, mut alive: impl FnMut()) {
    loop {
        for part in &parts {
            turned(part, period).await;
        }
        alive();
        sleep(period / TIMES).await;
    }
}

/// Waits until a part has turned, and says so when that takes long.
async fn turned(part: &Part, period: Duration) {
    let mut turn = (part.turn)();
    if timeout(period / 2, turn.as_mut()).await.is_ok() {
        return;
    }
    tracing::error!(
        part = part.name,
        within = ?period,
        "has not turned; the service manager will restart the daemon unless it does"
    );
    turn.await;
    tracing::warn!(part = part.name, "turns again");
}

#[cfg(test)]
mod tests {
    use tokio::{
        sync::{mpsc, watch},
        task::JoinHandle,
    };

    use super::*;

    const PERIOD: Duration = Duration::from_millis(40);

    /// A heart with one part that turns, and one that does while it may.
    struct Heart {
        may_turn: watch::Sender<bool>,
        beats: mpsc::UnboundedReceiver<()>,
        _task: JoinHandle<()>,
    }

    fn heart() -> Heart {
        let (may_turn, may) = watch::channel(true);
        let (beat_seen, beats) = mpsc::unbounded_channel();
        let parts = vec![
            Part::new("good", || async {}),
            Part::new("other", move || {
                let mut may = may.clone();
                async move {
                    may.wait_for(|may| *may).await.expect("the test goes on");
                }
            }),
        ];
        let alive = move || beat_seen.send(()).expect("the test goes on");
        Heart { may_turn, beats, _task: tokio::spawn(beat(parts, PERIOD, alive)) }
    }

    #[tokio::test]
    async fn it_beats_while_all_parts_turn_and_only_then() {
        let mut heart = heart();
        for _ in 0..3 {
            heart.beats.recv().await.expect("a beat");
        }
        heart.may_turn.send(false).expect("it goes on");
        // One may have been under way.
        let _ = timeout(PERIOD, heart.beats.recv()).await;
        assert!(timeout(PERIOD * 5, heart.beats.recv()).await.is_err(), "a part does not turn");
        heart.may_turn.send(true).expect("it goes on");
        for _ in 0..3 {
            heart.beats.recv().await.expect("a beat");
        }
    }
}
