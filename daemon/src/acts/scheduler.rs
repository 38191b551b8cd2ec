//! Which kernel work runs beside which.
//!
//! `BIND`, `ATTACH`, reset and the last close of a device hold a lock of the whole reset set in the
//! kernel, and any of them may not come back. So each piece of work names what it touches; it waits
//! for earlier work that touches the same, and for nothing else.

mod queue;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use berth_host::PciAddress;
use berth_ownership::ContextId;

use self::queue::Task;

/// Threads of work that has not been given up. More work waits.
const MAX_THREADS: usize = 64;

/// One thing that work touches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    /// A device: a member of the group, or of the reset set.
    Device(PciAddress),
    /// A context: its domains are made and attached one after another.
    Context(ContextId),
}

/// Takes threads as work comes, gives them up when there is none.
#[derive(Clone, Default)]
pub(crate) struct Scheduler {
    inner: Arc<Inner>,
}

type Work = Box<dyn FnOnce() + Send>;
type Queue = queue::Queue<Work>;

struct Inner {
    queue: Mutex<Queue>,
    idle: Condvar,
}

impl Default for Inner {
    fn default() -> Self {
        Self { queue: Mutex::new(Queue::new(MAX_THREADS)), idle: Condvar::new() }
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.inner.lock();
        f.debug_struct("Scheduler")
            .field("running", &queue.running())
            .field("waiting", &queue.waiting())
            .finish()
    }
}

/// One submitted piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

impl Scheduler {
    /// Queues work. It starts as soon as nothing earlier touches any of `keys`.
    pub(crate) fn submit(
        &self,
        name: impl Into<String>,
        keys: Vec<Key>,
        work: impl FnOnce() + Send + 'static,
    ) -> Ticket {
        self.add(name.into(), keys, false, Box::new(work))
    }

    /// Runs something that ends at once, on a thread like any other's, however many those are:
    /// where it doesn't run, nothing else would.
    pub(crate) fn beat(&self, work: impl FnOnce() + Send + 'static) {
        self.add("heartbeat".to_owned(), Vec::new(), true, Box::new(work));
    }

    fn add(&self, name: String, keys: Vec<Key>, beat: bool, work: Work) -> Ticket {
        let mut queue = self.inner.lock();
        let id = queue.add(name, keys, beat, work);
        start_what_can(&self.inner, &mut queue);
        Ticket(id)
    }

    /// What a piece of work waits for; `None` when it runs, or is done.
    pub(crate) fn waits_for(&self, ticket: Ticket) -> Option<String> {
        self.inner.lock().waits_for(ticket.0)
    }

    /// Whether the work has begun and not ended.
    #[cfg(test)]
    pub(crate) fn runs(&self, ticket: Ticket) -> bool {
        self.inner.lock().runs(ticket.0)
    }

    /// The work doesn't come back: its thread no longer counts. What touches the same still waits.
    pub(crate) fn give_up(&self, ticket: Ticket) {
        let mut queue = self.inner.lock();
        queue.give_up(ticket.0);
        start_what_can(&self.inner, &mut queue);
    }

    /// Waits, for a thread of its own; false at once when no more work is taken.
    pub(crate) fn pause(&self, time: Duration) -> bool {
        let queue = self.inner.lock();
        let waited = self.inner.idle.wait_timeout_while(queue, time, |queue| !queue.is_closed());
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_closed()
    }

    /// Takes no more work and waits for what runs, at most this long. True when all of it ended.
    pub(crate) fn close(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut queue = self.inner.lock();
        queue.close();
        self.inner.idle.notify_all();
        while !queue.is_idle() {
            let Some(left) = deadline.checked_duration_since(Instant::now()) else { break };
            let waited = self.inner.idle.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        queue.is_over()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts a thread for each task that can run.
fn start_what_can(inner: &Arc<Inner>, queue: &mut Queue) {
    while let Some(task) = queue.take() {
        let (id, name) = (task.id, task.name.clone());
        let shared = Arc::clone(inner);
        let spawned =
            std::thread::Builder::new().name("acts".to_owned()).spawn(move || run(&shared, task));
        // The closure is gone with the thread; its intent stays open and start-up finishes it.
        if let Err(error) = spawned {
            tracing::error!(work = name, %error, "no thread for kernel work");
            queue.end(id);
            return;
        }
    }
}

/// Does a task, and goes on with what can be done then.
fn run(inner: &Arc<Inner>, task: Task<Work>) {
    let mut next = Some(task);
    while let Some(Task { id, name, work, .. }) = next {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!(work = name, "kernel work panicked");
        }
        let mut queue = inner.lock();
        queue.end(id);
        next = queue.take();
        start_what_can(inner, &mut queue);
        drop(queue);
        inner.idle.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn key(function: u8) -> Key {
        Key::Device(PciAddress::new(0, 1, 0, function).unwrap())
    }

    #[test]
    fn work_waits_for_its_own_devices_only_and_is_told_for_what() {
        let scheduler = Scheduler::default();
        let (go, gate) = mpsc::channel::<()>();
        let (done, results) = mpsc::channel();
        let first = done.clone();
        scheduler.submit("first", vec![key(0), key(1)], move || {
            let _ = gate.recv();
            first.send("first").unwrap();
        });
        let second = done.clone();
        let waiting =
            scheduler.submit("second", vec![key(1)], move || second.send("second").unwrap());
        let third = done.clone();
        scheduler.submit("third", vec![key(2)], move || third.send("third").unwrap());
        assert_eq!(results.recv_timeout(PATIENCE).unwrap(), "third");
        assert_eq!(scheduler.waits_for(waiting).as_deref(), Some("first"));
        go.send(()).unwrap();
        assert_eq!(results.recv_timeout(PATIENCE).unwrap(), "first");
        assert_eq!(results.recv_timeout(PATIENCE).unwrap(), "second");
        assert!(scheduler.close(PATIENCE));
    }

    #[test]
    fn order_is_kept_among_those_that_wait() {
        let scheduler = Scheduler::default();
        let (go, gate) = mpsc::channel::<()>();
        let (done, results) = mpsc::channel();
        scheduler.submit("a", vec![key(0)], move || {
            let _ = gate.recv();
        });
        for (name, keys) in [("b", vec![key(0), key(1)]), ("c", vec![key(1)]), ("d", vec![key(1)])]
        {
            let done = done.clone();
            scheduler.submit(name, keys, move || done.send(name).unwrap());
        }
        go.send(()).unwrap();
        let order: Vec<&str> = (0..3).map(|_| results.recv_timeout(PATIENCE).unwrap()).collect();
        assert_eq!(order, ["b", "c", "d"]);
    }

    #[test]
    fn a_panic_frees_what_it_touched() {
        let scheduler = Scheduler::default();
        let (done, results) = mpsc::channel();
        scheduler.submit("bad", vec![key(0)], || panic!("planted"));
        scheduler.submit("good", vec![key(0)], move || done.send(()).unwrap());
        results.recv_timeout(PATIENCE).unwrap();
        assert!(scheduler.close(PATIENCE));
    }

    #[test]
    fn it_does_not_beat_while_it_can_start_nothing() {
        let scheduler = Scheduler::default();
        let (beat, heard) = mpsc::channel();
        let queue = scheduler.inner.lock();
        let other = scheduler.clone();
        let asking = std::thread::spawn(move || other.beat(move || beat.send(()).unwrap()));
        assert!(heard.recv_timeout(Duration::from_millis(100)).is_err());
        drop(queue);
        heard.recv_timeout(PATIENCE).unwrap();
        asking.join().unwrap();
        assert!(scheduler.close(PATIENCE));
    }

    #[test]
    fn stuck_work_does_not_keep_others_from_threads() {
        let scheduler = Scheduler::default();
        let (go, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let mut stuck = Vec::new();
        for bus in 0..MAX_THREADS {
            let gate = Arc::clone(&gate);
            let key = Key::Device(PciAddress::new(1, u8::try_from(bus).unwrap(), 0, 0).unwrap());
            stuck.push(scheduler.submit("stuck", vec![key], move || {
                let _ = gate.lock().unwrap().recv();
            }));
        }
        let (done, results) = mpsc::channel();
        scheduler.submit("other", vec![key(0)], move || done.send(()).unwrap());
        assert!(results.recv_timeout(Duration::from_millis(100)).is_err());
        let (beat, heard) = mpsc::channel();
        scheduler.beat(move || beat.send(()).unwrap());
        heard.recv_timeout(PATIENCE).unwrap();
        assert!(scheduler.runs(stuck[0]));
        scheduler.give_up(stuck[0]);
        results.recv_timeout(PATIENCE).unwrap();
        drop(go);
        // Closing waits for those alone that were not given up.
        let end = Instant::now() + PATIENCE;
        while scheduler.runs(stuck[0]) {
            assert!(Instant::now() < end, "it was let go and doesn't end");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(scheduler.close(PATIENCE));
    }
}
