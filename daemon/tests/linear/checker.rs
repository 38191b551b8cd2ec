//! A linearizability checker for one group: the search of Wing and Gong, with the cache of Lowe.
//!
//! A group is a register: free, or owned by one reservation. Operations on different groups
//! commute, so each group's history is checked by itself.

use std::collections::HashSet;

use super::history_support::Line;

/// What was asked of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Reserve,
    Release(String),
    Read,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Reserved(String),
    /// The group is owned by somebody else.
    Refused,
    Released,
    /// The reservation isn't there any more.
    NotThere,
    Owner(Option<String>),
}

/// One operation, from its first call to its last answer.
#[derive(Debug, Clone)]
pub(crate) struct Op {
    pub(crate) call: Call,
    pub(crate) reply: Reply,
    pub(crate) called: u64,
    pub(crate) answered: u64,
}

type Owner = Option<String>;

/// The register after an operation; `None` when it can't have answered that.
fn step(owner: &Owner, op: &Op) -> Option<Owner> {
    match (&op.call, &op.reply) {
        (Call::Reserve, Reply::Reserved(id)) => owner.is_none().then(|| Some(id.clone())),
        (Call::Reserve, Reply::Refused) => owner.is_some().then(|| owner.clone()),
        (Call::Release(id), Reply::Released) => (owner.as_ref() == Some(id)).then_some(None),
        (Call::Release(id), Reply::NotThere) => (owner.as_ref() != Some(id)).then(|| owner.clone()),
        (Call::Read, Reply::Owner(seen)) => (owner == seen).then(|| owner.clone()),
        _ => None,
    }
}

/// Whether the operations could have happened one after the other, each between its call and its
/// answer, on a group that was free before.
pub(crate) fn linearizable(ops: &[Op]) -> bool {
    let mut line = Line::new(ops.iter().map(|op| (op.called, op.answered)));
    let mut done = vec![0_u64; ops.len() / 64 + 1];
    let mut seen: HashSet<(Vec<u64>, Owner)> = HashSet::new();
    let mut taken: Vec<(usize, Owner)> = Vec::new();
    let mut owner: Owner = None;
    let mut at = line.first();
    while !line.is_empty() {
        let (op, is_call) = line.entry(at);
        if is_call {
            if let Some(after) = step(&owner, &ops[op]) {
                done[op / 64] |= 1 << (op % 64);
                if seen.insert((done.clone(), after.clone())) {
                    taken.push((at, std::mem::replace(&mut owner, after)));
                    line.lift(at);
                    at = line.first();
                    continue;
                }
                done[op / 64] &= !(1 << (op % 64));
            }
            at = line.after(at);
        } else {
            let Some((call, before)) = taken.pop() else { return false };
            let (op, _) = line.entry(call);
            done[op / 64] &= !(1 << (op % 64));
            owner = before;
            line.put_back(call);
            at = line.after(call);
        }
    }
    true
}
