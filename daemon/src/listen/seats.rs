//! Places that are counted, of all and of each peer: connections, and clients that follow events.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

/// Who takes a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Taker {
    /// A uid.
    Uid(u32),
    /// An address on TCP.
    Address(std::net::IpAddr),
}

/// How often somebody who waits looks whether a limit was raised meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Places that are taken.
#[derive(Debug, Default)]
pub struct Seats {
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by: HashMap<Taker, usize>,
}

/// A place; dropping it gives it up.
#[derive(Debug)]
pub struct Seat {
    seats: Arc<Seats>,
    by: Option<Taker>,
}

impl Seats {
    /// Waits until there is a place. The limit is asked for anew each time, as it may change.
    pub async fn room(&self, most: impl Fn() -> usize) {
        while self.in_use() >= most() {
            // What was freed in between is remembered.
            let _ = tokio::time::timeout(LOOK_EVERY, self.freed.notified()).await;
        }
    }

    /// A place, whether there is one or not: for the only one who takes any, after [`Self::room`].
    pub fn take(self: &Arc<Self>) -> Seat {
        self.lock().all += 1;
        Seat { seats: Arc::clone(self), by: None }
    }

    /// A place, if there is one.
    pub fn try_seat(self: &Arc<Self>, most: usize) -> Option<Seat> {
        let mut taken = self.lock();
        if taken.all >= most {
            return None;
        }
        taken.all += 1;
        drop(taken);
        Some(Seat { seats: Arc::clone(self), by: None })
    }

    /// How many places are taken.
    pub fn in_use(&self) -> usize {
        self.lock().all
    }

    /// How many places whoever has most of them has.
    pub fn of_busiest(&self) -> usize {
        self.lock().by.values().copied().max().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Says who has the place. False where he has as many as he may already: then it is to be given up.
    #[must_use]
    pub fn is_for(&mut self, taker: Taker, most: usize) -> bool {
        let mut taken = self.seats.lock();
        let own = taken.by.entry(taker).or_default();
        if *own >= most {
            return false;
        }
        *own += 1;
        drop(taken);
        self.by = Some(taker);
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.lock();
        taken.all = taken.all.saturating_sub(1);
        if let Some(taker) = &self.by
            && let Some(own) = taken.by.get_mut(taker)
        {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.by.remove(taker);
            }
        }
        drop(taken);
        self.seats.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_are_counted_of_all_and_of_each() {
        let seats = Arc::new(Seats::default());
        let mut first = seats.try_seat(3).expect("a place");
        assert!(first.is_for(Taker::Uid(7), 1));
        let mut second = seats.try_seat(3).expect("a place");
        assert!(!second.is_for(Taker::Uid(7), 1), "one is all that it may have");
        drop(second);
        let mut third = seats.try_seat(3).expect("a place");
        assert!(third.is_for(Taker::Uid(8), 1));
        assert_eq!((seats.in_use(), seats.of_busiest()), (2, 1));
        assert!(seats.try_seat(2).is_none());
        let waiting = {
            let seats = Arc::clone(&seats);
            tokio::spawn(async move {
                seats.room(|| 2).await;
                seats.take()
            })
        };
        tokio::task::yield_now().await;
        drop(first);
        let last = waiting.await.expect("no panic");
        assert_eq!(seats.in_use(), 2);
        drop((third, last));
        assert_eq!((seats.in_use(), seats.of_busiest()), (0, 0));
    }
}
