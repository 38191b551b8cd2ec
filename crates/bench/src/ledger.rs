//! `reserve_release`: a reservation made and given back at the ledger's async API, each of the two
//! durable when it is answered.
//!
//! The peers write the same rows into the same schema: what a pair of commands changes is taken
//! from a ledger's own database, and written by statements as one would by hand. Nothing decides,
//! publishes or makes JSON there.

mod bare;
mod pairs;
mod workload;

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use berth_measure::{Question, Row, Target, compare};
use tokio::{runtime::Runtime, sync::Mutex};

use self::{
    bare::{Bare, Style},
    pairs::Pairs,
};
use crate::{Places, peer::Program};

/// How many clients wait at the same time.
const MANY: usize = 64;
/// A slice.
const SLICE: Duration = Duration::from_millis(250);

/// A runtime as the daemon has it on a small machine.
///
/// # Errors
/// Of the system.
pub(crate) fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start a runtime")
}

/// Runs it.
///
/// # Errors
/// Of either side.
pub(crate) fn bench(places: &Places) -> Result<Vec<Row>> {
    let dir = tempfile::tempdir_in(&places.disk).context("make a directory on the disk")?;
    let below = |name: &str| dir.path().join(name);
    let runtime = runtime()?;
    let handle = runtime.handle().clone();
    let pairs = Arc::new(runtime.block_on(Pairs::open(&below("ours"), MANY))?);
    let commands = runtime.block_on(workload::capture(&pairs, &below("ours")))?;
    let file = below("workload");
    std::fs::write(&file, workload::text(&commands)).context("write the workload")?;
    let mut rows = Vec::new();
    let mut one = || handle.block_on(pairs.slice(1, SLICE));
    for (case, style, target) in [
        ("1 client, sqlx", Style::OneRoundTrip, Target::AtLeast(0.9)),
        ("1 client, sqlx statement by statement", Style::EachByItself, Target::Beside),
    ] {
        let bare = runtime.block_on(Bare::open(&below(case), &commands, style))?;
        let bare = Arc::new(Mutex::new(bare));
        let mut peer = || handle.block_on(as_a_task(&bare));
        rows.push(compare(&question(case, target), &mut one, &mut peer)?);
    }
    let mut c = sqlite_in_c(places, &runtime, &below("c-1"), &file, 1)?;
    let beside = question("1 client, SQLite in C", Target::Beside);
    rows.push(compare(&beside, &mut one, &mut || c.slice(SLICE))?);
    let mut many = || handle.block_on(pairs.slice(MANY, SLICE));
    let own = question("64 clients, own rate with 1", Target::AtLeast(8.0));
    rows.push(compare(&own, &mut many, &mut one)?);
    let mut c = sqlite_in_c(places, &runtime, &below("c-64"), &file, MANY)?;
    let group = question("64 clients, group commit in C", Target::AtLeast(0.4));
    rows.push(compare(&group, &mut many, &mut || c.slice(SLICE))?);
    Ok(rows)
}

/// A slice of the peer as a task of the runtime, as our clients are, and requests in the daemon: who
/// waits outside of it is woken later than a task.
async fn as_a_task(bare: &Arc<Mutex<Bare>>) -> Result<f64> {
    let bare = Arc::clone(bare);
    tokio::spawn(async move { bare.lock().await.slice(SLICE).await }).await?
}

fn question(case: &str, target: Target) -> Question {
    Question { name: "reserve_release", case: case.to_owned(), unit: "pairs/s", target }
}

fn sqlite_in_c(
    places: &Places,
    runtime: &Runtime,
    dir: &Path,
    workload: &Path,
    clients: usize,
) -> Result<Program> {
    runtime.block_on(bare::make_schema(dir))?;
    let (database, workload) = (dir.join("berth.db"), workload.display().to_string());
    let words = [&database.display().to_string(), &workload, &clients.to_string()];
    Program::start(&places.peers.join("commit"), &words.map(String::as_str))
}
