//! Messages of devices to whoever subscribed.
//!
//! # Source
//! `kobject_uevent_net_broadcast` in `lib/kobject_uevent.c`: a subscriber that doesn't read loses
//! messages, and is told that it did.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
    time::Duration,
};

use super::Kernel;
use crate::{HostError, News, PciAddress, Uevent, Uevents};

/// How many messages wait for a subscriber.
const ROOM: usize = 4096;

/// What one subscriber has not read yet.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    messages: VecDeque<Uevent>,
    dropped: bool,
}

impl Kernel {
    /// Tells all subscribers.
    pub(crate) fn tell(&mut self, action: &str, device: PciAddress) {
        self.subscribers.retain(|subscriber| subscriber.strong_count() > 0);
        for queue in self.subscribers.iter().filter_map(Weak::upgrade) {
            let mut waiting = queue.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.messages.len() < ROOM {
                waiting.messages.push_back(Uevent { action: action.to_owned(), device });
            } else {
                waiting.dropped = true;
            }
            queue.more.notify_all();
        }
    }

    /// Another subscriber.
    pub(crate) fn subscribe(&mut self) -> Subscription {
        let queue = Arc::new(Queue::default());
        self.subscribers.push(Arc::downgrade(&queue));
        Subscription(queue)
    }
}

/// One subscriber's end.
#[derive(Debug)]
pub(crate) struct Subscription(Arc<Queue>);

impl Uevents for Subscription {
    fn next(&mut self, patience: Duration) -> Result<News, HostError> {
        let nothing = |waiting: &mut Waiting| waiting.messages.is_empty() && !waiting.dropped;
        let waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut waiting, _) = self
            .0
            .more
            .wait_timeout_while(waiting, patience, nothing)
            .unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut waiting.dropped) {
            waiting.messages.clear();
            return Ok(News::Dropped);
        }
        Ok(News::Uevents(waiting.messages.drain(..).collect()))
    }
}
