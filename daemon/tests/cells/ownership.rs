//! Every cell of the ownership axis.

use berth_host::sim::Site;
use berth_ownership::{Cell, Operation as Op, OwnershipRow as Row, Policy, table::Change};
use berth_proto::v1;

use crate::{
    ask::{Answer, Ask, OTHER_LABEL, Then, Verdict, Wait, arranging, compare, wish},
    places::went_on,
    world::{Kind, Place, World},
};

/// Asks the operation in the row.
pub(crate) async fn walk(world: &World, row: Row, op: Op, cell: Cell) -> Verdict {
    match op {
        Op::ReserveExclusive
        | Op::ReserveExclusiveCrowded
        | Op::ReserveShared
        | Op::ReserveGroup
        | Op::ReserveOtherLabel => reserve(world, row, op, cell).await,
        Op::Attach => attach(world, row, cell).await,
        Op::AttachCrowded => attach_crowded(world, row, cell).await,
        Op::Detach | Op::Replace => detach_or_replace(world, row, op, cell).await,
        Op::Release => release(world, row, cell).await,
        Op::KernelDmaSet => kernel_dma_set(world, row, cell).await,
        Op::KernelDmaRelease => kernel_dma_release(world, row, cell).await,
        Op::Adopt => adopt(world, row, cell).await,
    }
}

/// Whether the row is one where the second device of a group is asked for.
fn joins(row: Row) -> bool {
    matches!(
        row,
        Row::HoldSameDomain
            | Row::HoldSameToken
            | Row::SharedSameDomain
            | Row::GroupSameAttached
            | Row::GroupSameDetached
    )
}

/// Whether what the host does is seen beside a host driver. Where that driver would be refused with
/// the same words, it is the console's display, which takes no driver.
fn beside_driver(row: Row, op: Op) -> bool {
    row == Row::HostUses
        && matches!(op, Op::ReserveExclusive | Op::ReserveShared | Op::ReserveGroup)
}

fn place_for(world: &World, row: Row, op: Op) -> Place {
    let crowded = op == Op::ReserveExclusiveCrowded;
    world.place(match row {
        _ if beside_driver(row, op) => Kind::Uses,
        Row::HostUses => Kind::Display,
        Row::Private if crowded => Kind::PrivatePair,
        Row::Private => Kind::Kernel,
        Row::Kernel | Row::KernelTaken if crowded => Kind::KernelPair,
        Row::Kernel | Row::KernelTaken => Kind::Kernel,
        Row::Foreign if crowded => Kind::ForeignPair,
        Row::Foreign => Kind::Foreign,
        // Only a group of one device can be owned so; it gets its second one later.
        Row::ExclusiveOther => Kind::Single,
        _ if crowded || joins(row) => Kind::Pair,
        _ => Kind::Single,
    })
}

async fn reserve(world: &World, row: Row, op: Op, cell: Cell) -> Verdict {
    let place = place_for(world, row, op);
    let other = match row {
        Row::DeviceTaken => {
            let policy = if op == Op::ReserveGroup { Policy::Group } else { Policy::Shared };
            Some(world.reserved(policy, &place.a).await?)
        }
        Row::KernelBusy => {
            world.host_is_busy(&place).await?;
            None
        }
        Row::Private => {
            if op != Op::ReserveExclusiveCrowded {
                world.driver_attaches(&place)?;
            }
            world.host_does(row, &place).await?;
            None
        }
        _ => world.others(row, &place).await?,
    };
    if op == Op::ReserveExclusiveCrowded && row == Row::ExclusiveOther {
        world.crowd(&place.a).await?;
    }
    let mut request = match (op, &other) {
        (Op::ReserveExclusive | Op::ReserveExclusiveCrowded, _) => {
            wish(Policy::Exclusive, &place.a)
        }
        (_, Some(other)) if joins(row) => World::joining(other, &place.b),
        (_, Some(other)) if row == Row::DeviceTaken => World::joining(other, &place.a),
        (Op::ReserveOtherLabel, _) => {
            let stranger = arranging("a domain", world.create_domain(None).await)?;
            v1::ReserveRequest { domain: stranger, ..wish(Policy::Shared, &place.a) }
        }
        (Op::ReserveGroup, _) => wish(Policy::Group, &place.a),
        _ => wish(Policy::Shared, &place.a),
    };
    request.take_from_host = row == Row::KernelTaken || beside_driver(row, op);
    request.no_wait = Wait::for_cell(&cell) == Wait::No;
    if op == Op::ReserveOtherLabel {
        request.label = OTHER_LABEL.to_owned();
    }
    let words = match request.policy() {
        v1::Policy::Exclusive => Op::ReserveExclusive.text(),
        v1::Policy::Group => Op::ReserveGroup.text(),
        _ => Op::ReserveShared.text(),
    };
    let before = arranging("the group", world.group(&place.a).await)?;
    let answer = world.reserve(request).await;
    compare(&cell, words, Then::Done, &answer)?;
    follow(world, &place, &cell, &before, answer).await
}

/// Looks at the group after an operation that a cell allows.
async fn follow(
    world: &World,
    place: &Place,
    cell: &Cell,
    before: &v1::Group,
    answer: Answer<v1::Reservation>,
) -> Verdict {
    let (Cell::Next(change), Ok(own)) = (cell, answer) else { return Ok(()) };
    let after = arranging("the group", world.group(&place.a).await)?;
    went_on(*change, before, &after, &own)
}

/// Gives an order and compares.
async fn order(
    world: &World,
    place: &Place,
    own: &v1::Reservation,
    ask: Ask,
    op: Op,
    cell: Cell,
) -> Verdict {
    let before = arranging("the group", world.group(&place.a).await)?;
    let then = if op == Op::Replace { world.then_replaced() } else { Then::Done };
    let answer = world.order(&own.id, &ask, Wait::for_cell(&cell)).await;
    compare(&cell, op.text(), then, &answer)?;
    follow(world, place, &cell, &before, answer).await
}

async fn attach(world: &World, row: Row, cell: Cell) -> Verdict {
    let (place, own) = match row {
        Row::SharedSameDomain | Row::GroupSameAttached | Row::GroupSameDetached => {
            let (place, _, own) = world.joined(row).await?;
            (place, own)
        }
        Row::HostUses | Row::Kernel | Row::KernelTaken | Row::Private | Row::Foreign => {
            let place = world.place(Kind::Single);
            let mut request = wish(Policy::Exclusive, &place.a);
            request.take_from_host = row == Row::KernelTaken;
            let own = arranging("a reservation", world.reserve(request).await)?;
            world.host_does(row, &place).await?;
            (place, own)
        }
        Row::KernelBusy => {
            let place = world.place(Kind::Pair);
            let own = world.reserved(Policy::Group, &place.a).await?;
            world.drift(&place.b);
            world.hang(Site::Unbind, &place.b);
            let stuck = world.release_kernel_dma(&place.b, false, Wait::No).await;
            arranging("a stuck unbind", stuck)?;
            (place, own)
        }
        _ => world.own(row).await?,
    };
    order(world, &place, &own, Ask::Attach, Op::Attach, cell).await
}

async fn attach_crowded(world: &World, row: Row, cell: Cell) -> Verdict {
    let (place, own) = world.own(row).await?;
    world.crowd(&place.a).await?;
    order(world, &place, &own, Ask::Attach, Op::AttachCrowded, cell).await
}

async fn detach_or_replace(world: &World, row: Row, op: Op, cell: Cell) -> Verdict {
    let (place, own) = if joins(row) {
        let (place, _, own) = world.joined(row).await?;
        (place, own)
    } else {
        world.own(row).await?
    };
    let ask = match op {
        Op::Replace if row == Row::OwnGroupAttached => {
            Ask::Replace(world.other_domain(&own.id, &own.domain).await?)
        }
        Op::Replace => Ask::Replace(own.domain.clone()),
        _ => Ask::Detach,
    };
    order(world, &place, &own, ask, op, cell).await
}

async fn release(world: &World, row: Row, cell: Cell) -> Verdict {
    let (place, own) = match row {
        Row::SharedSameDomain | Row::GroupSameAttached | Row::GroupSameDetached => {
            let (place, _, own) = world.joined(row).await?;
            (place, own)
        }
        Row::OwnHoldExclusive
        | Row::OwnHoldShared
        | Row::OwnHoldGroup
        | Row::OwnExclusive
        | Row::OwnShared
        | Row::OwnSharedWithOthers
        | Row::OwnGroupAttached
        | Row::OwnGroupDetached => world.own(row).await?,
        _ => world.lost_and_then(row).await?,
    };
    if row == Row::KernelBusy {
        // Giving back waits for the host driver that is on its way: only that it begins is seen.
        let answer = world.order(&own.id, &Ask::Release, Wait::No).await;
        compare(&cell, Op::Release.text(), Then::Done, &answer)?;
        let begun = answer.is_ok_and(|own| own.pending == "release");
        return begun.then_some(()).ok_or_else(|| "the release has not begun".to_owned());
    }
    if matches!(row, Row::HostUses | Row::Kernel | Row::KernelTaken | Row::Private) {
        // Afterwards the devices are read again, so that what was told of them is gone.
        let answer = world.order(&own.id, &Ask::Release, Wait::Done).await;
        compare(&cell, Op::Release.text(), Then::Done, &answer)?;
    } else {
        order(world, &place, &own, Ask::Release, Op::Release, cell).await?;
    }
    let state = arranging("a state", world.reservation(&own.id).await)?.state();
    let released = state == v1::reservation::State::Released;
    released.then_some(()).ok_or_else(|| format!("it is {state:?}"))
}

async fn kernel_dma_set(world: &World, row: Row, cell: Cell) -> Verdict {
    let place = world.place(match row {
        Row::HostUses => Kind::Uses,
        Row::Kernel => Kind::KernelPair,
        Row::Foreign => Kind::Foreign,
        Row::KernelBusy => Kind::Pair,
        _ => Kind::Single,
    });
    match row {
        Row::Private => world.host_does(row, &place).await?,
        Row::KernelBusy => world.host_is_busy(&place).await?,
        _ => drop(world.others(row, &place).await?),
    }
    let then = match row {
        // The group would take it, but the device has its host driver.
        Row::HostUses => Then::Refused("ALREADY_ATTACHED"),
        _ => Then::Done,
    };
    let device = if row == Row::KernelBusy { &place.b } else { &place.a };
    let wait = if row == Row::KernelBusy { Wait::No } else { Wait::for_cell(&cell) };
    let before = arranging("the group", world.group(&place.a).await)?;
    let answer = world.set_kernel_dma(device, wait).await;
    compare(&cell, Op::KernelDmaSet.text(), then, &answer)?;
    if answer.is_err() || wait == Wait::No {
        return Ok(());
    }
    let after = arranging("the group", world.group(&place.a).await)?;
    went_on(Change::KernelGains, &before, &after, &v1::Reservation::default())
}

async fn kernel_dma_release(world: &World, row: Row, cell: Cell) -> Verdict {
    match row {
        Row::HoldOther | Row::HoldOtherDomain | Row::SharedOtherDomain | Row::GroupOther => {
            return release_drift(world, row, cell).await;
        }
        _ => {}
    }
    let place = world.place(match row {
        Row::HostUses | Row::KernelTaken => Kind::Uses,
        Row::Kernel | Row::Private => Kind::Kernel,
        Row::KernelBusy => Kind::KernelBoth,
        Row::Foreign => Kind::Foreign,
        _ => Kind::Single,
    });
    match row {
        Row::KernelBusy => {
            world.hang(Site::Unbind, &place.a);
            let stuck = world.release_kernel_dma(&place.a, false, Wait::No).await;
            arranging("a stuck unbind", stuck)?;
        }
        Row::Private => {
            world.driver_attaches(&place)?;
            world.host_does(row, &place).await?;
        }
        _ => {}
    }
    world.others(row, &place).await?;
    let then = match row {
        // The group would take it, but the device has no host driver.
        Row::Foreign | Row::ExclusiveOther => Then::Refused("NOT_ATTACHED"),
        _ => Then::Done,
    };
    let wait = if row == Row::KernelBusy { Wait::No } else { Wait::for_cell(&cell) };
    let before = arranging("the group", world.group(&place.a).await)?;
    let anyway = row == Row::KernelTaken;
    let answer = world.release_kernel_dma(&place.b, anyway, wait).await;
    compare(&cell, Op::KernelDmaRelease.text(), then, &answer)?;
    if answer.is_err() || wait == Wait::No {
        return Ok(());
    }
    let after = arranging("the group", world.group(&place.a).await)?;
    went_on(Change::KernelLoses, &before, &after, &v1::Reservation::default())
}

/// Beside an owner a host driver is drift, and to unbind it is allowed.
async fn release_drift(world: &World, row: Row, cell: Cell) -> Verdict {
    let place = world.place(Kind::Pair);
    let other = world.others(row, &place).await?.ok_or("nobody holds the group")?;
    world.drift(&place.b);
    let answer = world.release_kernel_dma(&place.b, false, Wait::Done).await;
    compare(&cell, Op::KernelDmaRelease.text(), Then::Done, &answer)?;
    let device = arranging("the device", world.device(&place.b).await)?;
    let after = arranging("the group", world.group(&place.a).await)?;
    let ok = device.driver.is_empty() && after.reservations == [other.id];
    ok.then_some(()).ok_or_else(|| format!("{} is on {:?}", place.b, device.driver))
}

/// What is told of the host is asked at the ledger, as a call would look at the host first.
async fn adopt(world: &World, row: Row, cell: Cell) -> Verdict {
    let place = world.place(if row == Row::Kernel { Kind::Kernel } else { Kind::Single });
    match row {
        Row::ForeignAdopted | Row::Foreign => world.host_does(Row::Foreign, &place).await?,
        Row::HostUses | Row::Private => world.host_does(row, &place).await?,
        Row::KernelBusy => world.host_is_busy(&place).await?,
        Row::Free | Row::Kernel => {}
        _ => drop(world.others(row, &place).await?),
    }
    let (id, answer) = world.adopt(&place, row == Row::ForeignAdopted).await;
    compare(&cell, "adopt", Then::Done, &answer)?;
    if let Cell::Next(_) = cell {
        // The process has nothing open in the kernel: what was decided begins, and is undone.
        let ended = crate::natural::until(
            world,
            &id,
            v1::reservation::State::Released,
            crate::natural::PATIENCE,
        );
        let ended = ended.await?;
        let adopted = ended.adopted && ended.last_failure.is_some();
        return adopted.then_some(()).ok_or_else(|| format!("it is {ended:?}"));
    }
    Ok(())
}
