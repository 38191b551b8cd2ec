//! Takes over what the last daemon left in the store of file descriptors. What is of a live record
//! goes on; anything else is closed, and leaves the store.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use berth_dma::DmaPerms;
use berth_host::{BackendKind, DomainHandle, VfioError};
use berth_ownership::{ContextId, Delivery, Policy, Reservation, ReservationId};

use super::{
    attach,
    domain::{LiveDomain, Registration},
    engine::Engine,
    hand_over,
    holder::process_of,
    job::{Job, backend_kind},
    memory,
    runtime::{LiveContext, LiveDevice, LiveHold, lock},
    tools::Tools,
};
use crate::{
    fdstore::{
        DeviceNote, KeptFd, Note, NoteFile, context_name, context_of_note, device_name, hold_name,
        note_name,
    },
    model::Snapshot,
};

/// What the store had, by name.
type Store = BTreeMap<String, OwnedFd>;

/// Why a context isn't taken over.
#[derive(Debug, thiserror::Error)]
enum Left {
    #[error("no reservation holds it any more")]
    NoRecord,
    #[error("{0} is not in the store")]
    Missing(String),
    #[error("its note: {0}")]
    Note(#[from] io::Error),
    #[error(transparent)]
    Kernel(#[from] VfioError),
}

impl Engine {
    /// Takes over what was stored. To be called before anything else is opened.
    pub(crate) fn adopt(&self, kept: Vec<KeptFd>) {
        if kept.is_empty() {
            return;
        }
        let tools = self.tools();
        let snapshot = self.snapshot();
        let mut store: Store = kept.into_iter().map(|kept| (kept.name, kept.fd)).collect();
        let names: Vec<String> = store.keys().cloned().collect();
        let contexts: Vec<ContextId> =
            names.iter().filter_map(|name| context_of_note(name)).collect();
        for id in contexts {
            match adopt_context(tools, &snapshot, &id, &mut store) {
                Ok(()) => tracing::info!(context = %id, "taken over from the store"),
                Err(why) => tracing::warn!(context = %id, %why, "stored, and not taken over"),
            }
        }
        let used = tools.names_in_use();
        let gone: Vec<String> = names.into_iter().filter(|name| !used.contains(name)).collect();
        if !gone.is_empty() {
            tracing::warn!(names = gone.join(", "), "of no live record: closed");
            drop(store);
            tools.keeper.remove(&gone);
        }
        self.watch_registrations();
    }

    /// Whether all devices of a reservation are open here, and in a domain.
    pub(crate) fn has_all(&self, job: &Job) -> bool {
        let tables = self.tools().runtime.tables();
        job.devices().all(|address| {
            tables
                .devices
                .get(&address)
                .is_some_and(|live| live.reservation == job.reservation && live.domain.is_some())
        })
    }

    /// Closes what is open here of a reservation whose claims end, or that only half came back.
    pub(crate) fn let_go(&self, job: &Job) {
        let tools = self.tools();
        memory::end_registrations(tools, &job.reservation);
        attach::close(tools, job);
        hand_over::close_context(tools, job);
    }

    /// Puts the devices of a reservation into the domain of its record again: a replace was broken
    /// off, and the kernel doesn't tell how far it came.
    pub(crate) fn back_to_its_domain(&self, job: &Job) -> Result<(), VfioError> {
        let tools = self.tools();
        let context = tools.context(&job.context, job.backend)?;
        let domain = tools.domain(&context, &job.domain)?;
        for address in job.groups.iter().flat_map(|group| group.members.iter().copied()) {
            let Some(mut live) = tools.runtime.take_device(address) else { continue };
            let attached = live.device.attach(domain.handle);
            live.domain = Some(job.domain.clone());
            tools.runtime.put_device(address, live);
            attached?;
        }
        tools.runtime.learn_ranges(&job.context);
        tools.write_note(&context);
        Ok(())
    }

    /// Registrations end with their processes, also with those that ended meanwhile.
    fn watch_registrations(&self) {
        let contexts: Vec<Arc<LiveContext>> =
            self.tools().runtime.tables().contexts.values().cloned().collect();
        let mut all: Vec<(ReservationId, berth_ownership::HolderProcess)> = Vec::new();
        for domain in contexts.iter().flat_map(|context| context.domains()) {
            let known = lock(&domain.registrations);
            all.extend(known.iter().map(|it| (it.reservation.clone(), it.process.clone())));
        }
        for (id, process) in all {
            let found = i32::try_from(process.pid).ok().and_then(|pid| process_of(pid).ok());
            match found.filter(|(found, _)| *found == process) {
                Some((process, pidfd)) => self.watch(&id, process, pidfd),
                None => memory::end_registrations_of(self.tools(), &id, &process),
            }
        }
    }
}

impl Tools {
    /// The names under which something that is open here is stored.
    fn names_in_use(&self) -> std::collections::HashSet<String> {
        let tables = self.runtime.tables();
        let devices = tables.devices.values().filter_map(|live| live.kept.as_ref());
        let holds = tables.holds.values().filter_map(|live| live.kept.as_ref());
        let mut names: std::collections::HashSet<String> =
            devices.chain(holds).flat_map(|kept| kept.names().iter().cloned()).collect();
        for context in tables.contexts.values() {
            names.extend(lock(&context.kept).iter().flat_map(|kept| kept.names().to_vec()));
        }
        names
    }
}

fn take(store: &mut Store, name: &str) -> Result<OwnedFd, Left> {
    store.remove(name).ok_or_else(|| Left::Missing(name.to_owned()))
}

fn adopt_context(
    tools: &Tools,
    snapshot: &Snapshot,
    id: &ContextId,
    store: &mut Store,
) -> Result<(), Left> {
    let (file, note) = NoteFile::adopt(take(store, &note_name(id))?)?;
    let fd = take(store, &context_name(id))?;
    let state = &snapshot.state;
    let record = state.context(id).filter(|_| note.context == *id).ok_or(Left::NoRecord)?;
    let living: Vec<&Reservation> = record
        .reservations
        .iter()
        .filter_map(|id| state.reservation(id))
        .filter(|it| it.holds() && backend_kind(it.backend) == note.backend)
        .collect();
    if living.is_empty() {
        return Err(Left::NoRecord);
    }
    let context = tools.host.adopt_context(note.backend, fd)?;
    // On type1 a context lives in its groups, so they come first.
    let holds = match note.backend {
        BackendKind::Type1 => adopt_holds(tools, snapshot, (id, &*context), &living, store),
        BackendKind::Iommufd => Vec::new(),
    };
    let mut domains = HashMap::new();
    for (domain, ioas) in &note.domains {
        let handle = DomainHandle(*ioas);
        if state.domain(domain).is_none_or(|record| record.context != *id) {
            if let Err(error) = context.delete_domain(handle) {
                tracing::warn!(%domain, %error, "a domain without a record can't be deleted");
            }
            continue;
        }
        let live = adopt_domain(&*context, domain, handle, &note, &tools.runtime)?;
        domains.insert(domain.clone(), Arc::new(live));
    }
    let kept = tools.keeper.kept_before(vec![context_name(id), note_name(id)]);
    let live = Arc::new(LiveContext {
        id: id.clone(),
        backend: note.backend,
        domains: Mutex::new(domains),
        given_to: Mutex::new(note.given_to.clone()),
        kept: Mutex::new(Some(kept)),
        note: Mutex::new(Some(file)),
        context,
    });
    tools.runtime.tables().holds.extend(holds);
    for device in &note.devices {
        let record = living.iter().find(|it| it.id == device.reservation);
        match record.filter(|record| goes_on(record, device)) {
            Some(_) => adopt_device(tools, &live, device, store),
            None => tracing::warn!(device = %device.address, "open, and of no claim: closed"),
        }
    }
    tools.runtime.tables().contexts.insert(id.clone(), live);
    tools.runtime.learn_ranges(id);
    Ok(())
}

/// Whether a device that was open is still of a reservation that has it open.
fn goes_on(record: &Reservation, device: &DeviceNote) -> bool {
    let open = record.claims > 0 || record.pending.is_some() || record.policy == Policy::Group;
    let opens = matches!(record.delivery, Delivery::Held | Delivery::Bound);
    let address = device.address.to_string();
    open && opens && record.devices().any(|it| it.as_str() == address)
}

fn adopt_domain(
    context: &dyn berth_host::Context,
    id: &berth_ownership::DomainId,
    handle: DomainHandle,
    note: &Note,
    runtime: &super::runtime::Runtime,
) -> Result<LiveDomain, Left> {
    let space = context.address_space(handle)?;
    let mut registrations = Vec::new();
    for known in note.registrations.iter().filter(|known| known.domain == *id) {
        // What a device may do with it is the kernel's to know by now.
        let perms = DmaPerms { read: true, write: true };
        if let Err(error) = space.adopt(known.iova, known.length_bytes, perms) {
            tracing::error!(domain = %id, %error, "a registration isn't taken over");
            continue;
        }
        registrations.push(Registration {
            reservation: known.reservation.clone(),
            process: known.process.clone(),
            iova: known.iova,
            length_bytes: known.length_bytes,
            entry: runtime.entries.adopt(&known.reservation),
        });
    }
    // Whoever has the context's descriptor maps by himself.
    if note.given_to.is_none()
        && let Err(error) = space.unmap_unknown()
    {
        tracing::error!(domain = %id, %error, "what was half registered may still be mapped");
    }
    Ok(LiveDomain::new(handle, space, registrations, &runtime.latencies))
}

fn adopt_holds(
    tools: &Tools,
    snapshot: &Snapshot,
    (id, context): (&ContextId, &dyn berth_host::Context),
    living: &[&Reservation],
    store: &mut Store,
) -> Vec<(u32, LiveHold)> {
    let mut holds = Vec::new();
    for target in living.iter().flat_map(|record| &record.targets) {
        let Some(number) = snapshot.group_number(&target.group) else { continue };
        let names: Vec<String> = (0..)
            .map(|index| hold_name(number, index))
            .take_while(|name| store.contains_key(name))
            .collect();
        let fds: Vec<OwnedFd> = names.iter().filter_map(|name| store.remove(name)).collect();
        if fds.is_empty() {
            continue;
        }
        match tools.host.adopt_hold(number, Some(context), fds) {
            Ok(hold) => {
                let kept = Some(tools.keeper.kept_before(names));
                holds.push((number, LiveHold { context: Some(id.clone()), kept, hold }));
            }
            Err(error) => tracing::error!(group = %target.group, %error, "not taken over"),
        }
    }
    holds
}

fn adopt_device(tools: &Tools, context: &LiveContext, note: &DeviceNote, store: &mut Store) {
    let name = device_name(note.address);
    let Some(fd) = store.remove(&name) else {
        tracing::error!(device = %note.address, "its descriptor is not in the store");
        return;
    };
    let domain = note.domain.clone().filter(|id| context.domain(id).is_some());
    let handle = domain.as_ref().and_then(|id| context.domain(id)).map(|live| live.handle);
    match context.context.adopt_device(note.address, note.device_id, handle, fd) {
        Ok(device) => {
            let kept = Some(tools.keeper.kept_before(vec![name]));
            let (reservation, context) = (note.reservation.clone(), context.id.clone());
            let live = LiveDevice { reservation, context, domain, kept, device };
            tools.runtime.put_device(note.address, live);
        }
        Err(error) => tracing::error!(device = %note.address, %error, "not taken over"),
    }
}
