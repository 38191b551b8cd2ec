//! Whether a history can have happened one operation after the other: the search of Wing and Gong,
//! with the cache of Lowe.
//!
//! What changes nothing is taken at once where it is possible: taken later it would leave no more
//! ways for the rest.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use super::{
    history_support::{END, Line},
    model::{Around, Call, History, Id, Op, Reply, State},
};

/// So many states are looked at; real histories take some per operation.
const MOST: usize = 3_000_000;

/// Why a history is wrong.
pub(crate) struct Wrong {
    why: String,
    before: Option<State>,
    ops: Vec<Op>,
    /// What else there was of the same reservations.
    about: Vec<Op>,
}

impl fmt::Debug for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, in {:#?}, with left:", self.why, self.before)?;
        self.ops.iter().try_for_each(|op| writeln!(f, "  {op:?}"))?;
        writeln!(f, "and of the same reservations:")?;
        self.about.iter().try_for_each(|op| writeln!(f, "  {op:?}"))
    }
}

/// Which operations are done: all before a place, and some after it.
#[derive(Default)]
struct Done {
    words: Vec<u64>,
}

impl Done {
    fn set(&mut self, op: usize, done: bool) {
        let word = op / 64;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        if done {
            self.words[word] |= 1 << (op % 64);
        } else {
            self.words[word] &= !(1 << (op % 64));
        }
    }

    fn key(&self) -> (usize, Vec<u64>) {
        let full = self.words.iter().take_while(|word| **word == u64::MAX).count();
        let rest = &self.words[full..];
        let last = rest.iter().rposition(|word| *word != 0).map_or(0, |at| at + 1);
        (full, rest[..last].to_vec())
    }
}

/// What else went on during each operation.
fn around(ops: &[Op]) -> Vec<Around> {
    let mut works: HashMap<Id, Vec<usize>> = HashMap::new();
    let mut restarts = Vec::new();
    for (at, op) in ops.iter().enumerate() {
        match (&op.call, &op.reply) {
            (Call::Attach(order) | Call::Release(order, _) | Call::Fetch(order), _) => {
                works.entry(order.id).or_default().push(at);
            }
            (Call::Reserve { .. }, Reply::Granted { id, .. }) => {
                works.entry(*id).or_default().push(at);
            }
            (Call::Restart, _) => restarts.push(at),
            _ => {}
        }
    }
    let found = |(at, op): (usize, &Op)| {
        let Some(order) = op.order() else { return Around::default() };
        let beside = |other: &usize| *other != at && ops[*other].overlaps(op);
        let busy = works.get(&order.id).is_some_and(|works| works.iter().any(beside));
        Around { busy, restarted: restarts.iter().any(beside) }
    };
    ops.iter().enumerate().map(found).collect()
}

/// One that was taken, what was so before, and what else it could have come to.
struct Taken {
    call: usize,
    before: State,
    others: Vec<State>,
    /// It changed nothing: nothing else is to be tried in its place.
    forced: bool,
}

/// Checks a history, and answers how many states were looked at.
///
/// # Errors
/// It can't have happened; what was left where the search came furthest.
pub(crate) fn check(history: &mut History) -> Result<usize, Wrong> {
    history.ops.sort_by_key(|op| op.called);
    let mut search = Search::new(history);
    while !search.line.is_empty() {
        if search.seen.len() > MOST {
            return Err(search.wrong("the search takes too long"));
        }
        let (op, is_call) = search.line.entry(search.at);
        let stuck = if is_call { search.take(op) } else { true };
        if stuck && !search.back() {
            return Err(search.wrong("no order of what happened gives this"));
        }
    }
    Ok(search.seen.len())
}

struct Search<'h> {
    history: &'h History,
    around: Vec<Around>,
    line: Line,
    done: Done,
    seen: HashSet<((usize, Vec<u64>), State)>,
    taken: Vec<Taken>,
    state: State,
    at: usize,
    /// How many were taken where it came furthest, what was so there, and what was left.
    furthest: (usize, Option<State>, Vec<usize>),
}

impl<'h> Search<'h> {
    fn new(history: &'h History) -> Self {
        let line = Line::new(history.ops.iter().map(|op| (op.called, op.answered)));
        Self {
            history,
            around: around(&history.ops),
            at: line.first(),
            line,
            done: Done::default(),
            seen: HashSet::new(),
            taken: Vec::new(),
            state: State::default(),
            furthest: (0, None, Vec::new()),
        }
    }

    /// Takes an operation as the next one, or goes on to the one behind it. True where nothing else
    /// can be tried here.
    fn take(&mut self, op: usize) -> bool {
        let limit = limit(&self.line, &self.history.ops);
        let mut after = self.history.after(&self.state, op, limit, self.around[op]);
        let open = self.history.ops[op].is_open();
        let forced = after.first() == Some(&self.state) && !open;
        self.done.set(op, true);
        if forced {
            after.truncate(1);
        }
        let key = self.done.key();
        after.retain(|after| !self.seen.contains(&(key.clone(), after.clone())));
        after.reverse();
        let Some(next) = after.pop() else {
            self.done.set(op, false);
            self.at = self.line.after(self.at);
            return forced;
        };
        self.seen.insert((key, next.clone()));
        let before = std::mem::replace(&mut self.state, next);
        self.taken.push(Taken { call: self.at, before, others: after, forced });
        self.line.lift(self.at);
        self.at = self.line.first();
        false
    }

    /// Takes back the last one that was a choice, and goes on with another of its outcomes or
    /// another operation. False where there is none.
    fn back(&mut self) -> bool {
        if self.taken.len() >= self.furthest.0 {
            self.furthest = (self.taken.len(), Some(self.state.clone()), left(&self.line));
        }
        while let Some(mut last) = self.taken.pop() {
            while let Some(other) = last.others.pop() {
                if self.seen.insert((self.done.key(), other.clone())) {
                    self.state = other;
                    self.at = self.line.first();
                    self.taken.push(last);
                    return true;
                }
            }
            self.done.set(self.line.entry(last.call).0, false);
            self.state = last.before;
            self.line.put_back(last.call);
            if !last.forced {
                self.at = self.line.after(last.call);
                return true;
            }
        }
        false
    }

    fn wrong(&self, why: &str) -> Wrong {
        let (count, before, left) = &self.furthest;
        let ops: Vec<Op> = left.iter().map(|at| self.history.ops[*at].clone()).collect();
        let about = about(&self.history.ops, ops.iter().flat_map(Op::reservations).collect());
        Wrong { why: format!("after {count} operations {why}"), before: before.clone(), ops, about }
    }
}

/// When the first answer comes of those that are left.
fn limit(line: &Line, ops: &[Op]) -> u64 {
    let mut at = line.first();
    loop {
        match line.entry(at) {
            (op, false) => return ops[op].answered,
            (_, true) => at = line.after(at),
        }
    }
}

fn left(line: &Line) -> Vec<usize> {
    let mut found = Vec::new();
    let mut at = line.first();
    while at != END && found.len() < 12 {
        let (op, is_call) = line.entry(at);
        if is_call {
            found.push(op);
        }
        at = line.after(at);
    }
    found
}

/// Orders and answers that name one of these reservations.
fn about(ops: &[Op], ids: Vec<Id>) -> Vec<Op> {
    let names = |op: &&Op| op.reservations().iter().any(|id| ids.contains(id));
    ops.iter().filter(names).cloned().collect()
}
