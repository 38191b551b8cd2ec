//! What is open goes into the store of file descriptors before it is told to be done, and leaves it
//! before it is closed.

use std::{
    io,
    os::fd::OwnedFd,
    sync::Arc,
    time::{Duration, Instant},
};

use berth_host::{PciAddress, VfioError};
use berth_ownership::ContextId;
use rustix::io::Errno;

use super::{
    job::Job,
    runtime::{LiveContext, LiveDevice, LiveHold, lock},
    tools::Tools,
};
use crate::fdstore::{
    DeviceNote, Kept, Note, NoteFile, RegistrationNote, context_name, device_name, hold_name,
    note_name,
};

/// How long the store's owner may take to close what left the store.
const CLOSING: Duration = Duration::from_secs(5);

/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);

impl Tools {
    /// Stores what a reservation needs to go on after this process: its context with the note of it,
    /// its devices, and on type1 its groups. What can't be stored ends with this process.
    pub(crate) fn keep(&self, job: &Job) {
        let context = self.runtime.context(&job.context).filter(|_| self.keeper.is_there());
        let Some(context) = context else { return };
        let kept = self
            .keep_context(&context)
            .and_then(|()| self.keep_holds(job).map_err(io::Error::other))
            .and_then(|()| self.keep_devices(job).map_err(io::Error::other));
        if let Err(error) = kept {
            tracing::error!(reservation = %job.reservation, %error, "it ends with this process");
        }
        self.write_note(&context);
        self.keeper.settle();
    }

    fn keep_context(&self, context: &LiveContext) -> io::Result<()> {
        if lock(&context.kept).is_some() {
            return Ok(());
        }
        let note = NoteFile::create()?;
        let fd = context.context.fd().map_err(io::Error::other)?;
        let fds = vec![(context_name(&context.id), fd), (note_name(&context.id), note.fd()?)];
        *lock(&context.note) = Some(note);
        *lock(&context.kept) = self.keeper.keep(fds);
        Ok(())
    }

    fn keep_holds(&self, job: &Job) -> Result<(), VfioError> {
        for group in &job.groups {
            let fds = match self.runtime.tables().holds.get(&group.number) {
                Some(live) if live.kept.is_none() && live.context.is_some() => live.hold.fds()?,
                Some(_) | None => continue,
            };
            let named = fds.into_iter().enumerate();
            let kept = self.keep_named(named.map(|(at, fd)| (hold_name(group.number, at), fd)));
            if let Some(live) = self.runtime.tables().holds.get_mut(&group.number) {
                live.kept = kept;
            }
        }
        Ok(())
    }

    fn keep_devices(&self, job: &Job) -> Result<(), VfioError> {
        for address in job.devices() {
            let fd = match self.runtime.tables().devices.get(&address) {
                Some(live) if live.kept.is_none() => live.device.fd()?,
                Some(_) | None => continue,
            };
            let kept = self.keep_named([(device_name(address), fd)]);
            if let Some(live) = self.runtime.tables().devices.get_mut(&address) {
                live.kept = kept;
            }
        }
        Ok(())
    }

    fn keep_named(&self, fds: impl IntoIterator<Item = (String, OwnedFd)>) -> Option<Kept> {
        self.keeper.keep(fds.into_iter().collect())
    }

    /// Notes anew what is in a context, where it is stored.
    pub(crate) fn write_note(&self, context: &LiveContext) {
        // Held over the look, so that the last to write saw the most.
        let mut file = lock(&context.note);
        let Some(file) = file.as_mut() else { return };
        if let Err(error) = file.write(&self.note_of(context)) {
            tracing::error!(context = %context.id, %error, "what is in it is not noted");
        }
    }

    /// The same of a context by its id.
    pub(crate) fn note_context(&self, id: &ContextId) {
        if let Some(context) = self.runtime.context(id) {
            self.write_note(&context);
        }
    }

    fn note_of(&self, context: &LiveContext) -> Note {
        let mut note = Note::new(context.id.clone(), context.backend);
        note.given_to.clone_from(&lock(&context.given_to));
        {
            let tables = self.runtime.tables();
            let own = tables.devices.iter().filter(|(_, live)| live.context == context.id);
            note.devices.extend(own.map(|(address, live)| DeviceNote {
                address: *address,
                reservation: live.reservation.clone(),
                device_id: live.device.device_id(),
                domain: live.domain.clone(),
            }));
        }
        let domains: Vec<_> = lock(&context.domains)
            .iter()
            .map(|(id, live)| (id.clone(), Arc::clone(live)))
            .collect();
        for (id, live) in domains {
            note.domains.push((id.clone(), live.handle.0));
            let registrations = lock(&live.registrations);
            note.registrations.extend(registrations.iter().map(|known| RegistrationNote {
                domain: id.clone(),
                reservation: known.reservation.clone(),
                process: known.process.clone(),
                iova: known.iova,
                length_bytes: known.length_bytes,
            }));
        }
        note
    }

    /// Closes a device, and waits until the store has closed it, too: its last close ends its DMA.
    pub(crate) fn close_device(&self, live: LiveDevice) {
        let (address, kept) = (live.device.address(), live.kept.is_some());
        drop(live);
        if kept {
            self.wait_closed(&address, |address: &PciAddress| {
                self.host.in_use(*address).unwrap_or(false)
            });
        }
    }

    /// Gives a hold back, with the same wait.
    pub(crate) fn close_hold(&self, live: LiveHold) {
        let (group, kept) = (live.hold.group(), live.kept.is_some());
        drop(live);
        if kept {
            let busy = |error: VfioError| error.errno == Errno::BUSY.raw_os_error();
            self.wait_closed(&group, |group| match self.host.probe_free(*group) {
                Ok(free) => !free,
                Err(error) => busy(error),
            });
        }
    }

    fn wait_closed<T: std::fmt::Debug>(&self, what: &T, is_open: impl Fn(&T) -> bool) {
        let deadline = Instant::now() + CLOSING;
        while is_open(what) {
            if Instant::now() >= deadline {
                tracing::warn!(?what, "it is still open elsewhere");
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}
