//! What every piece of kernel work is done with: the host, the records, the open descriptors.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_host::{
    Act, ActOutcome, BackendKind, Context, Host, HostError, PciAddress, ProcessUse, VfioError,
};
use berth_ownership::{Command, ContextId, DomainId, Hold, Refusal, Reservation, ReservationId};
use rustix::io::Errno;

use super::{
    domain::LiveDomain,
    explain_errno,
    job::{GroupJob, Job},
    records::Records,
    runtime::{LiveContext, LiveHold, Runtime, lock},
};
use crate::{fdstore::Keeper, model::StepNote};

/// Tries while the kernel says that something is just being closed or reset.
const TRIES: u32 = 5;

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(40);

/// Work that follows from what happened on the host, as the end of a holder.
pub(crate) const NO_INTENT: u64 = 0;

/// The host, the records, the open descriptors.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) host: Arc<dyn Host>,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) runtime: Runtime,
    /// What follows from work whose outcome is not recorded yet.
    pub(crate) after: Mutex<Vec<Command>>,
    /// What is stored beyond this process.
    pub(crate) keeper: Arc<Keeper>,
}

impl Tools {
    /// Records a step before it is taken; [`NO_INTENT`] is work that no intent asked for.
    pub(crate) fn note(
        &self,
        intent: u64,
        step: &str,
        detail: impl ToString,
    ) -> Result<(), Box<Refusal>> {
        if intent == NO_INTENT {
            return Ok(());
        }
        let note = StepNote { step: step.to_owned(), detail: detail.to_string() };
        self.records.note(intent, note).map_err(|error| error.into_refusal())
    }

    /// Gives a command once the work at hand has its outcome: until then it would be refused, or
    /// make the outcome one.
    pub(crate) fn afterwards(&self, command: Command) {
        lock(&self.after).push(command);
    }

    /// The commands that waited for an outcome, taken out.
    pub(crate) fn waiting(&self) -> Vec<Command> {
        std::mem::take(&mut *lock(&self.after))
    }

    /// Does a privileged act.
    pub(crate) fn perform(
        &self,
        act: &Act,
        device: PciAddress,
    ) -> Result<ActOutcome, Box<Refusal>> {
        self.host.perform(act).map_err(|error| explain_errno::host(&error, device))
    }

    /// Explains a refusal of VFIO or iommufd.
    pub(crate) fn explain(&self, group: &GroupJob, error: &VfioError) -> Box<Refusal> {
        explain_errno::vfio(&*self.host, group, error)
    }

    /// The open context, opened where it isn't yet.
    pub(crate) fn context(
        &self,
        id: &ContextId,
        backend: BackendKind,
    ) -> Result<Arc<LiveContext>, VfioError> {
        if let Some(context) = self.runtime.context(id) {
            return Ok(context);
        }
        let context: Box<dyn Context> = self.host.open_context(backend)?;
        let live = Arc::new(LiveContext {
            id: id.clone(),
            backend,
            domains: Default::default(),
            given_to: Default::default(),
            kept: Default::default(),
            note: Default::default(),
            context,
        });
        self.runtime.tables().contexts.insert(id.clone(), Arc::clone(&live));
        Ok(live)
    }

    /// The domain in the kernel, made where it isn't yet. On type1 a device must be open.
    pub(crate) fn domain(
        &self,
        context: &LiveContext,
        id: &DomainId,
    ) -> Result<Arc<LiveDomain>, VfioError> {
        if let Some(domain) = context.domain(id) {
            return Ok(domain);
        }
        let handle = context.context.new_domain()?;
        let space = context.context.address_space(handle)?;
        let total = &self.runtime.latencies;
        let live = Arc::new(LiveDomain::new(handle, space, Vec::new(), total));
        lock(&context.domains).insert(id.clone(), Arc::clone(&live));
        Ok(live)
    }

    /// Takes the hold on a group where the kernel can have one and nothing of ours is there yet.
    pub(crate) fn settle_hold(&self, job: &Job, group: &GroupJob) -> Result<Hold, VfioError> {
        {
            let tables = self.runtime.tables();
            let open = group.members.iter().any(|member| tables.devices.contains_key(member));
            if tables.holds.contains_key(&group.number) || open {
                return Ok(Hold::Kernel);
            }
        }
        if self.is_with_another_holder(group) {
            return Ok(Hold::Kernel);
        }
        let context = match job.backend {
            BackendKind::Type1 => Some(self.context(&job.context, job.backend)?),
            BackendKind::Iommufd if self.host.kernel_hold() => None,
            BackendKind::Iommufd => return Ok(Hold::Ledger),
        };
        let hold = patiently(|| {
            self.host.hold(group.number, context.as_ref().map(|live| &*live.context))
        })?;
        let live = LiveHold { context: context.map(|_| job.context.clone()), kept: None, hold };
        self.runtime.tables().holds.insert(group.number, live);
        Ok(Hold::Kernel)
    }

    /// Whether another reservation's holder attaches devices of the group by itself, now or any
    /// moment: to open the group's node would refuse it that.
    pub(crate) fn is_with_another_holder(&self, group: &GroupJob) -> bool {
        let snapshot = self.records.snapshot();
        let mut others = group.others.iter().filter_map(|id| snapshot.state.reservation(id));
        others.any(Reservation::is_handed_out)
    }

    /// Asks the kernel whether anything is open beside our hold on a group. Where a device of ours
    /// is open in it there is no hold to ask.
    pub(crate) fn prove_hold(&self, group: u32) -> Result<(), VfioError> {
        // Taken out, so that no lock is held over the ioctls.
        let Some(live) = self.runtime.take_hold(group) else { return Ok(()) };
        let proven = live.hold.prove_unused();
        self.runtime.tables().holds.insert(group, live);
        proven
    }

    /// Gives a hold back.
    pub(crate) fn drop_hold(&self, group: u32) {
        if let Some(live) = self.runtime.take_hold(group) {
            tracing::debug!(group = live.hold.group(), "hold given back");
            self.close_hold(live);
        }
    }

    /// Processes other than this one that have one of the devices open, or may have.
    ///
    /// # Errors
    /// The host's: then nobody may be called gone.
    pub(crate) fn users(
        &self,
        devices: impl IntoIterator<Item = PciAddress>,
    ) -> Result<Vec<ProcessUse>, Box<Refusal>> {
        let mut users: Vec<ProcessUse> = Vec::new();
        for address in devices {
            let found = match self.host.users_of(address) {
                // The kernel removes a device only once nobody has it open.
                Err(HostError::NoDevice(_)) => Vec::new(),
                found => found.map_err(|error| explain_errno::host(&error, address))?,
            };
            let sure = found.iter().all(ProcessUse::is_certain);
            // Where the kernel has this device closed, what a guess has open is another one.
            let closed = !sure && matches!(self.host.in_use(address), Ok(false));
            for user in found.into_iter().filter(|user| !closed || user.is_certain()) {
                if !users.iter().any(|known| known.pid == user.pid) {
                    users.push(user);
                }
            }
        }
        Ok(users)
    }

    /// The same of a reservation's devices.
    ///
    /// # Errors
    /// As [`Self::users`].
    ///
    /// # Kernel
    /// Older ones don't tell which device a descriptor is; a process that holds another
    /// reservation has that one's.
    pub(crate) fn users_of(&self, job: &Job) -> Result<Vec<ProcessUse>, Box<Refusal>> {
        let mut users = self.users(job.devices())?;
        users.retain(|user| {
            user.is_certain() || self.is_holder(job, user) || !self.holds(user, |_| true)
        });
        Ok(users)
    }

    /// Whether the reservation was handed to the process.
    pub(crate) fn is_holder(&self, job: &Job, user: &ProcessUse) -> bool {
        self.holds(user, |id| *id == job.reservation)
    }

    fn holds(&self, user: &ProcessUse, of: impl Fn(&ReservationId) -> bool) -> bool {
        self.records.snapshot().state.reservations().filter(|record| of(&record.id)).any(|record| {
            let pid = record.process.as_ref().map(|process| process.pid);
            pid.and_then(|pid| i32::try_from(pid).ok()) == Some(user.pid)
        })
    }

    /// Closes contexts and domains that no record has any more, and nodes to whom none lets in.
    pub(crate) fn sweep(&self) {
        super::access::sweep(self);
        let snapshot = self.records.snapshot();
        let state = &snapshot.state;
        let mut gone = Vec::new();
        let mut domains = Vec::new();
        {
            let mut tables = self.runtime.tables();
            let used = |id: &ContextId, tables: &super::runtime::Tables| {
                tables.devices.values().any(|device| device.context == *id)
                    || tables.holds.values().any(|hold| hold.context.as_ref() == Some(id))
            };
            let ids: Vec<ContextId> = tables
                .contexts
                .keys()
                .filter(|id| state.context(id).is_none() && !used(id, &tables))
                .cloned()
                .collect();
            gone.extend(ids.iter().filter_map(|id| tables.contexts.remove(id)));
            for context in tables.contexts.values() {
                let mut known = lock(&context.domains);
                let ids: Vec<DomainId> =
                    known.keys().filter(|id| state.domain(id).is_none()).cloned().collect();
                for id in ids {
                    domains.extend(known.remove(&id).map(|live| (Arc::clone(context), live)));
                }
            }
        }
        for (context, domain) in domains {
            let handle = domain.handle;
            drop(domain);
            if let Err(error) = context.context.delete_domain(handle) {
                tracing::warn!(%error, "a domain without a record can't be deleted");
            }
        }
        drop(gone);
    }
}

/// Tries again for a moment while the kernel is still closing or resetting something: the last
/// close of a descriptor ends after the process that had it.
pub(crate) fn patiently<T>(
    mut attempt: impl FnMut() -> Result<T, VfioError>,
) -> Result<T, VfioError> {
    let mut tries = 1;
    loop {
        match attempt() {
            Err(error)
                if tries < TRIES
                    && [Errno::BUSY, Errno::AGAIN]
                        .iter()
                        .any(|e| e.raw_os_error() == error.errno) =>
            {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            answer => return answer,
        }
    }
}
