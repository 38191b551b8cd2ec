//! A linearizability checker for one group: the search of Wing and Gong, with the cache of Lowe.
//!
//! A group is a register: free, or owned by one reservation. Operations on different groups
//! commute, so each group's history is checked by itself.

use std::collections::HashSet;

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

/// Calls and answers in the order of time, as a list from which operations are lifted.
struct Line {
    /// Operation, and whether this is its call. Entry 0 is the head.
    what: Vec<(usize, bool)>,
    next: Vec<usize>,
    before: Vec<usize>,
    /// The answer of a call.
    answer: Vec<usize>,
}

const END: usize = usize::MAX;

impl Line {
    fn new(ops: &[Op]) -> Self {
        let mut times: Vec<(u64, bool, usize)> = Vec::new();
        for (at, op) in ops.iter().enumerate() {
            assert!(op.called < op.answered, "answered before it was called: {op:?}");
            times.push((op.called, true, at));
            times.push((op.answered, false, at));
        }
        times.sort_unstable();
        let mut what = vec![(END, false)];
        what.extend(times.iter().map(|(_, call, op)| (*op, *call)));
        let len = what.len();
        let next = (0..len).map(|at| if at + 1 < len { at + 1 } else { END }).collect();
        let before = (0..len).map(|at| at.wrapping_sub(1)).collect();
        let mut answers = vec![END; ops.len()];
        for (at, (op, call)) in what.iter().enumerate().skip(1) {
            if !call {
                answers[*op] = at;
            }
        }
        let answer = what.iter().map(|(op, _)| answers.get(*op).copied().unwrap_or(END)).collect();
        Self { what, next, before, answer }
    }

    fn unlink(&mut self, at: usize) {
        let (before, next) = (self.before[at], self.next[at]);
        self.next[before] = next;
        if next != END {
            self.before[next] = before;
        }
    }

    fn link(&mut self, at: usize) {
        let (before, next) = (self.before[at], self.next[at]);
        self.next[before] = at;
        if next != END {
            self.before[next] = at;
        }
    }

    fn lift(&mut self, call: usize) {
        self.unlink(call);
        self.unlink(self.answer[call]);
    }

    fn put_back(&mut self, call: usize) {
        self.link(self.answer[call]);
        self.link(call);
    }
}

/// Whether the operations could have happened one after the other, each between its call and its
/// answer, on a group that was free before.
pub(crate) fn linearizable(ops: &[Op]) -> bool {
    let mut line = Line::new(ops);
    let mut done = vec![0_u64; ops.len() / 64 + 1];
    let mut seen: HashSet<(Vec<u64>, Owner)> = HashSet::new();
    let mut taken: Vec<(usize, Owner)> = Vec::new();
    let mut owner: Owner = None;
    let mut at = line.next[0];
    while line.next[0] != END {
        let (op, is_call) = line.what[at];
        if is_call {
            if let Some(after) = step(&owner, &ops[op]) {
                done[op / 64] |= 1 << (op % 64);
                if seen.insert((done.clone(), after.clone())) {
                    taken.push((at, std::mem::replace(&mut owner, after)));
                    line.lift(at);
                    at = line.next[0];
                    continue;
                }
                done[op / 64] &= !(1 << (op % 64));
            }
            at = line.next[at];
        } else {
            let Some((call, before)) = taken.pop() else { return false };
            let (op, _) = line.what[call];
            done[op / 64] &= !(1 << (op % 64));
            owner = before;
            line.put_back(call);
            at = line.next[call];
        }
    }
    true
}
