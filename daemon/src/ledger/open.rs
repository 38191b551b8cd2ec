//! Opening the ledger: the store's rows become the state again.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwap;
use berth_host::Host;
use berth_ownership::Table;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};

use super::{
    Clock, LedgerHandle, Shared, book::Book, degraded, feed::Feed, inbox::Inbox,
    requests::Refusals, task::Task,
};
use crate::{
    model::{ApiError, Live, OpenIntent, Quotas},
    store::{self, Locked, Pieces, StoreError},
};

/// Where the ledger is and how much it keeps.
#[derive(Debug, Clone)]
pub struct LedgerConfig {
    /// The directory of `berth.db`.
    pub state_dir: PathBuf,
    /// How many events are kept at least.
    pub retain_events: u64,
    /// How many released reservations can still be read.
    pub retain_released: usize,
    /// How many commands may wait.
    pub queue: usize,
    /// What decisions follow: another one than the standard is for tests that flip a cell.
    pub table: Table,
    /// How much each may have.
    pub quotas: Live<Quotas>,
}

impl LedgerConfig {
    /// The defaults in a directory.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            retain_events: 1_000_000,
            retain_released: 256,
            queue: 4096,
            table: Table::standard(),
            quotas: Live::default(),
        }
    }
}

/// An open ledger, and what start-up has to see to.
#[derive(Debug)]
pub struct Opened {
    /// The ledger.
    pub ledger: LedgerHandle,
    /// Intents without an outcome, oldest first.
    pub intents: Vec<OpenIntent>,
    /// The boot that the store was last written on; `None` for a new store.
    pub previous_boot: Option<String>,
    /// The task. It ends when the last handle is gone and all that was asked is answered.
    pub task: JoinHandle<()>,
}

fn failed(error: StoreError) -> ApiError {
    ApiError::unavailable("store", error.chain())
}

/// Takes `config.state_dir`, so that no other daemon writes there. What is seen of the machine
/// from here on is no more changed by another one.
///
/// # Errors
/// Another daemon has it; it can't be made.
pub fn lock(config: &LedgerConfig) -> Result<Locked, ApiError> {
    Locked::take(&config.state_dir).map_err(failed)
}

/// Takes the directory and opens the ledger: see [`lock`] and [`open_locked`].
///
/// # Errors
/// Of both.
pub async fn open(config: LedgerConfig, host: Arc<dyn Host>) -> Result<Opened, ApiError> {
    let locked = lock(&config)?;
    open_locked(locked, config, host).await
}

/// Opens the store, restores the state and starts the task. Nothing is scanned: call
/// [`LedgerHandle::rescan`] or [`LedgerHandle::observe_survey`] next.
///
/// # Errors
/// What is wrong with the store, and the way out.
pub async fn open_locked(
    locked: Locked,
    config: LedgerConfig,
    host: Arc<dyn Host>,
) -> Result<Opened, ApiError> {
    let Pieces { writer, reader, store, mut loaded, unwritable } =
        store::open_locked(locked).await.map_err(failed)?;
    let clock = Clock::new(&host.boot_id());
    let previous_boot = loaded.boot_id.take();
    let book = Book::restore(&mut loaded, &clock, config.table.clone()).map_err(failed)?;
    let degraded =
        unwritable.map(|error| Arc::new(degraded::because(&error, writer.dir(), &clock)));
    if let Some(degraded) = &degraded {
        tracing::error!("{}; a copy is read", degraded.line());
    }
    let (sender, queue) = mpsc::channel(config.queue);
    let shared = Arc::new(Shared {
        published: ArcSwap::from_pointee(book.snapshot()),
        feed: Feed::after(book.seq),
        executor: OnceLock::new(),
        store,
        clock,
        host,
        quotas: config.quotas.clone(),
        scanning: tokio::sync::Mutex::default(),
        degraded: watch::Sender::new(degraded),
    });
    let task = Task {
        shared: Arc::clone(&shared),
        config,
        book,
        inbox: Inbox::new(queue, reader),
        waiters: HashMap::new(),
        commits: 0,
        refusals: Refusals::default(),
        spent: None,
    };
    let task = tokio::spawn(task.run(writer));
    let ledger = LedgerHandle { queue: sender, shared };
    Ok(Opened { ledger, intents: loaded.intents, previous_boot, task })
}
