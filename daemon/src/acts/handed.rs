//! Holders that attach by themselves: what they get, when they have bound, what is theirs no more.

use std::{os::fd::OwnedFd, time::Duration};

use berth_handover::asynchronous::ready;
use berth_host::{Node, PciAddress, VfioError};
use berth_ownership::{
    Command, Delivery, HolderProcess, Reason, Refusal, Reservation, ReservationId, ReservationState,
};
use rustix::io::Errno;
use tokio::io::Interest;

use super::{
    access, attach,
    engine::Engine,
    fetch::{HandOver, Handed, not_busy, not_with_us},
    hand_over,
    holder::LOOK,
    job::Job,
    vf_token,
};
use crate::model::{ApiError, Snapshot};

/// How long descriptors may be on their way from who fetched them to the holder that it named, once
/// the former is gone.
const ON_THE_WAY: Duration = Duration::from_secs(5);

impl Engine {
    /// Opens the groups of a reservation to its holder, where they aren't yet, and gives what the
    /// holder needs.
    pub(super) fn hand_out(
        &self,
        snapshot: &Snapshot,
        record: &Reservation,
        command: Command,
        process: &HolderProcess,
        pidfd: OwnedFd,
    ) -> Result<HandOver, ApiError> {
        let id = &record.id;
        // Before the record is asked: what a release finds in its way from now on is this.
        let sending = self.tools().runtime.send(id);
        // What can't be given of claims that stand doesn't make another process their holder.
        let ready = match record.claims > 0 {
            true => Some(self.outgoing(snapshot, id, false)?),
            false => None,
        };
        let began = self.tools().records.carry_out(command, "fetch")?;
        // Watched first: a holder that dies right after the record must be noticed.
        self.watch(id, process.clone(), pidfd);
        self.watch_bind(id);
        let items = match ready {
            Some(items) if !began && record.delivery == Delivery::Unbound => Ok(items),
            // Nodes once more: who was the holder until now may have been shut out meanwhile.
            Some(_) | None => self.outgoing(&self.snapshot(), id, began),
        };
        match items {
            Ok(items) => Ok(HandOver { items, sending, began }),
            Err(error) => {
                drop(sending);
                if began {
                    self.not_received(id, process);
                }
                Err(error)
            }
        }
    }

    /// Whether a reservation's nodes are its user's to open, as long as its holder lives.
    pub(crate) fn lets_in(&self, record: &Reservation) -> bool {
        access::lets_in(record)
    }

    /// Lets the holder of a reservation into its nodes, where it was before.
    pub(crate) fn let_in(&self, job: &Job) -> Result<(), Box<Refusal>> {
        access::grant(self.tools(), job)
    }

    /// The holder of a reservation is let into its nodes no more.
    pub(crate) fn shut_out(&self, job: &Job) {
        if let Err(refusal) = access::revoke(self.tools(), job) {
            tracing::error!(reservation = %job.reservation, why = refusal.message, "access stays");
        }
    }

    /// Of the last daemon's hand-overs, who was let into which nodes. What stands is kept; what
    /// doesn't is taken back, as the last daemon may have died before it did.
    pub(crate) fn settle_who_was_let_in(&self, snapshot: &Snapshot) {
        let nodes = |record: &&Reservation| {
            record.delivery == Delivery::Node && record.state != ReservationState::Released
        };
        for record in snapshot.state.reservations().filter(nodes) {
            if let Ok(job) = Job::of(snapshot, &record.id) {
                access::remember(self.tools(), &job);
            }
        }
        access::sweep(self.tools());
    }

    /// The descriptors that an unbound hand-over gives now.
    ///
    /// # Errors
    /// The reservation isn't handed over; the kernel's.
    pub fn handed_fds(&self, id: &ReservationId) -> Result<Vec<OwnedFd>, ApiError> {
        let items = self.outgoing(&self.snapshot(), id, true)?;
        let fd = |item| match item {
            Handed::Device { fd, .. } | Handed::Cdev { fd, .. } | Handed::Context { fd, .. } => {
                Some(fd)
            }
            Handed::Node { .. } | Handed::VfToken { .. } => None,
        };
        Ok(items.into_iter().filter_map(fd).collect())
    }

    fn outgoing(
        &self,
        snapshot: &Snapshot,
        id: &ReservationId,
        began: bool,
    ) -> Result<Vec<Handed>, ApiError> {
        let Some(record) = snapshot.state.reservation(id) else {
            return Err(ApiError::not_found(id, format!("there is no reservation {id}")));
        };
        check_handed(record)?;
        let job = Job::of(snapshot, id)?;
        let mut items = match job.delivery {
            Delivery::Node => self.nodes(&job, record, began)?,
            Delivery::Unbound => self.cdevs(&job, record)?,
            Delivery::Held | Delivery::Bound => return Ok(Vec::new()),
        };
        let tokens = vf_token::to_show(self.tools(), &job)?;
        let shown = |(address, token)| Handed::VfToken { address, token };
        items.extend(tokens.into_iter().map(shown));
        Ok(items)
    }

    /// The paths of the nodes, which the holder's user may open.
    fn nodes(&self, job: &Job, record: &Reservation, began: bool) -> Result<Vec<Handed>, ApiError> {
        let tools = self.tools();
        if !began && access::lets_in(record) {
            // Somebody may have changed the lists since.
            access::grant(tools, job)?;
        }
        let path = |node| match tools.host.node(node) {
            Ok(path) => Ok(Handed::Node { node, path, devices: devices_in(job, node) }),
            Err(error) => {
                let text = format!("{node} can't be found: {error}");
                let refusal = Refusal::new(Reason::KernelRefused, &job.reservation, text);
                Err(ApiError::Refused(match error.errno() {
                    Some(errno) => refusal.with_errno(errno),
                    None => refusal,
                }))
            }
        };
        access::nodes_of(job).into_iter().map(path).collect()
    }

    /// Fresh cdevs, each good for one bind, and the context that is kept to see it.
    fn cdevs(&self, job: &Job, record: &Reservation) -> Result<Vec<Handed>, ApiError> {
        let tools = self.tools();
        let failed = |error: VfioError| {
            let refusal = Refusal::new(Reason::KernelRefused, &job.reservation, error.to_string());
            ApiError::Refused(refusal.with_errno(error.errno))
        };
        let Some(context) = tools.runtime.context(&job.context) else {
            return Err(not_with_us(record));
        };
        let mut handed = Vec::new();
        for address in job.devices() {
            let fd = tools.host.open_cdev(address).map_err(failed)?;
            handed.push(Handed::Cdev { address, fd });
        }
        let fd = context.context.fd().map_err(failed)?;
        handed.push(Handed::Context { backend: job.backend, ioas: None, fd });
        Ok(handed)
    }

    /// Who fetched for another process is watched too, until that has what was fetched.
    pub(crate) fn watch_fetcher(
        &self,
        id: &ReservationId,
        process: &HolderProcess,
        pidfd: OwnedFd,
    ) {
        let over = self.inner.holders.watched.until(id);
        self.watched_in_vain(id);
        let weak = std::sync::Arc::downgrade(&self.inner);
        let (id, process) = (id.clone(), process.clone());
        self.inner.holders.handle.spawn(async move {
            let Ok(pidfd) = ready(pidfd, Interest::READABLE) else { return };
            let ended = async {
                let ended = pidfd.readable().await;
                tokio::time::sleep(ON_THE_WAY).await;
                ended.is_ok()
            };
            let ended = tokio::select! {
                () = over.cancelled() => false,
                ended = ended => ended,
            };
            if !ended {
                return;
            }
            if let Some(inner) = weak.upgrade() {
                Engine { inner }.not_received(&id, &process);
            }
        });
    }

    /// Nothing of a hand-over may have reached its holder: then the claims end.
    pub(crate) fn not_received(&self, id: &ReservationId, process: &HolderProcess) {
        let (snapshot, of) = (self.snapshot(), id.clone());
        let (id, process) = (id.clone(), process.clone());
        let name = format!("hand-over of {id} that was not received");
        self.beside(name, &snapshot, &of, move |engine| engine.take_back(&id, &process));
    }

    fn take_back(&self, id: &ReservationId, process: &HolderProcess) {
        let tools = self.tools();
        let snapshot = self.snapshot();
        let stands = snapshot.state.reservation(id).is_some_and(|record| {
            record.state == ReservationState::Handed && record.process.as_ref() == Some(process)
        });
        let Some(job) = stands.then(|| Job::of(&snapshot, id).ok()).flatten() else { return };
        let revoked = access::revoke(tools, &job);
        match revoked.and_then(|()| tools.users_of(&job)) {
            Ok(users) if users.is_empty() => {
                tracing::warn!(reservation = %id, pid = process.pid, "nothing reached the holder");
                let undone = Command::HandOverUndone { reservation: id.clone() };
                if !self.handed_back(&job, process, undone) {
                    self.not_received_later(id, process);
                }
            }
            Ok(_) => {
                if job.delivery == Delivery::Node
                    && let Err(refusal) = access::grant(tools, &job)
                {
                    tracing::error!(reservation = %id, why = refusal.message, "no access");
                }
            }
            Err(refusal) => {
                tracing::warn!(reservation = %id, why = refusal.message, "who has it open?");
                self.not_received_later(id, process);
            }
        }
    }

    fn not_received_later(&self, id: &ReservationId, process: &HolderProcess) {
        let weak = std::sync::Arc::downgrade(&self.inner);
        let (id, process) = (id.clone(), process.clone());
        self.inner.holders.handle.spawn(async move {
            tokio::time::sleep(LOOK).await;
            if let Some(inner) = weak.upgrade() {
                Engine { inner }.not_received(&id, &process);
            }
        });
    }

    /// Whether a process is still the holder. Where another one fetched meanwhile, that is let in.
    pub(super) fn is_still_with(&self, job: &Job, process: &HolderProcess) -> bool {
        let snapshot = self.snapshot();
        let record = snapshot.state.reservation(&job.reservation);
        let still = record.is_some_and(|record| record.process.as_ref() == Some(process));
        if !still {
            self.let_in_again(job);
        }
        still
    }

    /// Lets the holder of a reservation into its nodes where the record says that it is.
    pub(super) fn let_in_again(&self, job: &Job) {
        let snapshot = self.snapshot();
        let record = snapshot.state.reservation(&job.reservation);
        if record.is_some_and(access::lets_in)
            && let Err(refusal) = access::grant(self.tools(), job)
        {
            tracing::error!(reservation = %job.reservation, why = refusal.message, "no access");
        }
    }

    /// No process has what was handed over any more: back to a hold, as the command tells. False
    /// while the kernel says that something is open all the same, or another process is the holder
    /// by now; then nothing is told.
    pub(super) fn handed_back(&self, job: &Job, process: &HolderProcess, told: Command) -> bool {
        let tools = self.tools();
        let open = |device| tools.host.in_use(device).unwrap_or(true);
        let there = job.devices().filter(|device| tools.host.device(*device).is_ok());
        if tools.runtime.is_sending(&job.reservation) || there.into_iter().any(open) {
            return false;
        }
        for group in &job.groups {
            let Err(error) = tools.settle_hold(job, group) else { continue };
            if error.errno == Errno::BUSY.raw_os_error() {
                tracing::warn!(group = %group.id, %error, "still open, though nobody shows it");
                hand_over::drop_holds(tools, job);
                return false;
            }
            let why = tools.explain(group, &error).message;
            attach::lost(tools, job, group, &why);
        }
        if tools.runtime.is_sending(&job.reservation) || !self.is_still_with(job, process) {
            hand_over::drop_holds(tools, job);
            return false;
        }
        hand_over::close_context(tools, job);
        self.told(told);
        self.follow_up();
        tools.sweep();
        true
    }
}

/// What the reservation claims of the group whose node this is.
fn devices_in(job: &Job, node: Node) -> Vec<PciAddress> {
    let of = job.groups.iter().filter(|group| node == Node::Group(group.number));
    of.flat_map(|group| group.devices.iter().copied()).collect()
}

/// # Errors
/// `RESERVATION_BUSY`, `HOLD_LOST`, `NOT_ATTACHED`: what was begun came to nothing.
fn check_handed(record: &Reservation) -> Result<(), ApiError> {
    let id = &record.id;
    not_busy(record)?;
    if record.is_handed_out() {
        return Ok(());
    }
    let reason = match record.state {
        ReservationState::Lost => Reason::HoldLost,
        _ => Reason::NotAttached,
    };
    let text = format!("{id} is {}, so there is nothing to hand over", record.state);
    let refusal = Refusal::new(reason, id, text);
    Err(ApiError::Refused(refusal.with_resolve(vec![format!("berth reservation show {id}")])))
}
