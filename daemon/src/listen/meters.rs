//! Token buckets of those who call: of each identity one for commands and one for reads.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use berth_ownership::{Reason, Refusal};
use governor::{
    DefaultDirectRateLimiter, Quota,
    clock::{Clock as _, DefaultClock},
};

use crate::model::{ApiError, Caller, Live, Pace, Rates};

/// How many identities have buckets of their own at a time.
const MOST: usize = 4096;

/// Buckets that nobody has taken from for so long are full again, and needn't be remembered: a burst
/// is at most what a minute brings, or it is refilled by then for all that matters.
const IDLE: Duration = Duration::from_secs(60);

/// What a call is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It may change something.
    Command,
    /// It reads.
    Read,
}

/// The buckets of all who call.
#[derive(Debug)]
pub struct Meters {
    rates: Live<Rates>,
    table: Mutex<HashMap<String, Arc<Meter>>>,
    /// For those who come when the table is full of others who are at it.
    others: Arc<Meter>,
    refused: AtomicU64,
    began: Instant,
}

/// The buckets of one identity.
pub struct Meter {
    caller: Caller,
    buckets: ArcSwap<Buckets>,
    /// When it was last asked, in milliseconds since the table was made.
    asked_ms: AtomicU64,
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("caller", &self.caller.identity).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Buckets {
    commands: Option<Bucket>,
    reads: Option<Bucket>,
    /// Whom the rate is about, and where it stands.
    rule: String,
}

struct Bucket {
    pace: Pace,
    limiter: DefaultDirectRateLimiter,
}

impl Bucket {
    fn of(pace: Pace) -> Self {
        let quota = Quota::per_second(pace.per_second).allow_burst(pace.burst);
        Self { pace, limiter: DefaultDirectRateLimiter::direct(quota) }
    }
}

impl Buckets {
    fn of(rates: &Rates, caller: &Caller) -> Self {
        rates.of(caller).map_or_else(Self::default, |rate| Self {
            commands: rate.commands.map(Bucket::of),
            reads: rate.reads.map(Bucket::of),
            rule: format!("{} at {}", rate.who, rate.place),
        })
    }
}

/// Too many calls.
#[derive(Debug, Clone)]
pub struct Excess {
    /// The refusal, `RATE_LIMITED`.
    pub error: ApiError,
    /// When the next call would be let through.
    pub wait: Duration,
}

impl Meters {
    /// Nobody has called yet.
    #[must_use]
    pub fn new(rates: Rates) -> Self {
        Self {
            others: Arc::new(Meter::new(nobody(), &rates)),
            rates: Live::new(rates),
            table: Mutex::default(),
            refused: AtomicU64::new(0),
            began: Instant::now(),
        }
    }

    /// The buckets of a caller, the same for all of its connections.
    pub fn of(&self, caller: &Caller) -> Arc<Meter> {
        let name = match &caller.tenant {
            Some(label) => format!("label {label}"),
            None => caller.identity.clone(),
        };
        let now_ms = self.now_ms();
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = table.get(&name) {
            return Arc::clone(known);
        }
        if table.len() >= MOST {
            let idle_ms = u64::try_from(IDLE.as_millis()).unwrap_or(u64::MAX);
            table.retain(|_, meter| {
                let asked = meter.asked_ms.load(Ordering::Relaxed);
                Arc::strong_count(meter) > 1 || now_ms.saturating_sub(asked) < idle_ms
            });
        }
        if table.len() >= MOST {
            return Arc::clone(&self.others);
        }
        let meter = Arc::new(Meter::new(caller.clone(), &self.rates.get()));
        meter.asked_ms.store(now_ms, Ordering::Relaxed);
        table.insert(name, Arc::clone(&meter));
        meter
    }

    /// Whether its calls are counted at all.
    pub fn is_limited(meter: &Meter) -> bool {
        let buckets = meter.buckets.load();
        buckets.commands.is_some() || buckets.reads.is_some()
    }

    /// Takes a call out of a bucket.
    ///
    /// # Errors
    /// `RATE_LIMITED`, and how long to wait.
    pub fn take(&self, meter: &Meter, kind: Kind) -> Result<(), Excess> {
        let buckets = meter.buckets.load();
        let bucket = match kind {
            Kind::Command => &buckets.commands,
            Kind::Read => &buckets.reads,
        };
        let Some(bucket) = bucket else { return Ok(()) };
        meter.asked_ms.store(self.now_ms(), Ordering::Relaxed);
        let Err(early) = bucket.limiter.check() else { return Ok(()) };
        self.refused.fetch_add(1, Ordering::Relaxed);
        let wait = early.wait_time_from(DefaultClock::default().now());
        Err(Excess { error: meter.refusal(kind, bucket.pace, &buckets.rule, wait), wait })
    }

    /// Other rates from now on; every bucket that they change is full again.
    pub fn set(&self, rates: Rates) {
        let changed = *self.rates.get().as_ref() != rates;
        if !changed {
            return;
        }
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        for meter in table.values().chain([&self.others]) {
            meter.buckets.store(Arc::new(Buckets::of(&rates, &meter.caller)));
        }
        self.rates.set(rates);
    }

    /// How many identities have buckets, and how many may.
    pub fn identities(&self) -> (usize, usize) {
        (self.table.lock().unwrap_or_else(PoisonError::into_inner).len(), MOST)
    }

    /// How many calls were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Stands for those who share buckets.
fn nobody() -> Caller {
    Caller { identity: "others".to_owned(), ..Caller::tcp(crate::model::Role::Viewer) }
}

impl Meter {
    fn new(caller: Caller, rates: &Rates) -> Self {
        let buckets = ArcSwap::from_pointee(Buckets::of(rates, &caller));
        Self { caller, buckets, asked_ms: AtomicU64::new(0) }
    }

    fn refusal(&self, kind: Kind, pace: Pace, rule: &str, wait: Duration) -> ApiError {
        let (identity, words) = (
            &self.caller.identity,
            match kind {
                Kind::Command => "commands",
                Kind::Read => "reads",
            },
        );
        let text = format!(
            "{identity} may send {} {words} a second, {} at once (rate of {rule}), and sent more",
            pace.per_second, pace.burst
        );
        let again = format!("call again in {} ms, and less often", wait.as_millis().max(1));
        let raise = format!("have the rate of {rule} raised, then reload: systemctl reload berthd");
        let refusal = Refusal::new(Reason::RateLimited, identity, text);
        ApiError::Refused(refusal.with_resolve(vec![again, raise]))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::model::{Rate, Role, Whom};

    fn rates(commands: u32, reads: u32) -> Rates {
        let pace = |burst| {
            let (per_second, burst) = (NonZeroU32::MIN, NonZeroU32::new(burst)?);
            Some(Pace { per_second, burst })
        };
        let place = "berthd.toml:1".to_owned();
        let (commands, reads) = (pace(commands), pace(reads));
        Rates(vec![Rate { who: Whom::Others, commands, reads, place }])
    }

    fn passed(meters: &Meters, uid: u32, kind: Kind) -> usize {
        let meter = meters.of(&Caller::unix(uid, None, Role::Operator));
        (0..50).filter(|_| meters.take(&meter, kind).is_ok()).count()
    }

    #[test]
    fn commands_and_reads_have_buckets_of_their_own_and_so_has_everybody() {
        let meters = Meters::new(rates(3, 7));
        // One more may come in while it is counted.
        assert!((3..=4).contains(&passed(&meters, 1, Kind::Command)));
        assert!((7..=8).contains(&passed(&meters, 1, Kind::Read)));
        assert!((3..=4).contains(&passed(&meters, 2, Kind::Command)));
        let meter = meters.of(&Caller::unix(1, None, Role::Operator));
        let excess = meters.take(&meter, Kind::Command).expect_err("there was a flood");
        assert_eq!(excess.error.reason(), Reason::RateLimited);
        assert!(excess.wait <= Duration::from_secs(1), "{excess:?}");
        for told in ["uid:1", "1 commands a second", "3 at once", "berthd.toml:1"] {
            assert!(excess.error.refusal().message.contains(told), "{excess:?}");
        }
        meters.set(rates(20, 0));
        assert!((20..=21).contains(&passed(&meters, 1, Kind::Command)), "raised");
        assert_eq!(passed(&meters, 1, Kind::Read), 50, "no limit any more");
    }

    #[test]
    fn the_table_is_bounded_and_forgets_nobody_who_is_at_it() {
        let meters = Meters::new(rates(1, 1));
        let caller = |uid| Caller::unix(uid, None, Role::Operator);
        let first = meters.of(&caller(0));
        for uid in 1..10_000 {
            drop(meters.of(&caller(uid)));
        }
        assert_eq!(meters.identities(), (MOST, MOST));
        assert!(Arc::ptr_eq(&first, &meters.of(&caller(0))));
        let late = [meters.of(&caller(20_000)), meters.of(&caller(20_001))];
        assert!(Arc::ptr_eq(&late[0], &late[1]), "they share");
    }
}
