//! SR-IOV: virtual functions of a physical one are made and taken away.

use super::Decision;
use super::refuse::{blocker, claims_in, owner_info};
use crate::command::{Command, SriovTo};
use crate::event::Event;
use crate::ids::{DeviceId, Time};
use crate::model::Condition;
use crate::reason::{Errno, Reason};
use crate::record::{Device, Group, Reservation, Sriov, SriovBaseline, SriovOp, name_foreign};
use crate::refusal::{Blocker, Refusal};
use crate::state::State;

impl State {
    pub(super) fn decide_sriov(&self, cmd: &Command, now: &Time) -> Decision {
        match cmd {
            Command::SriovSet { device, to, from } => self.start_sriov(device, *to, *from, now),
            Command::SriovDone { device, now, functions } => {
                self.sriov_pending(device)?;
                let mut events = self.functions_gone(device, functions);
                events.push(Event::SriovChanged { device: device.clone(), now: *now });
                Ok(events)
            }
            Command::SriovFailed { device, why, undone, functions } => {
                self.sriov_pending(device)?;
                let mut events = match functions {
                    Some(functions) => self.functions_gone(device, functions),
                    None => Vec::new(),
                };
                let (device, why, undone) = (device.clone(), why.clone(), *undone);
                events.push(Event::SriovFailed { device, why, undone });
                Ok(events)
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Whether kernel work is under way on a device, or on the physical function that it is of.
    pub(crate) fn is_busy(&self, device: &Device) -> bool {
        device.is_worked_on() || self.physical_function(device).is_some_and(is_changed)
    }

    /// What is under way there, in words.
    pub(crate) fn busy_text(&self, device: &Device) -> String {
        if device.kernel_dma_op.is_some() {
            return "a host driver is being bound or unbound on purpose".to_owned();
        }
        let physical = self.physical_function(device).filter(|it| is_changed(it));
        let changed = physical.unwrap_or(device);
        match &changed.sriov_op {
            Some(op) => format!("SR-IOV of {} is being changed: {}", changed.facts.id, op.to),
            None => "nothing".to_owned(),
        }
    }

    fn physical_function(&self, device: &Device) -> Option<&Device> {
        device.facts.physical_function.as_ref().and_then(|id| self.device(id))
    }

    /// The virtual functions of a physical one that are on record.
    pub fn virtual_functions(&self, id: &DeviceId) -> impl Iterator<Item = &Device> {
        self.devices().filter(move |device| device.facts.physical_function.as_ref() == Some(id))
    }

    /// Whether nobody has virtual functions of a device whose host driver is to go: with that they
    /// go, or lose what makes them work.
    pub(super) fn functions_are_free(&self, id: &DeviceId, act: &str) -> Result<(), Box<Refusal>> {
        for function in self.virtual_functions(id) {
            let Some(group) = self.group(&function.group) else { continue };
            let Some(holder) = self.reservations_of(group).next() else { continue };
            let (virtual_id, claims) = (&function.facts.id, claims_in(holder, group));
            let text = format!("reserved by {} for {}", holder.id, holder.holder);
            let message = format!(
                "{act} {id}: its driver makes the virtual function {virtual_id} work, which is {text}"
            );
            return Err(Refusal::new(Reason::GroupOwned, id, message)
                .with_cell_errno(Errno::EBUSY)
                .with_owner(Some(owner_info(holder, claims)))
                .with_blockers(vec![blocker(function, text)])
                .with_resolve(vec![holder.release_command()]));
        }
        Ok(())
    }

    fn start_sriov(&self, id: &DeviceId, to: SriovTo, from: Sriov, now: &Time) -> Decision {
        let device = self.find_device(id)?;
        let known = device.sriov_baseline.as_ref().filter(|it| it.boot_id == now.boot_id);
        if self.is_busy(device) {
            let text = format!("set SR-IOV of {id}: {}", self.busy_text(device));
            return Err(Refusal::new(Reason::ReservationBusy, id, text));
        }
        let op = SriovOp { from, to: target(id, to, from, known)? };
        if op.to == from || matches!(to, SriovTo::Vfs(vfs) if vfs > 0 && vfs == from.vfs) {
            return Ok(Vec::new());
        }
        let what = format!("set SR-IOV of {id} to {} VFs", op.to.vfs);
        self.function_allows(device).map_err(|why| told(why, id, &what))?;
        if from.vfs > 0 {
            let what = format!("{what}: the {} that there are go first, and", from.vfs);
            for function in self.virtual_functions(id) {
                self.function_allows(function).map_err(|why| told(why, id, &what))?;
            }
        }
        let fresh = || SriovBaseline { was: from, boot_id: now.boot_id.clone() };
        let baseline = known.cloned().unwrap_or_else(fresh);
        Ok(vec![Event::SriovStarted { device: id.clone(), op, baseline }])
    }

    /// Whether nobody has a device, physical function or virtual one, that a change would hit.
    fn function_allows(&self, device: &Device) -> Result<(), Box<Refusal>> {
        let id = &device.facts.id;
        if self.is_busy(device) {
            let text = format!("{id}: {}", self.busy_text(device));
            return Err(Refusal::new(Reason::ReservationBusy, id, text));
        }
        if let Some(why) = device.marks.get(&Condition::Wedged) {
            let text = format!("{id} is wedged: {why}");
            return Err(Refusal::new(Reason::Wedged, id, text.clone())
                .with_blockers(vec![blocker(device, text)])
                .with_resolve(vec![format!("berth explain {id}")]));
        }
        let Some(group) = self.group(&device.group) else { return Ok(()) };
        if let Some(holder) = self.reservations_of(group).next() {
            return Err(held(device, group, holder));
        }
        if !group.foreign_pids.is_empty() {
            return Err(foreign(device, group));
        }
        let is_function = device.facts.physical_function.is_some();
        if is_function && !device.facts.uses.is_empty() {
            return Err(used(device));
        }
        Ok(())
    }

    /// Those on record that are not there any more, each with its group where it was alone in it.
    fn functions_gone(&self, id: &DeviceId, there: &[DeviceId]) -> Vec<Event> {
        let gone = self.virtual_functions(id).filter(|it| !there.contains(&it.facts.id));
        gone.flat_map(|function| {
            let alone = self.group(&function.group).is_some_and(|group| group.devices.len() == 1);
            let device = Event::DeviceGone { device: function.facts.id.clone() };
            let group = alone.then(|| Event::GroupGone { group: function.group.clone() });
            [Some(device), group].into_iter().flatten()
        })
        .collect()
    }

    fn sriov_pending(&self, id: &DeviceId) -> Result<(), Box<Refusal>> {
        if self.find_device(id)?.sriov_op.is_some() {
            return Ok(());
        }
        let text = format!("outcome of SR-IOV for {id}: nothing is under way");
        Err(Refusal::new(Reason::NoOperation, id, text))
    }
}

fn is_changed(device: &Device) -> bool {
    device.sriov_op.is_some()
}

/// What SR-IOV becomes. Host drivers are not offered what is made, and are again once nothing of
/// that is left.
fn target(
    id: &DeviceId,
    to: SriovTo,
    from: Sriov,
    baseline: Option<&SriovBaseline>,
) -> Result<Sriov, Box<Refusal>> {
    match (to, baseline) {
        (SriovTo::Vfs(0), _) => {
            let autoprobe = baseline.map_or(from.autoprobe, |before| before.was.autoprobe);
            Ok(Sriov { vfs: 0, autoprobe })
        }
        (SriovTo::Vfs(vfs), _) => Ok(Sriov { vfs, autoprobe: false }),
        (SriovTo::Baseline, Some(before)) => Ok(before.was),
        (SriovTo::Baseline, None) => {
            let text = format!("restore SR-IOV of {id}: it is as it was ({from})");
            Err(Refusal::new(Reason::NoOperation, id, text)
                .with_resolve(vec!["nothing: berth hasn't changed it since this boot".to_owned()]))
        }
    }
}

/// A refusal that says what was asked for of the physical function.
fn told(mut refusal: Box<Refusal>, physical: &DeviceId, what: &str) -> Box<Refusal> {
    refusal.object = physical.to_string();
    let joint = if what.ends_with("and") { "" } else { ":" };
    refusal.message = format!("{what}{joint} {}", refusal.message);
    refusal
}

fn held(device: &Device, group: &Group, holder: &Reservation) -> Box<Refusal> {
    let id = &device.facts.id;
    let claims = claims_in(holder, group);
    let have = match (&holder.process, claims) {
        (_, 0) => "reserved".to_owned(),
        (Some(process), _) => format!("with {process}"),
        (None, _) => "attached".to_owned(),
    };
    let text = format!("{have} by {} for {}", holder.id, holder.holder);
    Refusal::new(Reason::GroupOwned, id, format!("{id} is {text} ({})", holder.state))
        .with_cell_errno(Errno::EBUSY)
        .with_owner(Some(owner_info(holder, claims)))
        .with_blockers(vec![blocker(device, text)])
        .with_resolve(vec![holder.release_command()])
}

fn foreign(device: &Device, group: &Group) -> Box<Refusal> {
    let id = &device.facts.id;
    let processes = name_foreign(&group.foreign_pids, &group.foreign);
    let named = processes.join(", ");
    let text = format!("{named} has {id} open, unknown to berthd");
    let found = Blocker { processes, ..blocker(device, text.clone()) };
    Refusal::new(Reason::ForeignOwner, id, text)
        .with_cell_errno(Errno::EBUSY)
        .with_blockers(vec![found])
        .with_resolve(vec![format!("end {named}")])
}

fn used(device: &Device) -> Box<Refusal> {
    let id = &device.facts.id;
    let uses: Vec<String> =
        device.facts.uses.iter().map(|used| format!("{} {}", used.kind, used.what)).collect();
    let uses = uses.join(", ");
    Refusal::new(Reason::HostUsesDevice, id, format!("the host uses {id} ({uses})"))
        .with_blockers(vec![blocker(device, uses.clone())])
        .with_resolve(vec![format!("end the use of {id}: {uses}")])
}
