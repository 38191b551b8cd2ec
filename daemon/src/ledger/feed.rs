//! New events for those who follow them: the last ones in a ring, and the number of the newest.
//!
//! Followers read the ring without a lock, each at its own pace; who comes too late for it reads the
//! store. Nobody waits for a follower.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use crate::view::WatchedEvent;

/// How many events are kept in memory.
const KEPT: usize = 1024;

/// Where events are put.
#[derive(Debug)]
pub(super) struct Feed {
    ring: Arc<[ArcSwapOption<WatchedEvent>]>,
    /// The newest number. None once nobody is told any more.
    newest: ArcSwapOption<watch::Sender<u64>>,
}

impl Feed {
    /// Without an event, after the number of the last one that is stored.
    pub(super) fn after(seq: u64) -> Self {
        let ring = (0..KEPT).map(|_| ArcSwapOption::empty()).collect();
        let (newest, _) = watch::channel(seq);
        Self { ring, newest: ArcSwapOption::from_pointee(newest) }
    }

    /// Adds events, in their order, and wakes who waits.
    pub(super) fn publish(&self, events: impl IntoIterator<Item = Arc<WatchedEvent>>) {
        let mut newest = None;
        for event in events {
            let seq = event.record().seq;
            if let Some(place) = place(&self.ring, seq) {
                place.store(Some(event));
            }
            newest = Some(seq);
        }
        if let (Some(seq), Some(sender)) = (newest, self.newest.load().as_deref()) {
            sender.send_replace(seq);
        }
    }

    /// Ends all following, once what was published is read.
    pub(super) fn end(&self) {
        self.newest.store(None);
    }

    /// Follows from after a number on.
    pub(super) fn follow(&self, last: u64) -> Follower {
        let newest = match self.newest.load().as_deref() {
            Some(sender) => sender.subscribe(),
            None => watch::channel(last).1,
        };
        Follower { ring: Arc::clone(&self.ring), newest, last }
    }
}

fn place(ring: &[ArcSwapOption<WatchedEvent>], seq: u64) -> Option<&ArcSwapOption<WatchedEvent>> {
    let length = u64::try_from(ring.len()).ok()?;
    ring.get(usize::try_from(seq.checked_rem(length)?).ok()?)
}

/// One who follows.
#[derive(Debug)]
pub struct Follower {
    ring: Arc<[ArcSwapOption<WatchedEvent>]>,
    newest: watch::Receiver<u64>,
    last: u64,
}

impl Follower {
    /// The number of the event that was read last.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Goes on after another one, which was read elsewhere.
    pub const fn skip_to(&mut self, seq: u64) {
        self.last = seq;
    }

    /// The next event, if it is there and still kept in memory.
    pub fn try_next(&mut self) -> Option<Arc<WatchedEvent>> {
        let next = self.last + 1;
        let event = place(&self.ring, next)?.load();
        let event = event.as_ref().filter(|event| event.record().seq == next)?;
        self.last = next;
        Some(Arc::clone(event))
    }

    /// Waits until there is a next event, in memory or in the store. False when there will be none.
    pub async fn wait(&mut self) -> bool {
        let last = self.last;
        self.newest.wait_for(|newest| *newest > last).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::EventRecord;

    fn event(seq: u64) -> Arc<WatchedEvent> {
        let text = String::new;
        Arc::new(WatchedEvent::new(Arc::new(EventRecord {
            seq,
            time_unix_ms: 0,
            boot_id: Arc::from(""),
            actor: text(),
            cause: text(),
            request_id: text(),
            kind: text(),
            groups: Vec::new(),
            devices: Vec::new(),
            reservation: text(),
            before: None,
            after: None,
        })))
    }

    #[tokio::test]
    async fn each_reads_all_in_order_at_its_own_pace() {
        let feed = Feed::after(7);
        let (mut quick, mut slow) = (feed.follow(7), feed.follow(7));
        assert!(quick.try_next().is_none());
        for seq in 8..20 {
            feed.publish([event(seq)]);
            assert!(quick.wait().await);
            assert_eq!(quick.try_next().map(|event| event.record().seq), Some(seq));
        }
        assert!(slow.wait().await);
        let read: Vec<u64> =
            std::iter::from_fn(|| slow.try_next()).map(|e| e.record().seq).collect();
        assert_eq!(read, (8..20).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn who_is_too_late_is_told_that_there_is_more_and_gets_none_twice() {
        let feed = Feed::after(0);
        let mut late = feed.follow(0);
        let many = u64::try_from(KEPT).expect("a small number") + 3;
        feed.publish((1..=many).map(event));
        assert!(late.wait().await && late.try_next().is_none(), "1 is in the store alone");
        late.skip_to(3);
        assert_eq!(late.try_next().map(|event| event.record().seq), Some(4));
    }

    #[tokio::test]
    async fn what_was_published_is_read_before_the_end() {
        let feed = Feed::after(0);
        let mut follower = feed.follow(0);
        feed.publish([event(1)]);
        feed.end();
        assert!(follower.wait().await);
        assert!(follower.try_next().is_some());
        assert!(!follower.wait().await);
        assert!(!feed.follow(1).wait().await, "nobody begins any more");
    }
}
