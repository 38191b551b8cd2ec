//! Holders: which process has a reservation's descriptors, and what follows when it dies.

use std::{
    collections::HashSet,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_handover::asynchronous::ready;
use berth_host::ProcessUse;
use berth_ownership::{
    Command, HolderProcess, Refusal, Reservation, ReservationId, ReservationState,
};
use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::{io::Interest, runtime::Handle};

use super::{
    access, attach,
    binding::Binding,
    engine::Engine,
    job::Job,
    kin::{self, Kinship},
    memory, proof,
    revoke::start_time,
    tools::NO_INTENT,
    watched::{Watched, identity},
};

/// The processes that are watched.
#[derive(Debug)]
pub(crate) struct Holders {
    pub(super) handle: Handle,
    pub(super) watched: Watched,
    /// Reservations whose holder could not be ended: what it maps is unmapped while it drains.
    pub(super) cut_off: Mutex<HashSet<ReservationId>>,
    /// Reservations whose holder is waited for to bind.
    pub(super) binding: Arc<Binding>,
}

impl Holders {
    pub(crate) fn new(handle: Handle) -> Self {
        Self {
            handle,
            watched: Watched::default(),
            cut_off: Mutex::default(),
            binding: Arc::default(),
        }
    }
}

/// How often a process that can't be opened is looked for.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// Before the end of a process is looked at once more.
const AGAIN: Duration = Duration::from_millis(100);

/// A process that has a device open.
#[derive(Debug)]
pub(crate) enum User {
    /// It can be watched.
    Seen(HolderProcess, OwnedFd),
    /// Its pid is all there is.
    Named(HolderProcess),
}

impl User {
    pub(crate) fn process(&self) -> &HolderProcess {
        match self {
            Self::Seen(process, _) | Self::Named(process) => process,
        }
    }

    fn pid(&self) -> u32 {
        self.process().pid
    }

    /// What is told of it, once the holder is dead.
    pub(crate) fn follows(&self, id: &ReservationId, kinship: Kinship) -> Command {
        let (reservation, process) = (id.clone(), self.process().clone());
        match kinship {
            Kinship::Own => Command::HolderPassed { reservation, process },
            Kinship::Foreign => Command::HolderMoved { reservation, process },
        }
    }
}

/// Finds a process by pid: its pidfd, and its start time to tell it from a later one.
///
/// # Errors
/// ESRCH when it is gone.
pub(crate) fn process_of(pid: i32) -> Result<(HolderProcess, OwnedFd), Errno> {
    let raw = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
    let start_ticks = start_time(pid).ok_or(Errno::SRCH)?;
    let number = u32::try_from(pid).map_err(|_| Errno::SRCH)?;
    let (name, cgroup) = (kin::name_of(pid), kin::cgroup_of(pid));
    Ok((HolderProcess { pid: number, start_ticks, name, cgroup }, pidfd))
}

/// A recorded process, if it still runs, with no more asked than it takes to tell it from a later one of
/// the same pid.
pub(crate) fn living(process: &HolderProcess) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(process.pid).ok()?)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    lives(process).then_some(pidfd)
}

/// Whether a recorded process still runs.
pub(crate) fn lives(process: &HolderProcess) -> bool {
    i32::try_from(process.pid).is_ok_and(|pid| start_time(pid) == Some(process.start_ticks))
}

impl Engine {
    /// Watches a process until the reservation is over; its death is looked into once.
    pub(crate) fn watch(&self, id: &ReservationId, process: HolderProcess, pidfd: OwnedFd) {
        let begun = self.inner.holders.watched.begin(id, &process, identity(&pidfd));
        let Some(over) = begun else { return };
        let (weak, of) = (Arc::downgrade(&self.inner), id.clone());
        self.inner.holders.handle.spawn(async move {
            let waited = match ready(pidfd, Interest::READABLE) {
                Ok(pidfd) => tokio::select! {
                    () = over.cancelled() => return,
                    waited = pidfd.readable() => waited.map(drop),
                },
                Err(error) => Err(error),
            };
            if let Err(error) = waited {
                tracing::error!(pid = process.pid, %error, "a holder can't be watched");
                return;
            }
            let Some(inner) = weak.upgrade() else { return };
            Engine { inner }.died(of, process);
        });
        self.watched_in_vain(id);
    }

    /// What was over before the watch began ends it.
    pub(super) fn watched_in_vain(&self, id: &ReservationId) {
        let snapshot = self.tools().records.snapshot();
        let record = snapshot.state.reservation(id);
        if record.is_none_or(|record| record.state == ReservationState::Released) {
            self.inner.holders.watched.over(id);
        }
    }

    fn died(&self, id: ReservationId, mut process: HolderProcess) {
        self.inner.holders.watched.end(&id, &process);
        // It may have been put elsewhere since; a dead process shows it until its parent knows.
        let cgroup = i32::try_from(process.pid).map(kin::cgroup_of).unwrap_or_default();
        if lives(&process) && !cgroup.is_empty() {
            process.cgroup = cgroup;
        }
        tracing::info!(reservation = %id, pid = process.pid, "holder process ended");
        let snapshot = self.tools().records.snapshot();
        let name = format!("end of process {} of {id}", process.pid);
        let reservation = id.clone();
        self.beside(name, &snapshot, &reservation, move |engine| engine.ended(&id, &process));
    }

    /// A holder's process is dead: its registrations go, and its claims, unless somebody else
    /// has a device open.
    pub(crate) fn ended(&self, id: &ReservationId, process: &HolderProcess) {
        let tools = self.tools();
        memory::end_registrations_of(tools, id, process);
        let snapshot = tools.records.snapshot();
        let Some(record) = snapshot.state.reservation(id) else { return };
        if record.process.as_ref() != Some(process) || record.claims == 0 {
            return;
        }
        if record.pending.is_some() {
            // The work that is queued runs first, as it touches the same devices.
            self.ended_later(id, process, AGAIN);
            return;
        }
        let Ok(job) = Job::of(&snapshot, id) else { return };
        // First, so that what is looked for can't be opened meanwhile.
        let revoked = access::revoke(tools, &job);
        let next = match revoked.and_then(|()| self.heir(&job, record, process)) {
            Ok(next) => next,
            Err(refusal) => {
                // Claims end only when it is known that nobody has them.
                tracing::warn!(reservation = %id, why = refusal.message, "who has it open?");
                self.ended_later(id, process, AGAIN);
                return;
            }
        };
        if !self.is_still_with(&job, process) {
            return;
        }
        match next {
            // It can't be opened to be watched, and hasn't ended.
            Some((User::Named(same), _)) if same == *process && is_told(record) => {
                self.let_in_again(&job);
                self.watch_named(id, same);
            }
            Some((next, kinship)) => {
                tracing::warn!(reservation = %id, pid = next.pid(), ?kinship, "still open");
                self.told(next.follows(id, kinship));
                self.let_in_again(&job);
                self.watch_user(id, next);
            }
            None if job.delivery.holder_owns_domain() => {
                let gone = Command::HolderGone { reservation: id.clone() };
                if !self.handed_back(&job, process, gone) {
                    self.ended_later(id, process, LOOK);
                }
            }
            None => {
                if !self.claims_end(&job) {
                    self.drains_unseen(&job, process);
                    self.ended_later(id, process, LOOK);
                }
            }
        }
    }

    /// A dead holder's device is open, and in no process: it drains, as that holder's.
    fn drains_unseen(&self, job: &Job, dead: &HolderProcess) {
        let snapshot = self.snapshot();
        let record = snapshot.state.reservation(&job.reservation);
        let is_news = record.is_some_and(|record| record.state != ReservationState::Draining);
        if is_news && self.is_still_with(job, dead) {
            let (reservation, process) = (job.reservation.clone(), dead.clone());
            self.told(Command::HolderMoved { reservation, process });
        }
    }

    /// Watches a holder of which nothing more can be told now; where it is dead it is looked at
    /// until it can be.
    pub(crate) fn look_at(&self, id: &ReservationId, process: &HolderProcess) {
        let pid = i32::try_from(process.pid).ok();
        let found = pid.and_then(|pid| process_of(pid).ok()).filter(|(found, _)| found == process);
        match found {
            Some((process, pidfd)) => self.watch_user(id, User::Seen(process, pidfd)),
            None => self.ended_later(id, process, AGAIN),
        }
    }

    /// Looks at the end of a process once more, in a moment: at once it could be just as it is now,
    /// again and again.
    fn ended_later(&self, id: &ReservationId, process: &HolderProcess, pause: Duration) {
        let engine = Arc::downgrade(&self.inner);
        let (id, process) = (id.clone(), process.clone());
        self.inner.holders.handle.spawn(async move {
            tokio::time::sleep(pause).await;
            let Some(inner) = engine.upgrade() else { return };
            let engine = Engine { inner };
            let snapshot = engine.tools().records.snapshot();
            let (name, of) = (format!("end of process {} of {id}", process.pid), id.clone());
            engine.beside(name, &snapshot, &of, move |engine| engine.ended(&id, &process));
        });
    }

    /// A process other than ours that has a device of the job open, now that its holder is dead: one
    /// that came of the holder, where there is one.
    ///
    /// # Errors
    /// Who has it open can't be told.
    pub(crate) fn heir(
        &self,
        job: &Job,
        record: &Reservation,
        dead: &HolderProcess,
    ) -> Result<Option<(User, Kinship)>, Box<Refusal>> {
        let mut users: Vec<(ProcessUse, Kinship)> = self
            .tools()
            .users_of(job)?
            .into_iter()
            .map(|user| (kin::of(record, dead, &user), user))
            .map(|(kinship, user)| (user, kinship))
            .collect();
        users.sort_by_key(|(_, kinship)| *kinship != Kinship::Own);
        let seen = users.iter().find_map(|(user, kinship)| {
            let (process, pidfd) = process_of(user.pid).ok()?;
            Some((User::Seen(process, pidfd), *kinship))
        });
        Ok(seen.or_else(|| {
            let (user, kinship) = users.into_iter().next()?;
            let pid = u32::try_from(user.pid).unwrap_or_default();
            let started = HolderProcess::new(pid, user.start_time);
            let process = HolderProcess { name: user.name, ..started };
            Some((User::Named(process), kinship))
        }))
    }

    /// Watches a process that has a device of a dead holder open.
    pub(crate) fn watch_user(&self, id: &ReservationId, user: User) {
        self.watch_drain(id, user.process());
        match user {
            User::Seen(process, pidfd) => {
                self.watch(id, process, pidfd);
                self.watch_bind_on(id);
            }
            User::Named(process) => self.watch_named(id, process),
        }
    }

    /// Looks now and then at a process that can't be opened.
    pub(crate) fn watch_named(&self, id: &ReservationId, process: HolderProcess) {
        let Some(over) = self.inner.holders.watched.begin(id, &process, None) else { return };
        let (weak, of) = (Arc::downgrade(&self.inner), id.clone());
        self.inner.holders.handle.spawn(async move {
            tokio::select! {
                () = over.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let Some(inner) = weak.upgrade() else { return };
            Engine { inner }.died(of, process);
        });
        self.watched_in_vain(id);
    }

    /// Nobody has the devices any more: back to a hold. False while the kernel says that somebody
    /// has: a descriptor is on its way, or was in a process that came and went as it was looked for.
    fn claims_end(&self, job: &Job) -> bool {
        let tools = self.tools();
        memory::end_registrations(tools, &job.reservation);
        attach::close(tools, job);
        self.forget_context(job);
        if !self.are_closed(job) {
            tracing::warn!(reservation = %job.reservation, "still open, though nobody shows it");
            return false;
        }
        attach::hold_again(tools, NO_INTENT, job);
        self.told(Command::HolderGone { reservation: job.reservation.clone() });
        self.follow_up();
        tools.sweep();
        true
    }

    /// Whether the kernel has every device of the job closed.
    pub(crate) fn are_closed(&self, job: &Job) -> bool {
        proof::are_closed(self.tools(), job)
    }

    /// The dead holder may have left mappings, and duplicates with others: the context goes with
    /// it where nobody else is in it.
    fn forget_context(&self, job: &Job) {
        let gone = {
            let mut tables = self.tools().runtime.tables();
            let used = tables.devices.values().any(|live| live.context == job.context);
            if used {
                None
            } else {
                let groups: Vec<u32> = tables
                    .holds
                    .iter()
                    .filter(|(_, hold)| hold.context.as_ref() == Some(&job.context))
                    .map(|(group, _)| *group)
                    .collect();
                let holds: Vec<_> =
                    groups.iter().filter_map(|group| tables.holds.remove(group)).collect();
                Some((holds, tables.contexts.remove(&job.context)))
            }
        };
        if let Some((holds, context)) = gone {
            holds.into_iter().for_each(|hold| self.tools().close_hold(hold));
            drop(context);
        }
    }

    pub(super) fn told(&self, command: Command) {
        let record = || self.tools().records.command(command.clone(), "holder");
        if let Err(error) = self.insist("what became of a holder", record, || ()) {
            tracing::warn!(%error, "the ledger did not take what became of a holder");
        }
    }
}

/// Whether it is recorded who has the devices of a dead holder.
fn is_told(record: &Reservation) -> bool {
    record.state == ReservationState::Draining
}
