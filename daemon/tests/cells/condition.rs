//! Every cell of the condition axis.

use berth_ownership::{
    Cause, CauseCode, Cell, Command, Condition, DeviceId, Health, Policy, UnixMs,
    table::ConditionOp as Op,
};
use berth_proto::v1::{self, reservation::State};

use crate::{
    ask::{Answer, Ask, Then, Verdict, Wait, arranging, compare, wish},
    world::{Kind, World},
};

/// Asks the operation in the condition.
pub(crate) async fn walk(world: &World, condition: Condition, op: Op, cell: Cell<()>) -> Verdict {
    match op {
        Op::Reserve => reserve(world, condition, cell).await,
        Op::KernelDmaSet | Op::KernelDmaRelease => kernel_dma(world, condition, op, cell).await,
        Op::Attach | Op::Detach | Op::Replace | Op::Release => {
            order(world, condition, op, cell).await
        }
    }
}

/// Brings a device into a condition: cordons by call, the others as watchdog and engine tell them.
async fn mark(world: &World, condition: Condition, device: &str) -> Verdict {
    let why = "walk".to_owned();
    let known = device.into();
    let shown = match condition {
        Condition::Ok => v1::Condition::Ok,
        Condition::Degraded => {
            world.fact(shows(known, CauseCode::LinkWidth)).await?;
            v1::Condition::Degraded
        }
        Condition::Failed => {
            world.fact(shows(known, CauseCode::ConfigGone)).await?;
            v1::Condition::Failed
        }
        Condition::Cordoned => {
            arranging("a cordon", world.cordon(device).await)?;
            v1::Condition::Cordoned
        }
        Condition::Wedged => {
            world.fact(Command::Wedge { device: known, why }).await?;
            v1::Condition::Wedged
        }
        Condition::Quarantined => {
            world.fact(Command::Quarantine { device: known, why }).await?;
            v1::Condition::Quarantined
        }
    };
    let found = arranging("the group", world.group(device).await)?.condition();
    let same = found == shown;
    same.then_some(()).ok_or_else(|| format!("{device} is {found:?}, not {shown:?}"))
}

/// What the machine shows against a device.
fn shows(device: DeviceId, code: CauseCode) -> Command {
    let cause = Cause { code, what: "walk".to_owned(), since_ms: UnixMs(1) };
    Command::Assess { device, health: Health { causes: vec![cause], counted: None } }
}

async fn reserve(world: &World, condition: Condition, cell: Cell<()>) -> Verdict {
    let place = world.place(Kind::Single);
    mark(world, condition, &place.a).await?;
    let answer = world.reserve(wish(Policy::Exclusive, &place.a)).await;
    compare(&cell, Op::Reserve.text(), Then::Done, &answer)?;
    stands(&answer, State::Reserved)
}

fn stands(answer: &Answer<v1::Reservation>, state: State) -> Verdict {
    match answer {
        Ok(own) if own.state() != state => Err(format!("it is {:?}, not {state:?}", own.state())),
        Ok(_) | Err(_) => Ok(()),
    }
}

async fn order(world: &World, condition: Condition, op: Op, cell: Cell<()>) -> Verdict {
    let place = world.place(if op == Op::Replace { Kind::Pair } else { Kind::Single });
    let own = match op {
        Op::Attach => world.reserved(Policy::Exclusive, &place.a).await?,
        Op::Replace => world.attached(Policy::Group, &place.a).await?,
        _ => world.attached(Policy::Exclusive, &place.a).await?,
    };
    let (ask, state) = match op {
        Op::Attach => (Ask::Attach, State::Held),
        Op::Detach => (Ask::Detach, State::Reserved),
        Op::Replace => (Ask::Replace(world.other_domain(&own.id, &own.domain).await?), State::Held),
        _ => (Ask::Release, State::Released),
    };
    mark(world, condition, &place.a).await?;
    let answer = world.order(&own.id, &ask, Wait::for_cell(&cell)).await;
    if op == Op::Replace && world.backend == v1::Backend::Type1 {
        // There the back end refuses before the condition is asked.
        let refused = answer.is_err_and(|refused| refused.reason == "BACKEND_CANNOT");
        return refused.then_some(()).ok_or_else(|| "a replace on type1".to_owned());
    }
    compare(&cell, op.text(), Then::Done, &answer)?;
    stands(&answer, state)
}

async fn kernel_dma(world: &World, condition: Condition, op: Op, cell: Cell<()>) -> Verdict {
    let wait = Wait::for_cell(&cell);
    let (answer, driver, place) = if op == Op::KernelDmaSet {
        let place = world.place(Kind::Single);
        mark(world, condition, &place.a).await?;
        (world.set_kernel_dma(&place.a, wait).await, "nvme", place)
    } else {
        let place = world.place(Kind::Kernel);
        mark(world, condition, &place.a).await?;
        (world.release_kernel_dma(&place.a, false, wait).await, "", place)
    };
    compare(&cell, op.text(), Then::Done, &answer)?;
    if answer.is_err() {
        return Ok(());
    }
    let found = arranging("the device", world.device(&place.a).await)?.driver;
    let same = found == driver;
    same.then_some(()).ok_or_else(|| format!("{} is on {found:?}, not {driver:?}", place.a))
}
