//! Who is next: a line for each thing that work touches. Work whose turn it is in all of its lines
//! can run. What waits costs those who come and go nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::Key;

/// One piece of work, `W` is how it is done.
#[derive(Debug)]
pub(super) struct Task<W> {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) work: W,
}

/// What is known of a piece of work until it is done.
#[derive(Debug)]
struct Entry<W> {
    name: String,
    keys: Vec<Key>,
    /// No kernel work: it needs no place among the threads and is nobody's business.
    beat: bool,
    stage: Stage<W>,
}

#[derive(Debug)]
enum Stage<W> {
    /// In so many of its lines somebody is before it.
    Waits {
        behind: usize,
        work: W,
    },
    Runs {
        given_up: bool,
    },
}

/// Work that waits and work that runs.
#[derive(Debug)]
pub(super) struct Queue<W> {
    entries: BTreeMap<u64, Entry<W>>,
    /// Who touches a thing, oldest first. Who runs is the first of each of his lines.
    lines: HashMap<Key, VecDeque<u64>>,
    /// Whose turn it is, for whom there may be no thread.
    ready: BTreeSet<u64>,
    /// The same, of those that need no place.
    beats: VecDeque<u64>,
    running: BTreeSet<u64>,
    /// How many run that count.
    threads: usize,
    most: usize,
    next: u64,
    closed: bool,
}

impl<W> Queue<W> {
    /// For so many threads.
    pub(super) fn new(most: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            lines: HashMap::new(),
            ready: BTreeSet::new(),
            beats: VecDeque::new(),
            running: BTreeSet::new(),
            threads: 0,
            most,
            next: 0,
            closed: false,
        }
    }

    /// Adds work behind all that touches the same. A closed queue drops it.
    pub(super) fn add(&mut self, name: String, mut keys: Vec<Key>, beat: bool, work: W) -> u64 {
        let id = self.next;
        self.next += 1;
        if self.closed {
            return id;
        }
        keys.sort_unstable();
        keys.dedup();
        let mut behind = 0;
        for key in &keys {
            let line = self.lines.entry(key.clone()).or_default();
            behind += usize::from(!line.is_empty());
            line.push_back(id);
        }
        self.entries.insert(id, Entry { name, keys, beat, stage: Stage::Waits { behind, work } });
        if behind == 0 {
            self.is_ready(id, beat);
        }
        id
    }

    fn is_ready(&mut self, id: u64, beat: bool) {
        if beat {
            self.beats.push_back(id);
        } else {
            self.ready.insert(id);
        }
    }

    /// Takes the oldest work whose turn it is, while there is a thread for it.
    pub(super) fn take(&mut self) -> Option<Task<W>> {
        let oldest = if self.threads < self.most { self.ready.pop_first() } else { None };
        let id = oldest.or_else(|| self.beats.pop_front())?;
        let entry = self.entries.get_mut(&id)?;
        let runs = Stage::Runs { given_up: false };
        let Stage::Waits { work, .. } = std::mem::replace(&mut entry.stage, runs) else {
            return None;
        };
        self.threads += usize::from(!entry.beat);
        self.running.insert(id);
        Some(Task { id, name: entry.name.clone(), work })
    }

    /// The work is done: who is next in its lines moves up.
    pub(super) fn end(&mut self, id: u64) {
        self.running.remove(&id);
        let Some(entry) = self.entries.remove(&id) else { return };
        let counts = !entry.beat && !matches!(entry.stage, Stage::Runs { given_up: true });
        self.threads -= usize::from(counts);
        for key in &entry.keys {
            self.leave(key, id);
        }
    }

    fn leave(&mut self, key: &Key, id: u64) {
        let Some(line) = self.lines.get_mut(key) else { return };
        if line.front() == Some(&id) {
            line.pop_front();
        }
        let Some(next) = line.front().copied() else {
            self.lines.remove(key);
            return;
        };
        let Some(entry) = self.entries.get_mut(&next) else { return };
        if let Stage::Waits { behind, .. } = &mut entry.stage {
            *behind -= 1;
            if *behind == 0 {
                let beat = entry.beat;
                self.is_ready(next, beat);
            }
        }
    }

    /// Work that runs no longer counts among the threads. What touches the same still waits.
    pub(super) fn give_up(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if let Stage::Runs { given_up: given_up @ false } = &mut entry.stage {
            *given_up = true;
            self.threads -= usize::from(!entry.beat);
        }
    }

    /// The work that another waits for: one that runs, else the oldest before it. `None` when it
    /// runs, is done, or waits for a thread alone.
    pub(super) fn waits_for(&self, id: u64) -> Option<String> {
        let entry = self.entries.get(&id)?;
        let Stage::Waits { .. } = entry.stage else { return None };
        let lines = entry.keys.iter().filter_map(|key| self.lines.get(key));
        let first: BTreeSet<u64> =
            lines.filter_map(|line| line.front()).filter(|first| **first != id).copied().collect();
        let runs = first.iter().find(|first| self.running.contains(first));
        Some(self.entries.get(runs.or(first.first())?)?.name.clone())
    }

    /// Takes no more work, and drops what waits.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.entries.retain(|id, _| self.running.contains(id));
        self.lines.clear();
        self.ready.clear();
        self.beats.clear();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// How much waits.
    pub(super) fn waiting(&self) -> usize {
        self.entries.len() - self.running.len()
    }

    /// Whether work has begun and not ended.
    #[cfg(test)]
    pub(super) fn runs(&self, id: u64) -> bool {
        self.running.contains(&id)
    }

    /// The names of what runs, oldest first.
    pub(super) fn running(&self) -> Vec<&str> {
        let entries = self.running.iter().filter_map(|id| self.entries.get(id));
        entries.map(|entry| entry.name.as_str()).collect()
    }

    /// Whether nothing runs that anybody would wait for.
    pub(super) fn is_idle(&self) -> bool {
        self.threads == 0
    }

    /// Whether nothing runs, given up or not, but beats.
    pub(super) fn is_over(&self) -> bool {
        let mut entries = self.running.iter().filter_map(|id| self.entries.get(id));
        entries.all(|entry| entry.beat)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// The rule itself, by a look at all that waits.
    #[derive(Default)]
    struct Scan {
        waiting: Vec<(u64, Vec<Key>)>,
        running: Vec<(u64, Vec<Key>, bool)>,
    }

    impl Scan {
        fn take(&mut self, most: usize) -> Option<u64> {
            if self.running.iter().filter(|(_, _, given_up)| !given_up).count() >= most {
                return None;
            }
            let mut taken: HashSet<Key> =
                self.running.iter().flat_map(|(_, keys, _)| keys.clone()).collect();
            let at = self.waiting.iter().position(|(_, keys)| {
                let free = keys.iter().all(|key| !taken.contains(key));
                taken.extend(keys.iter().cloned());
                free
            })?;
            let (id, keys) = self.waiting.remove(at);
            self.running.push((id, keys, false));
            Some(id)
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Add(Vec<u8>),
        Take,
        End(prop::sample::Index),
        GiveUp(prop::sample::Index),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => prop::collection::vec(0..5_u8, 0..4).prop_map(Step::Add),
            3 => Just(Step::Take),
            2 => any::<prop::sample::Index>().prop_map(Step::End),
            1 => any::<prop::sample::Index>().prop_map(Step::GiveUp),
        ]
    }

    proptest! {
        #[test]
        fn it_takes_what_a_look_at_all_that_waits_would(
            steps in prop::collection::vec(step(), 0..120),
        ) {
            let (mut queue, mut scan) = (Queue::new(3), Scan::default());
            for step in steps {
                match step {
                    Step::Add(keys) => {
                        let keys: Vec<Key> =
                            keys.iter().map(|key| Key::Context(format!("c-{key}").into())).collect();
                        let id = queue.add(String::new(), keys.clone(), false, ());
                        scan.waiting.push((id, keys));
                    }
                    Step::Take => {
                        prop_assert_eq!(queue.take().map(|task| task.id), scan.take(3));
                    }
                    Step::End(which) if !scan.running.is_empty() => {
                        let at = which.index(scan.running.len());
                        queue.end(scan.running.remove(at).0);
                    }
                    Step::GiveUp(which) if !scan.running.is_empty() => {
                        let at = which.index(scan.running.len());
                        scan.running[at].2 = true;
                        queue.give_up(scan.running[at].0);
                    }
                    Step::End(_) | Step::GiveUp(_) => {}
                }
                prop_assert_eq!(queue.waiting(), scan.waiting.len());
                for (id, keys) in &scan.waiting {
                    let before = scan.waiting.iter().filter(|(other, _)| other < id);
                    let mut others = scan.running.iter().map(|(_, keys, _)| keys);
                    let waits = others.any(|other| other.iter().any(|key| keys.contains(key)))
                        || before.clone().any(|(_, other)| other.iter().any(|key| keys.contains(key)));
                    prop_assert_eq!(queue.waits_for(*id).is_some(), waits);
                }
            }
        }
    }
}
