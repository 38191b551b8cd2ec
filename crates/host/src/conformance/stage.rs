//! Runs operations on a host and keeps what they opened.

use std::os::fd::OwnedFd;

use berth_dma::{AddressSpace, DmaBuffer, DmaError, DmaPerms, IovaChoice};
use rustix::io::Errno;

use super::{
    Seats,
    op::{After, Bank, Entry, Op, Seat},
};
use crate::{
    Act, AttachedDevice, BackendKind, Context, DomainHandle, GroupHold, Host, HostError,
    PciAddress, VfioError,
};

/// Slots of each kind.
pub(super) const CONTEXTS: usize = 3;
pub(super) const DOMAINS: usize = 2;
pub(super) const HANDLES: usize = 4;
pub(super) const HOLDS: usize = 2;
pub(super) const CDEVS: usize = 2;
const PAGE: usize = 4096;
const VFIO: &str = "vfio-pci";

/// An open context and what belongs to it.
#[derive(Debug)]
struct Open {
    context: Box<dyn Context>,
    domains: [Option<DomainHandle>; DOMAINS],
    spaces: [Option<AddressSpace>; DOMAINS],
}

/// An open device.
#[derive(Debug)]
struct Handle {
    device: Box<dyn AttachedDevice>,
    context: usize,
    seat: Seat,
}

#[derive(Debug)]
struct Held {
    _hold: Box<dyn GroupHold>,
    context: Option<usize>,
}

/// A host, its seats, and what is open.
#[derive(Debug)]
pub(super) struct Stage<'h> {
    host: &'h dyn Host,
    seats: &'h Seats,
    groups: Vec<(Bank, u32)>,
    handles: [Option<Handle>; HANDLES],
    holds: [Option<Held>; HOLDS],
    contexts: [Option<Open>; CONTEXTS],
    cdevs: [Option<(Seat, OwnedFd)>; CDEVS],
    steps: usize,
}

/// An answer as it is written down.
type Answer = Result<String, String>;

impl<'h> Stage<'h> {
    /// Brings the seats to where a sequence starts.
    pub(super) fn set(host: &'h dyn Host, seats: &'h Seats) -> Result<Self, HostError> {
        let mut groups = Vec::new();
        let banks = [
            (Bank::Single, Some(seats.single)),
            (Bank::Pair, Some(seats.pair[0])),
            (Bank::Mixed, seats.mixed.as_ref().map(|mixed| mixed.device)),
        ];
        for (bank, device) in banks {
            let Some(device) = device else { continue };
            let number = host.device(device)?.group.ok_or(HostError::NoDevice(device))?;
            groups.push((bank, number));
        }
        let stage = Self {
            host,
            seats,
            groups,
            handles: Default::default(),
            holds: Default::default(),
            contexts: Default::default(),
            cdevs: Default::default(),
            steps: 0,
        };
        stage.restore()?;
        Ok(stage)
    }

    fn restore(&self) -> Result<(), HostError> {
        if let Some(mixed) = &self.seats.mixed {
            let driver = Some(mixed.driver.clone());
            self.host.perform(&Act::Restore {
                device: mixed.sibling,
                driver,
                driver_override: None,
            })?;
        }
        for seat in [Seat::Single, Seat::PairA, Seat::PairB, Seat::Mixed] {
            if let Some(device) = self.address(seat) {
                self.host.perform(&Act::Bind { device, driver: VFIO.to_owned() })?;
            }
        }
        Ok(())
    }

    fn address(&self, seat: Seat) -> Option<PciAddress> {
        match seat {
            Seat::Single => Some(self.seats.single),
            Seat::PairA => Some(self.seats.pair[0]),
            Seat::PairB => Some(self.seats.pair[1]),
            Seat::Mixed => self.seats.mixed.as_ref().map(|mixed| mixed.device),
            Seat::Sibling => self.seats.mixed.as_ref().map(|mixed| mixed.sibling),
        }
    }

    /// Whether a device is open: taking its driver away would wait for ever.
    pub(super) fn is_open(&self, seat: Seat) -> bool {
        self.handles.iter().flatten().any(|handle| handle.seat == seat)
            || self.cdevs.iter().flatten().any(|(open, _)| *open == seat)
    }

    /// Cdevs that are open.
    pub(super) fn open_cdevs(&self) -> Vec<usize> {
        filled(&self.cdevs)
    }

    /// Contexts that are open, with their back end.
    pub(super) fn open_contexts(&self) -> Vec<(usize, BackendKind)> {
        let open = self.contexts.iter().enumerate();
        open.filter_map(|(slot, open)| Some((slot, open.as_ref()?.context.backend()))).collect()
    }

    /// Handles that are open.
    pub(super) fn open_handles(&self) -> Vec<usize> {
        filled(&self.handles)
    }

    /// Holds that are taken.
    pub(super) fn held(&self) -> Vec<usize> {
        filled(&self.holds)
    }

    /// Domain slots of a context that have been used.
    pub(super) fn domains(&self, context: usize) -> Vec<usize> {
        let open = self.contexts.get(context).and_then(Option::as_ref);
        open.map(|open| filled(&open.domains)).unwrap_or_default()
    }

    /// The other device of an open device's group.
    pub(super) fn sibling_of(&self, handle: usize) -> Option<Seat> {
        match self.handles.get(handle)?.as_ref()?.seat {
            Seat::PairA => Some(Seat::PairB),
            Seat::PairB => Some(Seat::PairA),
            Seat::Single | Seat::Mixed | Seat::Sibling => None,
        }
    }

    /// The context of an open device.
    pub(super) fn context_of(&self, handle: usize) -> Option<usize> {
        self.handles.get(handle)?.as_ref().map(|handle| handle.context)
    }

    /// Runs an operation and looks at the host.
    pub(super) fn run(&mut self, op: Op) -> Entry {
        let got = self.perform(op).unwrap_or_else(|refused| refused);
        self.drop_orphaned_spaces();
        self.steps += 1;
        Entry { op, got, after: self.after(op) }
    }

    fn after(&self, op: Op) -> After {
        // A look takes longer than most operations: one group in turn, at the end all.
        let turn = self.steps % self.groups.len().max(1);
        let looked = self.groups.iter().enumerate();
        let looked = looked.filter(|(index, _)| op == Op::Finish || *index == turn);
        let free = looked.map(|(_, (_, number))| match self.host.probe_free(*number) {
            Ok(true) => "yes".to_owned(),
            Ok(false) => "no".to_owned(),
            Err(error) => vfio(error),
        });
        let seats = [Seat::Single, Seat::PairA, Seat::PairB, Seat::Mixed, Seat::Sibling];
        let seats: Vec<PciAddress> = seats.iter().filter_map(|seat| self.address(*seat)).collect();
        let in_use = seats.iter().map(|address| match self.host.in_use(*address) {
            Ok(true) => "yes".to_owned(),
            Ok(false) => "no".to_owned(),
            Err(error) => host(&error),
        });
        let (free, in_use) = (free.collect(), in_use.collect());
        let moved =
            matches!(op, Op::BindVfio { .. } | Op::BindHost | Op::Unbind { .. } | Op::Finish);
        if !moved {
            return After { free, in_use, drivers: Vec::new() };
        }
        let drivers = seats.iter().map(|address| match self.host.device(*address) {
            Ok(facts) => facts.driver.unwrap_or_default(),
            Err(error) => host(&error),
        });
        After { free, in_use, drivers: drivers.collect() }
    }

    fn perform(&mut self, op: Op) -> Answer {
        match op {
            Op::Hold { hold, bank, context } => self.hold(hold, bank, context),
            Op::Unhold { hold } => close(&mut self.holds, hold),
            Op::OpenContext { context, backend } => self.open_context(context, backend),
            Op::CloseContext { context } => {
                if let Some(Some(open)) = self.contexts.get_mut(context) {
                    open.spaces = Default::default();
                }
                close(&mut self.contexts, context)
            }
            Op::NewDomain { context, domain } => self.new_domain(context, domain),
            Op::DeleteDomain { context, domain } => self.delete_domain(context, domain),
            Op::OpenDevice { handle, context, seat } => self.open_device(handle, context, seat),
            Op::CloseDevice { handle } => close(&mut self.handles, handle),
            Op::OpenCdev { cdev, seat } => {
                let address = self.address(seat).ok_or_else(no_slot)?;
                let opened = self.host.open_cdev(address).map_err(vfio)?;
                put(&mut self.cdevs, cdev, (seat, opened))
            }
            Op::CloseCdev { cdev } => close(&mut self.cdevs, cdev),
            Op::BoundDevices { context } => {
                let bound = self.open(context)?.context.bound_devices(HANDLES).map_err(vfio)?;
                Ok(format!("ok {bound}"))
            }
            Op::Attach { handle, domain } => self.attach(handle, domain),
            Op::Detach { handle } => done(self.handle(handle)?.device.detach()),
            Op::Bound { handle } => {
                let bound = self.handle(handle)?.device.bound().map_err(vfio)?;
                Ok(format!("ok {bound}"))
            }
            Op::Map { context, domain, iova, pages } => self.map(context, domain, iova, pages),
            Op::Unmap { context, domain, iova, pages } => self.unmap(context, domain, iova, pages),
            Op::UnmapAll { context, domain } => {
                let (open, domain, _) = self.domain(context, domain)?;
                let bytes = open.context.unmap_all(domain).map_err(vfio)?;
                Ok(format!("ok {bytes}"))
            }
            Op::BindVfio { seat } => self.bind(seat, VFIO),
            Op::BindHost => {
                let driver = self.seats.mixed.as_ref().map(|mixed| mixed.driver.clone());
                self.bind(Seat::Sibling, &driver.ok_or_else(no_slot)?)
            }
            Op::Unbind { seat } => {
                let device = self.address(seat).ok_or_else(no_slot)?;
                acted(self.host.perform(&Act::Unbind { device }))
            }
            Op::Finish => self.finish(),
        }
    }

    fn hold(&mut self, slot: usize, bank: Bank, context: Option<usize>) -> Answer {
        let group = self.groups.iter().find(|(known, _)| *known == bank);
        let (_, number) = *group.ok_or_else(no_slot)?;
        let open = match context {
            None => None,
            Some(context) => Some(&*self.open(context)?.context),
        };
        let hold = self.host.hold(number, open).map_err(vfio)?;
        put(&mut self.holds, slot, Held { _hold: hold, context })
    }

    fn open_context(&mut self, slot: usize, backend: BackendKind) -> Answer {
        let context = self.host.open_context(backend).map_err(vfio)?;
        let open = Open { context, domains: Default::default(), spaces: Default::default() };
        put(&mut self.contexts, slot, open)
    }

    fn new_domain(&mut self, context: usize, slot: usize) -> Answer {
        let open = self.open_mut(context)?;
        let domain = open.context.new_domain().map_err(vfio)?;
        if let Some(space) = open.spaces.get_mut(slot) {
            *space = None;
        }
        put(&mut open.domains, slot, domain)
    }

    fn delete_domain(&mut self, context: usize, slot: usize) -> Answer {
        let (open, domain, _) = self.domain(context, slot)?;
        open.context.delete_domain(domain).map_err(vfio)?;
        // Ids are used again: no space may speak to another domain's later.
        for (known, space) in open.domains.iter().zip(&mut open.spaces) {
            if *known == Some(domain) {
                *space = None;
            }
        }
        Ok(ok())
    }

    fn open_device(&mut self, slot: usize, context: usize, seat: Seat) -> Answer {
        let address = self.address(seat).ok_or_else(no_slot)?;
        let device = self.open(context)?.context.open_device(address).map_err(vfio)?;
        put(&mut self.handles, slot, Handle { device, context, seat })
    }

    fn attach(&mut self, handle: usize, domain: usize) -> Answer {
        let context = self.context_of(handle).ok_or_else(no_slot)?;
        let (_, domain, _) = self.domain(context, domain)?;
        done(self.handle(handle)?.device.attach(domain))
    }

    fn map(&mut self, context: usize, domain: usize, iova: u64, pages: usize) -> Answer {
        let buffer = DmaBuffer::new(pages * PAGE).map_err(dma)?;
        let perms = DmaPerms { read: true, write: true };
        let (open, domain, slot) = self.domain(context, domain)?;
        let space = match open.spaces.get_mut(slot) {
            Some(Some(space)) => space,
            Some(empty) => empty.insert(open.context.address_space(domain).map_err(vfio)?),
            None => return Err(no_slot()),
        };
        space.map_buffer(IovaChoice::Fixed(iova), &buffer, perms).map_err(dma)?;
        Ok(ok())
    }

    fn unmap(&mut self, context: usize, domain: usize, iova: u64, pages: usize) -> Answer {
        let (open, _, slot) = self.domain(context, domain)?;
        let space = open.spaces.get(slot).and_then(Option::as_ref).ok_or_else(no_slot)?;
        let length = u64::try_from(pages * PAGE).unwrap_or(u64::MAX);
        space.unmap(iova, length).map_err(dma)?;
        Ok(ok())
    }

    fn bind(&self, seat: Seat, driver: &str) -> Answer {
        let device = self.address(seat).ok_or_else(no_slot)?;
        acted(self.host.perform(&Act::Bind { device, driver: driver.to_owned() }))
    }

    fn finish(&mut self) -> Answer {
        for open in self.contexts.iter_mut().flatten() {
            open.spaces = Default::default();
        }
        self.handles = Default::default();
        self.cdevs = Default::default();
        self.holds = Default::default();
        self.contexts = Default::default();
        self.restore().map_err(|error| host(&error))?;
        Ok(ok())
    }

    /// A container without groups has forgotten its mappings; so must their mirror.
    fn drop_orphaned_spaces(&mut self) {
        for (slot, open) in self.contexts.iter_mut().enumerate() {
            let Some(open) = open else { continue };
            let used = self.handles.iter().flatten().any(|handle| handle.context == slot)
                || self.holds.iter().flatten().any(|held| held.context == Some(slot));
            if open.context.backend() == BackendKind::Type1 && !used {
                open.spaces = Default::default();
            }
        }
    }

    fn open(&self, context: usize) -> Result<&Open, String> {
        self.contexts.get(context).and_then(Option::as_ref).ok_or_else(no_slot)
    }

    fn open_mut(&mut self, context: usize) -> Result<&mut Open, String> {
        self.contexts.get_mut(context).and_then(Option::as_mut).ok_or_else(no_slot)
    }

    fn domain(
        &mut self,
        context: usize,
        slot: usize,
    ) -> Result<(&mut Open, DomainHandle, usize), String> {
        let open = self.open_mut(context)?;
        let domain = open.domains.get(slot).copied().flatten().ok_or_else(no_slot)?;
        Ok((open, domain, slot))
    }

    fn handle(&mut self, handle: usize) -> Result<&mut Handle, String> {
        self.handles.get_mut(handle).and_then(Option::as_mut).ok_or_else(no_slot)
    }
}

fn filled<T>(slots: &[Option<T>]) -> Vec<usize> {
    slots.iter().enumerate().filter(|(_, slot)| slot.is_some()).map(|(index, _)| index).collect()
}

/// Fills a slot; what was in it is closed after that.
fn put<T>(slots: &mut [Option<T>], index: usize, value: T) -> Answer {
    *slots.get_mut(index).ok_or_else(no_slot)? = Some(value);
    Ok(ok())
}

fn close<T>(slots: &mut [Option<T>], index: usize) -> Answer {
    let closed = slots.get_mut(index).and_then(Option::take);
    closed.map(|_| ok()).ok_or_else(no_slot)
}

fn ok() -> String {
    "ok".to_owned()
}

fn no_slot() -> String {
    "no slot".to_owned()
}

fn done(answer: Result<(), VfioError>) -> Answer {
    answer.map(|()| ok()).map_err(vfio)
}

fn acted<T>(answer: Result<T, HostError>) -> Answer {
    answer.map(|_| ok()).map_err(|error| host(&error))
}

fn name(errno: Errno) -> String {
    match berth_uapi::errno_name(errno) {
        "errno" => format!("errno {}", errno.raw_os_error()),
        known => known.to_owned(),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "fits into map_err")]
fn vfio(error: VfioError) -> String {
    name(Errno::from_raw_os_error(error.errno))
}

#[expect(clippy::needless_pass_by_value, reason = "fits into map_err")]
fn dma(error: DmaError) -> String {
    name(error.errno())
}

fn host(error: &HostError) -> String {
    match error {
        HostError::DriverMismatch { .. } => "driver mismatch".to_owned(),
        HostError::Helper { .. } => "no answer".to_owned(),
        other => other
            .errno()
            .map_or_else(|| other.to_string(), |errno| name(Errno::from_raw_os_error(errno))),
    }
}
