//! How many lines of the audit each has.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Lines of one kind about one identity within a [`WHILE`].
const LINES: u64 = 50;

/// How long they are counted for.
const WHILE: Duration = Duration::from_secs(10);

/// How many are counted at a time; others share one count of each kind.
const MOST: usize = 1024;

static TABLE: Mutex<Option<Throttle>> = Mutex::new(None);

/// Whether there is a line for one more of a kind about somebody. Tells of those that had none, once
/// their while is over.
pub(super) fn line(kind: &'static str, who: &str) -> bool {
    let (wanted, over) = {
        let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
        let table = table.get_or_insert_with(|| Throttle::new(Instant::now()));
        table.line(kind, who, Instant::now())
    };
    for Over { kind, who, more } in over {
        tracing::warn!(target: "audit", kind, identity = who, more, "and more of it, without lines");
    }
    wanted
}

#[derive(Debug)]
struct Throttle {
    known: HashMap<(&'static str, String), Count>,
    swept: Instant,
}

#[derive(Debug)]
struct Count {
    since: Instant,
    seen: u64,
}

/// What had no lines.
#[derive(Debug, PartialEq, Eq)]
struct Over {
    kind: &'static str,
    who: String,
    more: u64,
}

impl Throttle {
    fn new(now: Instant) -> Self {
        Self { known: HashMap::new(), swept: now }
    }

    fn line(&mut self, kind: &'static str, who: &str, now: Instant) -> (bool, Vec<Over>) {
        let mut over = Vec::new();
        if now.duration_since(self.swept) >= WHILE / 10 {
            self.swept = now;
            self.known.retain(|(kind, who), count| {
                let goes_on = now.duration_since(count.since) < WHILE;
                if !goes_on && count.seen > LINES {
                    over.push(Over { kind, who: who.clone(), more: count.seen - LINES });
                }
                goes_on
            });
        }
        let full = self.known.len() >= MOST;
        let mut key = (kind, who.to_owned());
        if full && !self.known.contains_key(&key) {
            key.1 = "others".to_owned();
        }
        let count = self.known.entry(key).or_insert(Count { since: now, seen: 0 });
        count.seen += 1;
        (count.seen <= LINES, over)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_has_few_lines_and_is_told_by_its_number() {
        let began = Instant::now();
        let mut throttle = Throttle::new(began);
        let lines = (0..1000).filter(|_| throttle.line("refused", "uid:7", began).0).count();
        assert_eq!(lines, 50);
        assert!(throttle.line("refused", "uid:8", began).0, "others have lines of their own");
        assert!(throttle.line("changed", "uid:7", began).0, "and so have other kinds");
        let (wanted, over) = throttle.line("refused", "uid:7", began + WHILE);
        assert!(wanted, "a new while");
        assert_eq!(over, [Over { kind: "refused", who: "uid:7".to_owned(), more: 950 }]);
    }

    #[test]
    fn those_who_come_under_ever_new_names_share_their_lines() {
        let began = Instant::now();
        let mut throttle = Throttle::new(began);
        let lines = (0..10_000)
            .filter(|uid| throttle.line("refused", &format!("uid:{uid}"), began).0)
            .count();
        assert_eq!(lines, MOST + 50);
        assert_eq!(throttle.known.len(), MOST + 1);
    }
}
