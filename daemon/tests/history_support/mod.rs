//! What searches for an order of operations share.

/// No entry.
pub(crate) const END: usize = usize::MAX;

/// Calls and answers in the order of time, as a list from which operations are lifted.
pub(crate) struct Line {
    /// Operation, and whether this is its call. Entry 0 is the head.
    what: Vec<(usize, bool)>,
    next: Vec<usize>,
    before: Vec<usize>,
    /// The answer of a call.
    answer: Vec<usize>,
}

impl Line {
    /// Operations by when they were called and answered.
    pub(crate) fn new(ops: impl Iterator<Item = (u64, u64)>) -> Self {
        let mut times: Vec<(u64, bool, usize)> = Vec::new();
        for (at, (called, answered)) in ops.enumerate() {
            assert!(called < answered, "{at} was answered before it was called");
            times.push((called, false, at));
            times.push((answered, true, at));
        }
        times.sort_unstable();
        let mut what = vec![(END, false)];
        what.extend(times.iter().map(|(_, answer, op)| (*op, !*answer)));
        let len = what.len();
        let next = (0..len).map(|at| if at + 1 < len { at + 1 } else { END }).collect();
        let before = (0..len).map(|at| at.wrapping_sub(1)).collect();
        let mut answers = vec![END; times.len() / 2];
        for (at, (op, call)) in what.iter().enumerate().skip(1) {
            if !call {
                answers[*op] = at;
            }
        }
        let answer = what.iter().map(|it| answers.get(it.0).copied().unwrap_or(END)).collect();
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

    /// Takes an operation out, by its call.
    pub(crate) fn lift(&mut self, call: usize) {
        self.unlink(call);
        self.unlink(self.answer[call]);
    }

    /// The last one that was lifted stands where it stood.
    pub(crate) fn put_back(&mut self, call: usize) {
        self.link(self.answer[call]);
        self.link(call);
    }

    /// Whether no operation is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.next[0] == END
    }

    /// The first entry; [`END`] where none is left.
    pub(crate) fn first(&self) -> usize {
        self.next[0]
    }

    /// The entry behind another; [`END`] behind the last.
    pub(crate) fn after(&self, at: usize) -> usize {
        self.next[at]
    }

    /// The operation of an entry, and whether it is its call.
    pub(crate) fn entry(&self, at: usize) -> (usize, bool) {
        self.what[at]
    }
}
