//! Facts as they really come: holders die, leases end, rivals are faster, resets fail, helpers hang,
//! the daemon restarts. Nothing is told here: the daemon finds out by itself, and gRPC shows it.

use std::{
    os::fd::{AsFd as _, OwnedFd},
    process::Child,
    time::Duration,
};

use berth_handover::{Client, Request};
use berth_host::sim::{Fault, Site};
use berth_ownership::{
    Condition, Policy, Table,
    table::{CellRef, ConditionOp, LifeRow, Order},
};
use berth_proto::v1::{self, reservation::State};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::time::Instant;

use crate::{
    ask::{Ask, Refused, Verdict, arranging, wish},
    world::{Kind, World, address},
};

/// What happens to a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Story {
    HolderDies,
    DeviceStaysOpen,
    LastUserGoes,
    LeaseEndsWithClaims,
    LeaseEndsWithoutClaims,
    RivalIsFaster,
    DaemonRestarts,
    ResetFails,
    HelperHangs,
    HolderFetchesUnbound,
    HolderBinds,
    HolderDiesUnbound,
    NobodyReceives,
}

impl Story {
    pub(crate) const ALL: &'static [Self] = &[
        Self::HolderDies,
        Self::DeviceStaysOpen,
        Self::LastUserGoes,
        Self::LeaseEndsWithClaims,
        Self::LeaseEndsWithoutClaims,
        Self::RivalIsFaster,
        Self::DaemonRestarts,
        Self::ResetFails,
        Self::HelperHangs,
        Self::HolderFetchesUnbound,
        Self::HolderBinds,
        Self::HolderDiesUnbound,
        Self::NobodyReceives,
    ];

    /// The cell that decides how it ends.
    pub(crate) fn cell(self) -> CellRef {
        let life = CellRef::Lifecycle;
        match self {
            Self::HolderDies => life(LifeRow::Held, Order::HolderGone),
            Self::DeviceStaysOpen => life(LifeRow::Held, Order::HolderMoved),
            Self::LastUserGoes => life(LifeRow::Draining, Order::HolderGone),
            Self::LeaseEndsWithClaims => life(LifeRow::Held, Order::Expire),
            Self::LeaseEndsWithoutClaims => life(LifeRow::Reserved, Order::Expire),
            Self::RivalIsFaster => life(LifeRow::Reserved, Order::HoldLost),
            Self::DaemonRestarts => life(LifeRow::Held, Order::Restarted),
            Self::ResetFails => CellRef::Condition(Condition::Quarantined, ConditionOp::Reserve),
            Self::HelperHangs => CellRef::Condition(Condition::Wedged, ConditionOp::Reserve),
            Self::HolderFetchesUnbound => life(LifeRow::Reserved, Order::HandOver),
            Self::HolderBinds => life(LifeRow::Handed, Order::BindSeen),
            Self::HolderDiesUnbound => life(LifeRow::Handed, Order::HolderGone),
            Self::NobodyReceives => life(LifeRow::Handed, Order::Restarted),
        }
    }
}

/// How long an act may take where one hangs.
const IMPATIENT_MS: u64 = 300;

/// Lets it happen under a table, and waits for its end.
pub(crate) async fn tell(story: Story, table: Table, patience: Duration) -> Verdict {
    match story {
        Story::DaemonRestarts => return restarted(table, patience).await,
        Story::NobodyReceives => return nobody_receives(table, patience).await,
        _ => {}
    }
    let world = match story {
        Story::HelperHangs => World::start_with(table, 1, IMPATIENT_MS).await,
        _ => World::start(table, 1).await,
    };
    let verdict = match story {
        Story::HolderDies | Story::DeviceStaysOpen | Story::LastUserGoes => {
            holder(&world, story, patience).await
        }
        Story::LeaseEndsWithClaims => lease(&world, true, patience).await,
        Story::LeaseEndsWithoutClaims => lease(&world, false, patience).await,
        Story::RivalIsFaster => rival(&world, patience).await,
        Story::ResetFails => reset_fails(&world).await,
        Story::HolderFetchesUnbound | Story::HolderBinds | Story::HolderDiesUnbound => {
            unbound(&world, story, patience).await
        }
        Story::HelperHangs | Story::DaemonRestarts | Story::NobodyReceives => {
            helper_hangs(&world, patience).await
        }
    };
    world.stop().await;
    verdict
}

/// How long is waited for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Waits for a state.
pub(crate) async fn until(
    world: &World,
    id: &str,
    state: State,
    patience: Duration,
) -> Result<v1::Reservation, String> {
    let begun = Instant::now();
    loop {
        let now = arranging("a state", world.reservation(id).await)?;
        if now.state() == state && now.pending.is_empty() {
            return Ok(now);
        }
        if begun.elapsed() > patience {
            return Err(format!("{id} stays {:?} and does not become {state:?}", now.state()));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A process that holds; it ends with this.
struct Holder(Child);

impl Holder {
    fn start() -> Self {
        let child = std::process::Command::new("sleep").arg("600").spawn();
        Self(child.expect("sleep is everywhere"))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may have ended by itself, and then there is nothing to wait for either.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Has the descriptors of a reservation handed over to a process.
async fn fetch(world: &World, id: &str, holder: &Holder) -> Result<Vec<OwnedFd>, String> {
    let path = world.handover_socket();
    let pidfd = pidfd_open(Pid::from_child(&holder.0), PidfdFlags::empty())
        .map_err(|errno| format!("pidfd: {errno}"))?;
    let request = Request::Fetch { reservation: id.to_owned(), epoch: 0 };
    let fetched = tokio::task::spawn_blocking(move || {
        Client::connect(&path)?.ask(&request, &[pidfd.as_fd()])
    });
    let fetched = fetched.await.map_err(|error| error.to_string())?;
    fetched.map(|(_, fds)| fds).map_err(|error| format!("fetching {id}: {error}"))
}

async fn holder(world: &World, story: Story, patience: Duration) -> Verdict {
    let place = world.place(Kind::Single);
    let own = world.attached(Policy::Exclusive, &place.a).await?;
    let holder = Holder::start();
    let fds = fetch(world, &own.id, &holder).await?;
    if story == Story::HolderDies {
        drop((fds, holder));
        return until(world, &own.id, State::Reserved, patience).await.map(drop);
    }
    let friend = world.sim.foreign("friend");
    for fd in fds {
        friend.receive(fd).map_err(|errno| format!("receiving: {errno}"))?;
    }
    drop(holder);
    until(world, &own.id, State::Draining, patience).await?;
    if story == Story::LastUserGoes {
        drop(friend);
        until(world, &own.id, State::Reserved, patience).await?;
    }
    Ok(())
}

async fn unbound(world: &World, story: Story, patience: Duration) -> Verdict {
    let place = world.place(Kind::Single);
    let id = world.reserve_handed(Policy::Exclusive, &place.a, None).await?;
    let holder = Holder::start();
    let fds = fetch(world, &id, &holder).await?;
    until(world, &id, State::Handed, patience).await?;
    match story {
        Story::HolderBinds => {
            let bound = world.sim.bind_exported(address(&place.a));
            bound.map_err(|errno| format!("binding: {errno}"))?;
            until(world, &id, State::Held, patience).await?;
        }
        Story::HolderDiesUnbound => {
            drop((fds, holder));
            until(world, &id, State::Reserved, patience).await?;
        }
        _ => {}
    }
    Ok(())
}

/// The daemon dies with what it handed over; its holder lives and never got it.
async fn nobody_receives(table: Table, patience: Duration) -> Verdict {
    let world = World::start(table.clone(), 1).await;
    let place = world.place(Kind::Single);
    let id = world.reserve_handed(Policy::Exclusive, &place.a, None).await?;
    let holder = Holder::start();
    drop(fetch(&world, &id, &holder).await?);
    let world = world.restart(table).await;
    let verdict = until(&world, &id, State::Reserved, patience).await;
    world.stop().await;
    let detail = verdict?.detail;
    let told = detail.contains("daemon restarted");
    told.then_some(()).ok_or_else(|| format!("its detail is {detail:?}"))
}

async fn lease(world: &World, claims: bool, patience: Duration) -> Verdict {
    let place = world.place(Kind::Single);
    let request = v1::ReserveRequest { ttl_ms: 1000, ..wish(Policy::Exclusive, &place.a) };
    let own = arranging("a lease", world.reserve(request).await)?;
    if claims {
        world.ordered(&own.id, Ask::Attach).await?;
    }
    let state = if claims { State::Expired } else { State::Released };
    until(world, &own.id, state, patience).await.map(drop)
}

/// Between the last close and the hold that is taken again.
async fn rival(world: &World, patience: Duration) -> Verdict {
    let place = world.place(Kind::Single);
    let own = world.attached(Policy::Exclusive, &place.a).await?;
    let number = arranging("the group", world.group(&place.a).await)?.number;
    world.sim.fault(Fault::at(Site::OpenGroup).group(number).errno(Errno::BUSY).always());
    world.ordered(&own.id, Ask::Detach).await?;
    until(world, &own.id, State::Lost, patience).await.map(drop)
}

async fn restarted(table: Table, patience: Duration) -> Verdict {
    let world = World::start(table.clone(), 1).await;
    let place = world.place(Kind::Pair);
    let own = world.attached(Policy::Group, &place.a).await?;
    let world = world.restart(table).await;
    let verdict = until(&world, &own.id, State::Reserved, patience).await;
    world.stop().await;
    let detail = verdict?.detail;
    let told = detail.contains("daemon restarted");
    told.then_some(()).ok_or_else(|| format!("its detail is {detail:?}"))
}

async fn reset_fails(world: &World) -> Verdict {
    let place = world.place(Kind::Single);
    let own = world.attached(Policy::Exclusive, &place.a).await?;
    world.sim.fault(Fault::at(Site::Reset).device(address(&place.a)).errno(Errno::IO));
    world.ordered(&own.id, Ask::Release).await?;
    refused(world, &place.a, "QUARANTINED").await
}

async fn helper_hangs(world: &World, patience: Duration) -> Verdict {
    let place = world.place(Kind::Kernel);
    world.hang(Site::Unbind, &place.a);
    let request = v1::ReserveRequest { take_from_host: true, ..wish(Policy::Exclusive, &place.a) };
    match world.reserve(request).await {
        Err(Refused { reason, .. }) if reason == "WEDGED" => {}
        other => return Err(format!("the helper hangs, but {other:?}")),
    }
    let begun = Instant::now();
    while arranging("the group", world.group(&place.a).await)?.condition() != v1::Condition::Wedged
    {
        if begun.elapsed() > patience {
            return Err("the device is not wedged".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    refused(world, &place.a, "WEDGED").await
}

async fn refused(world: &World, device: &str, reason: &str) -> Verdict {
    let request = v1::ReserveRequest { no_wait: true, ..wish(Policy::Exclusive, device) };
    match world.reserve(request).await {
        Err(refused) if refused.reason == reason => Ok(()),
        other => Err(format!("a reservation of {device} is not {reason}: {other:?}")),
    }
}
