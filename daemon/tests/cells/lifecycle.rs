//! Every cell of the reservation axis.

use std::time::Duration;

use berth_host::sim::Site;
use berth_ownership::{
    Cell, Command, Order as Given, Policy,
    table::{LifeChange, LifeRow as Row, Order},
};
use berth_proto::v1::{self, reservation::State};

use crate::{
    ask::{Answer, Ask, Then, Verdict, Wait, arranging, compare, wish},
    door::process,
    natural::PATIENCE,
    world::{Kind, Place, World},
};

/// A reservation that stands somewhere.
struct Standing {
    place: Place,
    id: String,
    domain: String,
}

/// Gives the order in the row.
pub(crate) async fn walk(world: &World, row: Row, order: Order, cell: Cell<LifeChange>) -> Verdict {
    match order {
        Order::Attach
        | Order::Detach
        | Order::Replace
        | Order::Release
        | Order::ReleaseForce
        | Order::Renew => by_call(world, row, order, cell).await,
        Order::Join => join(world, row, cell).await,
        Order::HandOver
        | Order::Expire
        | Order::Forget
        | Order::BindSeen
        | Order::HolderGone
        | Order::HolderMoved
        | Order::HolderPassed
        | Order::Restarted
        | Order::HoldLost => told(world, row, order, cell).await,
    }
}

/// Brings a reservation into the row.
async fn bring(world: &World, row: Row, policy: Policy) -> Result<Standing, String> {
    let place = world.place(if policy == Policy::Exclusive { Kind::Single } else { Kind::Pair });
    let own = match row {
        Row::Handed => {
            let id = world.reserve_handed(policy, &place.a, None).await?;
            world.handed_over(&id).await?;
            arranging("a hand-over", world.reservation(&id).await)?
        }
        Row::Preparing => {
            world.hang(Site::Bind, &place.a);
            let request = v1::ReserveRequest { no_wait: true, ..wish(policy, &place.a) };
            arranging("a reservation", world.reserve(request).await)?
        }
        Row::Reserved | Row::Lost | Row::Released => world.reserved(policy, &place.a).await?,
        Row::Busy | Row::Held | Row::Expired | Row::Draining => {
            world.attached(policy, &place.a).await?
        }
    };
    let id = own.id.clone();
    match row {
        Row::Busy => {
            world.hang(Site::Detach, &place.a);
            arranging("a stuck detach", world.order(&id, &Ask::Detach, Wait::No).await)?;
        }
        Row::Expired => world.facts(lapse(&id)).await?,
        Row::Draining => {
            let reservation = id.as_str().into();
            world.fact(Command::HolderMoved { reservation, process: process() }).await?;
        }
        Row::Lost => world.lose(&own, policy, &place.a).await?,
        Row::Released => drop(world.ordered(&id, Ask::Release).await?),
        Row::Preparing | Row::Reserved | Row::Handed | Row::Held => {}
    }
    let state = match row {
        Row::Busy | Row::Held => State::Held,
        Row::Preparing => State::Preparing,
        Row::Reserved => State::Reserved,
        Row::Handed => State::Handed,
        Row::Expired => State::Expired,
        Row::Draining => State::Draining,
        Row::Lost => State::Lost,
        Row::Released => State::Released,
    };
    expect_state(world, &id, state).await?;
    Ok(Standing { place, id, domain: own.domain })
}

/// A lease shorter than any that a call may ask for, and what the clock then says: at one time, so
/// that the daemon's own look at leases doesn't come between.
fn lapse(id: &str) -> Vec<Command> {
    let renew = Command::Renew { order: Given::new(id), ttl_ms: Some(0) };
    vec![renew, Command::Expire { reservation: id.into() }]
}

async fn expect_state(world: &World, id: &str, state: State) -> Verdict {
    let found = arranging("a state", world.reservation(id).await)?.state();
    let same = found == state;
    same.then_some(()).ok_or_else(|| format!("{id} is {found:?}, not {state:?}"))
}

/// The state once nothing is under way.
async fn settled(world: &World, id: &str) -> Result<v1::Reservation, String> {
    let begun = tokio::time::Instant::now();
    loop {
        let now = arranging("a state", world.reservation(id).await)?;
        if now.pending.is_empty() {
            return Ok(now);
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("{} of {id} does not end", now.pending));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// An order that a call gives.
async fn by_call(world: &World, row: Row, order: Order, cell: Cell<LifeChange>) -> Verdict {
    let group =
        row == Row::Busy || order == Order::Replace || (row, order) == (Row::Held, Order::Attach);
    let standing = bring(world, row, if group { Policy::Group } else { Policy::Exclusive }).await?;
    let id = &standing.id;
    let ask = match order {
        Order::Attach => Ask::Attach,
        Order::Detach => Ask::Detach,
        Order::Replace if row == Row::Held => {
            Ask::Replace(world.other_domain(id, &standing.domain).await?)
        }
        Order::Replace => Ask::Replace(standing.domain.clone()),
        Order::Release => Ask::Release,
        Order::ReleaseForce => Ask::Force,
        _ => Ask::Renew(600_000),
    };
    if (row, order) == (Row::Held, Order::Attach) {
        world.ordered(id, Ask::Detach).await?;
    }
    let then = match (row, order) {
        // The axis would take it, but there is nothing to detach or to replace.
        (Row::Reserved, Order::Detach | Order::Replace) => Then::Refused("NOT_ATTACHED"),
        (Row::Held, Order::Replace) => world.then_replaced(),
        _ => Then::Done,
    };
    let words = format!("{} {id}", order.text());
    let answer = world.order(id, &ask, Wait::for_cell(&cell)).await;
    compare(&cell, &words, then, &answer)?;
    let (Cell::Next(_), Ok(own)) = (&cell, answer) else { return Ok(()) };
    let done = match (order, &ask) {
        (Order::Attach, _) => own.state() == State::Held,
        (Order::Detach, _) => own.state() == State::Reserved,
        (Order::Replace, Ask::Replace(domain)) => own.domain == *domain,
        (Order::Renew, _) => {
            let same = if row == Row::Expired { State::Held } else { state_of(row) };
            own.state() == same && own.ttl_ms == 600_000 && own.expires_at.is_some()
        }
        _ => own.state() == State::Released,
    };
    done.then_some(()).ok_or_else(|| format!("{order:?} led to {own:?}"))
}

fn state_of(row: Row) -> State {
    match row {
        Row::Preparing => State::Preparing,
        Row::Reserved => State::Reserved,
        Row::Handed => State::Handed,
        Row::Busy | Row::Held => State::Held,
        Row::Expired => State::Expired,
        Row::Draining => State::Draining,
        Row::Lost => State::Lost,
        Row::Released => State::Released,
    }
}

/// Another reservation presents its token.
async fn join(world: &World, row: Row, cell: Cell<LifeChange>) -> Verdict {
    let standing = bring(world, row, Policy::Group).await?;
    let request = v1::ReserveRequest {
        join: standing.id.clone(),
        no_wait: true,
        ..wish(Policy::Group, &standing.place.b)
    };
    let then = match row {
        // The axis would take it, but such a context takes only holders that make domains.
        Row::Handed => Then::Refused("HOLDER_OWNS_DOMAIN"),
        _ => Then::Done,
    };
    let words = format!("{} {}", Order::Join.text(), standing.id);
    let answer = world.reserve(request).await;
    compare(&cell, &words, then, &answer)?;
    let Ok(own) = answer else { return Ok(()) };
    let joined = own.token == standing.id;
    joined.then_some(()).ok_or_else(|| format!("its token is {}", own.token))
}

/// What the daemon tells itself.
async fn told(world: &World, row: Row, order: Order, cell: Cell<LifeChange>) -> Verdict {
    if order == Order::HandOver && matches!(row, Row::Lost | Row::Released) {
        return hand_over_what_is_gone(world, row, cell).await;
    }
    let standing = match (row, order) {
        (Row::Reserved, Order::HandOver) => {
            let place = world.place(Kind::Single);
            let id = world.reserve_handed(Policy::Exclusive, &place.a, None).await?;
            Standing { place, id, domain: String::new() }
        }
        (Row::Busy, _) => bring(world, row, Policy::Group).await?,
        _ => bring(world, row, Policy::Exclusive).await?,
    };
    let id = &standing.id;
    let leased = matches!(row, Row::Reserved | Row::Handed | Row::Held | Row::Busy);
    let (command, process) = fact(id, order);
    let commands = if order == Order::Expire && leased { lapse(id) } else { vec![command] };
    let answer = world.tell(commands).await;
    compare(&cell, &format!("{} {id}", order.text()), Then::Done, &answer)?;
    if let Cell::Next(change) = cell {
        return went_on(world, &standing, (row, order, change), &process).await;
    }
    expect_state(world, id, state_of(row)).await
}

/// The fact of an order, and the process that it is about.
fn fact(id: &str, order: Order) -> (Command, String) {
    let holder = process();
    let pid = holder.pid.to_string();
    let reservation = id.into();
    let command = match order {
        Order::HandOver => World::hand_over(id, &holder),
        Order::Expire => Command::Expire { reservation },
        Order::Forget => Command::Forget { reservation },
        Order::BindSeen => Command::BindSeen { reservation, process: None },
        Order::HolderGone => Command::HolderGone { reservation },
        Order::HolderMoved => Command::HolderMoved { reservation, process: holder },
        Order::HolderPassed => Command::HolderPassed { reservation, process: holder },
        Order::Restarted => {
            Command::DetachedByRestart { reservation, why: "daemon restarted".to_owned() }
        }
        _ => Command::HoldLost { reservation, why: "a rival was faster".to_owned() },
    };
    (command, pid)
}

/// Whether the reservation went on as the cell says.
async fn went_on(
    world: &World,
    standing: &Standing,
    (row, order, change): (Row, Order, LifeChange),
    pid: &str,
) -> Verdict {
    let id = &standing.id;
    if change == LifeChange::Forgotten {
        let answer: Answer<v1::Reservation> = world.reservation(id).await;
        let gone = answer.is_err_and(|refused| refused.reason == "NOT_FOUND");
        return gone.then_some(()).ok_or_else(|| format!("{id} is still there"));
    }
    let own = if matches!(order, Order::Expire | Order::HandOver) {
        settled(world, id).await?
    } else {
        arranging("a state", world.reservation(id).await)?
    };
    let state = match change {
        LifeChange::Stays => state_of(row),
        LifeChange::Reserved | LifeChange::Detached => State::Reserved,
        LifeChange::Handed => State::Handed,
        LifeChange::Held | LifeChange::Resumes => State::Held,
        LifeChange::Expired if row == Row::Reserved => State::Released,
        LifeChange::Expired => State::Expired,
        LifeChange::Drains => State::Draining,
        LifeChange::Lost => State::Lost,
        LifeChange::Released | LifeChange::Forgotten => State::Released,
    };
    if own.state() != state {
        return Err(format!("{order:?} led from {row:?} to {:?}, not {state:?}", own.state()));
    }
    if order == Order::HandOver {
        let named = own
            .claims
            .iter()
            .any(|claim| claim.processes.iter().any(|process| process.pid.to_string() == pid));
        return named.then_some(()).ok_or_else(|| format!("{pid} is not the holder: {own:?}"));
    }
    Ok(())
}

/// A reservation whose group others of its token own meanwhile: nothing but the axis refuses.
async fn hand_over_what_is_gone(world: &World, row: Row, cell: Cell<LifeChange>) -> Verdict {
    let place = world.place(Kind::Pair);
    let id = world.reserve_handed(Policy::Group, &place.a, None).await?;
    let other = world.reserve_handed(Policy::Group, &place.b, Some(&id)).await?;
    world.handed_over(&other).await?;
    if row == Row::Lost {
        let why = "a rival was faster".to_owned();
        world.fact(Command::HoldLost { reservation: id.as_str().into(), why }).await?;
    } else {
        world.ordered(&id, Ask::Release).await?;
    }
    let answer = world.tell(vec![World::hand_over(&id, &process())]).await;
    compare(&cell, &format!("{} {id}", Order::HandOver.text()), Then::Done, &answer)?;
    expect_state(world, &id, state_of(row)).await
}
