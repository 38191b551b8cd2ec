//! Waiting for holders to bind what was handed to them, or to open it by its node. Nothing tells of
//! that, so it is looked for: by one task for all who are waited for, however many they are.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use berth_ownership::{Command, Delivery, Reservation, ReservationId, ReservationState};
use tokio::{sync::Notify, time::Instant};

use super::{
    engine::{Engine, Inner},
    holder::{LOOK, process_of},
    job::Job,
    runtime::lock,
};

/// Before somebody is first looked at to whom something was just handed; doubled up to [`LOOK`].
const FIRST_LOOK: Duration = Duration::from_millis(20);

/// The same where it was handed over long ago, by the daemon before this one it may be.
const NEXT_LOOK: Duration = Duration::from_millis(320);

/// When a holder is looked at next, and how long after that again.
#[derive(Debug, Clone, Copy)]
struct Look {
    at: Instant,
    pause: Duration,
}

impl Look {
    fn after(pause: Duration) -> Self {
        Self { at: Instant::now() + pause, pause }
    }
}

/// Who is waited for.
#[derive(Debug, Default)]
pub(super) struct Binding {
    table: Mutex<Table>,
    sooner: Notify,
}

#[derive(Debug, Default)]
struct Table {
    looks: HashMap<ReservationId, Look>,
    /// Until when the task that looks sleeps; none where there is no task.
    asleep: Option<Instant>,
}

impl Binding {
    /// Adds somebody. True where there is no task that looks: the caller starts one.
    fn begin(&self, id: &ReservationId, look: Look) -> bool {
        let mut table = lock(&self.table);
        if !table.looks.contains_key(id) {
            table.looks.insert(id.clone(), look);
        }
        match table.asleep {
            Some(until) if until <= look.at => false,
            Some(_) => {
                self.sooner.notify_one();
                false
            }
            None => {
                table.asleep = Some(look.at);
                true
            }
        }
    }

    /// When the next look is due; the task ends when nobody is waited for any more.
    fn next(&self) -> Option<Instant> {
        let mut table = lock(&self.table);
        table.asleep = table.looks.values().map(|look| look.at).min();
        table.asleep
    }

    /// Those whose look is due. Each is looked at again later, unless it ends meanwhile.
    fn due(&self, now: Instant) -> Vec<ReservationId> {
        let mut due = Vec::new();
        for (id, look) in lock(&self.table).looks.iter_mut().filter(|(_, look)| look.at <= now) {
            let pause = (look.pause * 2).min(LOOK);
            *look = Look { at: now + pause, pause };
            due.push(id.clone());
        }
        due
    }

    /// Somebody is waited for no more.
    fn end(&self, id: &ReservationId) {
        lock(&self.table).looks.remove(id);
    }
}

impl Engine {
    /// Waits for the holder of a reservation to bind its devices, or to open them by their nodes.
    pub(super) fn watch_bind(&self, id: &ReservationId) {
        self.wait_for_bind(id, Look::after(FIRST_LOOK));
    }

    /// The same of one that has had the time for it before.
    pub(super) fn watch_bind_on(&self, id: &ReservationId) {
        self.wait_for_bind(id, Look::after(NEXT_LOOK));
    }

    fn wait_for_bind(&self, id: &ReservationId, look: Look) {
        let holders = &self.inner.holders;
        if holders.binding.begin(id, look) {
            let engine = Arc::downgrade(&self.inner);
            holders.handle.spawn(look_on(engine, Arc::clone(&holders.binding)));
        }
    }

    /// Looks at all who are due.
    fn look_for_binds(&self) {
        for id in self.inner.holders.binding.due(Instant::now()) {
            self.look_for_bind(&id);
        }
    }

    fn look_for_bind(&self, id: &ReservationId) {
        let snapshot = self.snapshot();
        let Some(record) = snapshot.state.reservation(id).filter(|record| waits_for_bind(record))
        else {
            self.inner.holders.binding.end(id);
            // Handed over anew since the look: whoever did that found this one still waited for.
            if self.snapshot().state.reservation(id).is_some_and(waits_for_bind) {
                self.watch_bind(id);
            }
            return;
        };
        if Job::of(&snapshot, id).is_ok_and(|job| self.has_bound(&job)) {
            let pid = record.process.as_ref().and_then(|it| i32::try_from(it.pid).ok());
            let process = pid.and_then(|pid| process_of(pid).ok()).map(|(process, _)| process);
            // Before it is told: whatever is handed over after that is waited for anew.
            self.inner.holders.binding.end(id);
            self.told(Command::BindSeen { reservation: id.clone(), process });
        }
    }

    /// Whether all devices are open, and bound to the context that was handed over where that is
    /// still here.
    fn has_bound(&self, job: &Job) -> bool {
        let tools = self.tools();
        let devices: Vec<_> = job.devices().collect();
        let open = devices.iter().all(|device| tools.host.in_use(*device).unwrap_or(false));
        let context = match job.delivery {
            Delivery::Unbound => tools.runtime.context(&job.context),
            Delivery::Node | Delivery::Held | Delivery::Bound => None,
        };
        open && context.is_none_or(|context| {
            let bound = context.context.bound_devices(devices.len());
            bound.is_ok_and(|bound| bound == devices.len())
        })
    }
}

/// Looks as long as somebody is waited for. The engine may end while nothing is to be done.
async fn look_on(engine: Weak<Inner>, binding: Arc<Binding>) {
    while let Some(next) = binding.next() {
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            // Somebody was added, whose look is due before.
            () = binding.sooner.notified() => continue,
        }
        let Some(inner) = engine.upgrade() else { return };
        let engine = Engine { inner };
        let looked = tokio::task::spawn_blocking(move || engine.look_for_binds()).await;
        if let Err(error) = looked {
            tracing::error!(%error, "a look at who binds was broken off");
        }
    }
}

fn waits_for_bind(record: &Reservation) -> bool {
    [Some(record.state), record.resume].contains(&Some(ReservationState::Handed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: usize) -> Vec<ReservationId> {
        (0..count).map(|at| ReservationId::new(format!("r-{at}"))).collect()
    }

    #[test]
    fn one_task_looks_for_all_and_less_and_less_often() {
        let binding = Binding::default();
        let (all, look) = (ids(1000), Look::after(FIRST_LOOK));
        let started = all.iter().filter(|id| binding.begin(id, look)).count();
        assert_eq!(started, 1);
        let (mut now, mut pauses) = (look.at - FIRST_LOOK, Vec::new());
        while pauses.len() < 8 {
            let next = binding.next().expect("somebody is waited for");
            pauses.push((next - now).as_millis());
            now = next;
            assert_eq!(binding.due(now).len(), all.len());
        }
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1000, 1000]);
        all.iter().for_each(|id| binding.end(id));
        assert!(binding.next().is_none());
        assert!(binding.begin(&all[0], look), "the task has ended");
    }

    #[tokio::test]
    async fn who_is_due_before_the_others_wakes_the_task() {
        let binding = Binding::default();
        let all = ids(2);
        assert!(binding.begin(&all[0], Look::after(LOOK)));
        let asleep = binding.next().expect("one is waited for");
        assert!(!binding.begin(&all[1], Look::after(FIRST_LOOK)));
        binding.sooner.notified().await;
        assert!(binding.next().is_some_and(|next| next < asleep));
        // Added again, it keeps its place.
        assert!(!binding.begin(&all[0], Look::after(Duration::ZERO)));
        assert!(binding.due(asleep).len() == 2);
    }
}
