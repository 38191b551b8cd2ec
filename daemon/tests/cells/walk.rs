//! The walk: each cell in a corner of its own, many at a time, until the first that differs.

use berth_ownership::{Operation, OwnershipRow, Table, table::CellRef};
use berth_proto::v1;
use futures::{StreamExt as _, stream};

use crate::{ask::Verdict, condition, lifecycle, ownership, world::World};

/// How many cells are walked at a time.
const WIDTH: usize = 8;

/// A cell where the daemon differs from the table, and how.
#[derive(Debug)]
pub(crate) struct Difference {
    pub(crate) at: CellRef,
    pub(crate) what: String,
}

/// All cells of the tables that Berth follows.
pub(crate) fn all_cells() -> Vec<CellRef> {
    Table::standard().cells().collect()
}

/// Whether the cell can come up on a back end. A type1 container keeps its group while the daemon
/// lives, so that nobody else owns there what a reservation lost.
pub(crate) fn comes_up(at: CellRef, backend: v1::Backend) -> bool {
    match at {
        CellRef::Ownership(
            OwnershipRow::ExclusiveOther
            | OwnershipRow::SharedOtherDomain
            | OwnershipRow::GroupOther,
            Operation::Release,
        ) => backend != v1::Backend::Type1,
        CellRef::Ownership(..) | CellRef::Lifecycle(..) | CellRef::Condition(..) => true,
    }
}

async fn step(world: &World, at: CellRef) -> Verdict {
    let table = Table::standard();
    let missing = || format!("{at:?} is not in the table");
    match at {
        CellRef::Ownership(row, op) => {
            let cell = table.ownership(row, op).ok_or_else(missing)?;
            ownership::walk(world, row, op, cell).await
        }
        CellRef::Lifecycle(row, order) => {
            let cell = table.lifecycle(row, order).ok_or_else(missing)?;
            lifecycle::walk(world, row, order, cell).await
        }
        CellRef::Condition(condition, op) => {
            let cell = table.condition(condition, op).ok_or_else(missing)?;
            condition::walk(world, condition, op, cell).await
        }
    }
}

/// Walks the cells with a daemon that follows `table`. All differences, or the first alone.
pub(crate) async fn walk(
    table: Table,
    cells: &[CellRef],
    backend: v1::Backend,
    all: bool,
) -> Vec<Difference> {
    let world = World::start(table, cells.len()).await.on(backend);
    let mut differences = Vec::new();
    {
        let there = &world;
        let mut steps = stream::iter(cells)
            .map(|at| async move { (*at, step(there, *at).await) })
            .buffer_unordered(WIDTH);
        while let Some((at, verdict)) = steps.next().await {
            if let Err(what) = verdict {
                differences.push(Difference { at, what });
                if !all {
                    break;
                }
            }
        }
    }
    world.stop().await;
    differences
}

/// The first difference that a flipped cell makes: its own place is walked first, and all the
/// others if nothing is seen there.
pub(crate) async fn walk_flipped(at: CellRef) -> Option<Difference> {
    let backend = v1::Backend::Iommufd;
    let table = Table::standard().flipped_at(at);
    let mut found = walk(table.clone(), &[at], backend, false).await;
    if found.is_empty() {
        let others: Vec<CellRef> = all_cells().into_iter().filter(|cell| *cell != at).collect();
        found = walk(table, &others, backend, false).await;
    }
    found.pop()
}
