//! Every cell of the ownership tables, asked of the daemon by gRPC: in every state each operation
//! is answered as `docs/ownership.md` says, and a daemon with one cell turned round is found out.
//!
//! The states are arranged on a simulated host with host drivers, mounts, rivals and kernel work that
//! hangs. Orders are calls. What no call brings, as the death of a holder, is told to the ledger as
//! the daemon's own watchers tell it, and what comes of it is seen by gRPC; `natural` lets such
//! things really happen.

mod ask;
mod condition;
#[path = "../daemon_support/mod.rs"]
mod daemon_support;
mod door;
mod lifecycle;
mod natural;
mod ownership;
mod places;
mod walk;
mod world;

use std::time::{Duration, Instant};

use berth_ownership::{Table, table::CellRef};
use berth_proto::v1;
use futures::{StreamExt as _, stream};

use crate::{
    natural::Story,
    walk::{Difference, all_cells, comes_up, walk, walk_flipped},
};

/// How long for what a flipped cell keeps from coming: several times what it takes otherwise.
const SHORT: Duration = Duration::from_secs(6);

#[tokio::test(flavor = "multi_thread")]
async fn every_cell_is_answered_as_the_table_says() {
    let cells = all_cells();
    assert!(cells.len() > 300, "{}", cells.len());
    for backend in [v1::Backend::Iommufd, v1::Backend::Type1] {
        let begun = Instant::now();
        let cells: Vec<CellRef> =
            cells.iter().copied().filter(|at| comes_up(*at, backend)).collect();
        let differences = walk(Table::standard(), &cells, backend, true).await;
        println!("{} cells on {backend:?} in {:?}", cells.len(), begun.elapsed());
        let shown: Vec<String> =
            differences.iter().map(|found| format!("{:?}: {}", found.at, found.what)).collect();
        assert!(shown.is_empty(), "{} differ on {backend:?}:\n{}", shown.len(), shown.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flipped_cells_turn_it_red() {
    let cells = all_cells();
    let begun = Instant::now();
    let count = cells.len();
    let found: Vec<(CellRef, Option<Difference>)> = stream::iter(cells)
        .map(|at| async move { (at, walk_flipped(at).await) })
        .buffer_unordered(2)
        .collect()
        .await;
    for (at, difference) in &found {
        println!("{at:?}: {}", difference.as_ref().map_or("NOT SEEN", |found| &found.what));
    }
    println!("{count} cells flipped in {:?}", begun.elapsed());
    let green: Vec<CellRef> =
        found.iter().filter(|(_, difference)| difference.is_none()).map(|(at, _)| *at).collect();
    assert!(green.is_empty(), "{} flipped cells are not seen: {green:?}", green.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_comes_by_itself() {
    let verdicts: Vec<String> = stream::iter(Story::ALL)
        .map(|story| async move {
            let standard = natural::tell(*story, Table::standard(), natural::PATIENCE).await;
            let flipped = Table::standard().flipped_at(story.cell());
            let flipped = natural::tell(*story, flipped, SHORT).await;
            println!("{story:?}: {standard:?}; flipped: {flipped:?}");
            match (standard, flipped) {
                (Ok(()), Err(_)) => None,
                (standard, flipped) => {
                    Some(format!("{story:?}: {standard:?}, flipped {flipped:?}"))
                }
            }
        })
        .buffer_unordered(4)
        .filter_map(|wrong| async move { wrong })
        .collect()
        .await;
    assert!(verdicts.is_empty(), "{}", verdicts.join("\n"));
}
