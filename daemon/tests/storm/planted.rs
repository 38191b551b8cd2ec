//! Ten bugs, each planted into what the storm really saw, wherever that certainly makes it wrong:
//! the checker has to notice every one.

use super::{
    model::{Call, History, Id, Op, Order, Reply},
    search,
};

/// So many places of each bug are tried.
const PLACES: usize = 12;
/// No reservation of the storm.
const NOBODY: Id = Id::MAX;

/// Plants a bug at an operation, or doesn't where that may have been right.
type Plant = fn(&History, usize) -> Option<Vec<Op>>;

const PLANTS: [(&str, Plant); 10] = [
    ("a reservation that was answered is not there", lost),
    ("a group is given to two", granted_twice),
    ("an order of an old epoch is taken", stale_epoch),
    ("somebody else's reservation is released in its place", another_released),
    ("an order is taken after the lease ended", taken_when_expired),
    ("a reservation that lapsed is renewed", renewed_when_gone),
    ("an epoch is given again", epoch_again),
    ("a release comes before its reservation", reordered),
    ("a group is held by nobody's reservation", phantom),
    ("devices are handed over after they were given back", fetched_when_gone),
];

pub(crate) fn every_planted_bug_is_caught(histories: &[History]) {
    let mut caught = 0;
    for (what, plant) in PLANTS {
        let mut places = 0;
        'places: for at in 0.. {
            let mut more = false;
            for history in histories {
                if at >= history.ops.len() || places == PLACES {
                    continue;
                }
                more = true;
                let Some(ops) = plant(history, at) else { continue };
                places += 1;
                let mut wrong = History { groups: history.groups.clone(), ops };
                assert!(search::check(&mut wrong).is_err(), "not noticed: {what}, at {at}");
            }
            if !more {
                break 'places;
            }
        }
        println!("  caught at {places:2} places: {what}");
        assert!(places > 0, "the storm has no place for this: {what}");
        caught += 1;
    }
    assert_eq!(caught, PLANTS.len());
}

/// With another answer.
fn answered(history: &History, at: usize, reply: Reply) -> Vec<Op> {
    let mut ops = history.ops.clone();
    ops[at].reply = reply;
    ops
}

fn grant_of(history: &History, id: Id) -> Option<&Op> {
    let granted = |op: &&Op| matches!(op.reply, Reply::Granted { id: of, .. } if of == id);
    history.ops.iter().find(granted)
}

fn has_lease(grant: &Op) -> bool {
    matches!(grant.call, Call::Reserve { ttl_ns: Some(_), .. })
}

fn releases(op: &Op, id: Id) -> bool {
    matches!(op.call, Call::Release(order, _) if order.id == id)
        && !matches!(op.reply, Reply::Refused(_))
}

/// Whether a reservation was certainly there during all of an operation.
fn there_during(history: &History, id: Id, op: &Op) -> bool {
    let granted =
        grant_of(history, id).is_some_and(|grant| !has_lease(grant) && grant.answered < op.called);
    granted && !history.ops.iter().any(|it| releases(it, id) && it.called <= op.answered)
}

/// Whether somebody had been told before that a reservation is gone.
fn gone_before(history: &History, id: Id, op: &Op) -> bool {
    let told = |it: &Op| match it.call {
        Call::Release(order, _) if order.id == id => {
            it.reply == Reply::Done || it.refused("NOT_FOUND")
        }
        Call::Look(of) if of == id => it.refused("NOT_FOUND"),
        _ => it.order().is_some_and(|order| order.id == id) && it.refused("NOT_FOUND"),
    };
    history.ops.iter().any(|it| it.answered < op.called && told(it))
}

fn lost(history: &History, at: usize) -> Option<Vec<Op>> {
    let op = &history.ops[at];
    let Reply::Group(shown) = &op.reply else { return None };
    let there = |id: &Id| there_during(history, *id, op);
    let id = *shown.reservations.iter().find(|id| there(id))?;
    let mut shown = shown.clone();
    shown.reservations.retain(|it| *it != id);
    Some(answered(history, at, Reply::Group(shown)))
}

fn granted_twice(history: &History, at: usize) -> Option<Vec<Op>> {
    let op = &history.ops[at];
    let Call::Reserve { devices, join: None, .. } = op.call else { return None };
    if !op.refused("GROUP_OWNED") {
        return None;
    }
    history.ops.iter().find_map(|it| match (&it.call, &it.reply) {
        (Call::Reserve { devices: theirs, .. }, Reply::Granted { id, .. })
            if theirs & devices != 0 && there_during(history, *id, op) =>
        {
            let reply = Reply::Granted { id: NOBODY, epoch: u64::MAX };
            Some(answered(history, at, reply))
        }
        _ => None,
    })
}

fn stale_epoch(history: &History, at: usize) -> Option<Vec<Op>> {
    let op = &history.ops[at];
    op.refused("STALE_EPOCH").then(|| answered(history, at, Reply::Done))
}

fn another_released(history: &History, at: usize) -> Option<Vec<Op>> {
    let op = &history.ops[at];
    let Call::Release(order, force) = op.call else { return None };
    if op.reply != Reply::Done {
        return None;
    }
    let other = history.ops.iter().find_map(|it| match it.reply {
        Reply::Granted { id, .. } if id != order.id && there_during(history, id, op) => Some(id),
        _ => None,
    })?;
    // Somebody has to have seen it afterwards.
    history.ops.iter().find(|it| {
        let seen = match &it.reply {
            Reply::Group(shown) => shown.reservations.contains(&other),
            _ => it.reply == Reply::Done && it.order().is_some_and(|it| it.id == other),
        };
        seen && it.called > op.answered
    })?;
    let mut ops = history.ops.clone();
    ops[at].call = Call::Release(Order { id: other, epoch: None, stale: false }, force);
    Some(ops)
}

fn taken_when_expired(history: &History, at: usize) -> Option<Vec<Op>> {
    let op = &history.ops[at];
    let id = op.order()?.id;
    let leased = grant_of(history, id).is_some_and(has_lease);
    let released = history.ops.iter().any(|it| releases(it, id));
    if leased && !released && op.refused("NOT_FOUND") && gone_before(history, id, op) {
        // Without claims it lapsed.
        return Some(answered(history, at, Reply::Done));
    }
    if !op.refused("LEASE_EXPIRED") {
        return None;
    }
    let told = |it: &&Op| {
        it.order().is_some_and(|order| order.id == id)
            && it.refused("LEASE_EXPIRED")
            && it.answered < op.called
    };
    let first = history.ops.iter().find(told)?;
    let back = |it: &Op| match it.call {
        Call::Renew(order) => order.id == id,
        Call::Restart => true,
        _ => false,
    };
    let since = |it: &Op| it.answered >= first.called && it.called <= op.answered;
    (!history.ops.iter().any(|it| back(it) && since(it)))
        .then(|| answered(history, at, Reply::Done))
}

fn renewed_when_gone(history: &History, at: usize) -> Option<Vec<Op>> {
    let op = &history.ops[at];
    let Call::Renew(order) = op.call else { return None };
    let leased = grant_of(history, order.id).is_some_and(has_lease);
    let wrong = leased && op.refused("NOT_FOUND") && gone_before(history, order.id, op);
    wrong.then(|| answered(history, at, Reply::Done))
}

fn epoch_again(history: &History, at: usize) -> Option<Vec<Op>> {
    let op = &history.ops[at];
    let (Call::Reserve { devices, .. }, Reply::Granted { id, .. }) = (&op.call, &op.reply) else {
        return None;
    };
    let before = history.ops.iter().find_map(|it| match (&it.call, &it.reply) {
        (Call::Reserve { devices: theirs, .. }, Reply::Granted { epoch, .. })
            if theirs & devices != 0 && it.answered < op.called =>
        {
            Some(*epoch)
        }
        _ => None,
    })?;
    Some(answered(history, at, Reply::Granted { id: *id, epoch: before }))
}

fn reordered(history: &History, at: usize) -> Option<Vec<Op>> {
    let op = &history.ops[at];
    let Call::Release(order, _) = op.call else { return None };
    let called = grant_of(history, order.id)?.called;
    if op.reply != Reply::Done || called < 10 {
        return None;
    }
    let mut ops = history.ops.clone();
    (ops[at].called, ops[at].answered) = (called - 2, called - 1);
    Some(ops)
}

fn phantom(history: &History, at: usize) -> Option<Vec<Op>> {
    let Reply::Group(shown) = &history.ops[at].reply else { return None };
    let mut shown = shown.clone();
    shown.reservations.push(NOBODY);
    Some(answered(history, at, Reply::Group(shown)))
}

fn fetched_when_gone(history: &History, at: usize) -> Option<Vec<Op>> {
    let op = &history.ops[at];
    let Call::Fetch(order) = op.call else { return None };
    let wrong = op.refused("NOT_FOUND") && gone_before(history, order.id, op);
    wrong.then(|| answered(history, at, Reply::Done))
}
