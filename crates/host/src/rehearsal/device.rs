//! What a write would make of a device, and what undoes it.

use std::sync::Mutex;

use rustix::io::Errno;

use super::Rehearsal;
use crate::{
    Act, ActOutcome, Attribute, DeviceFacts, DmaKind, Host as _, HostError, PciAddress, SysfsWrite,
    Undo,
    linux::{dma_kind, is_vfio},
    steps,
};

/// A device in a rehearsal.
pub(super) struct Imagined<'r> {
    rehearsal: &'r Rehearsal,
    /// As it would be by now.
    facts: Mutex<DeviceFacts>,
    address: PciAddress,
}

impl<'r> Imagined<'r> {
    pub(super) fn new(rehearsal: &'r Rehearsal, facts: DeviceFacts) -> Self {
        Self { rehearsal, address: facts.address, facts: Mutex::new(facts) }
    }

    fn with<T>(&self, of: impl FnOnce(&mut DeviceFacts) -> T) -> T {
        of(&mut self.facts.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl steps::Device for Imagined<'_> {
    fn address(&self) -> PciAddress {
        self.address
    }

    fn driver(&self) -> Option<String> {
        self.with(|facts| facts.driver.clone())
    }

    fn read(&self, attribute: &Attribute) -> Option<String> {
        self.with(|facts| steps::shown(facts, attribute))
    }

    fn write(&self, attribute: &Attribute, text: &str) -> Result<(), HostError> {
        let path = attribute.path(self.address);
        let (done, now) = self.with(|facts| (foresee(facts, attribute, text), facts.clone()));
        let undo = done.map_err(|errno| HostError::File {
            op: "write",
            path: path.clone(),
            errno: errno.raw_os_error(),
        })?;
        let mut noted = self.rehearsal.noted();
        noted.devices.insert(self.address, now);
        noted.writes.push(SysfsWrite { path, value: text.to_owned(), undo });
        Ok(())
    }

    fn registered(&self, driver: &str) -> Result<String, HostError> {
        self.rehearsal.registered(driver)
    }

    fn reset_method(&self) -> Option<String> {
        self.with(|facts| facts.reset_methods.first().cloned())
    }

    fn config(&self) -> Result<Vec<u8>, HostError> {
        let read = self.rehearsal.perform(&Act::ReadConfig { device: self.address })?;
        match read {
            ActOutcome::Config(bytes) => Ok(bytes),
            _ => Ok(Vec::new()),
        }
    }
}

/// What a write makes of the device, and what undoes it; the errno where sysfs shows already that the
/// kernel refuses it.
fn foresee(facts: &mut DeviceFacts, attribute: &Attribute, text: &str) -> Result<Undo, Errno> {
    let address = facts.address;
    let undone_by =
        |attribute: &Attribute, value: String| Undo::Write { path: attribute.path(address), value };
    let nothing = |why: String| Undo::None { why };
    Ok(match attribute {
        Attribute::Override => {
            let driver = text.trim_end();
            let now = (!driver.is_empty()).then(|| driver.to_owned());
            let before = std::mem::replace(&mut facts.driver_override, now);
            undone_by(attribute, before.unwrap_or_else(|| "\n".to_owned()))
        }
        Attribute::Unbind => {
            let driver = facts.driver.take().ok_or(Errno::NODEV)?;
            leave(facts);
            if matches(facts, &driver) {
                undone_by(&Attribute::Bind(driver), address.to_string())
            } else {
                let by = facts.driver_override.as_deref().unwrap_or("none");
                nothing(format!(
                    "{driver} takes {address} only while driver_override names it, which is {by}"
                ))
            }
        }
        Attribute::Probe => match facts.driver_override.clone() {
            Some(driver) if facts.driver.is_none() => {
                take(facts, driver);
                undone_by(&Attribute::Unbind, address.to_string())
            }
            _ => nothing("nothing comes of it".to_owned()),
        },
        Attribute::Bind(driver) => {
            if facts.driver.is_some() {
                return Err(Errno::BUSY);
            }
            if !matches(facts, driver) {
                return Err(Errno::NODEV);
            }
            take(facts, driver.clone());
            undone_by(&Attribute::Unbind, address.to_string())
        }
        Attribute::Vfs => undone_by(attribute, set_functions(facts, text)?.to_string()),
        Attribute::Autoprobe => {
            let before = std::mem::replace(&mut facts.sriov_autoprobe, text != "0");
            undone_by(attribute, u8::from(before).to_string())
        }
        Attribute::Reset => {
            let method = facts.reset_methods.first().ok_or(Errno::NOENT)?;
            nothing(format!("a reset of {address} ({method}): what it was set to is gone"))
        }
    })
}

/// How many virtual functions there were before there are as many as is written.
fn set_functions(facts: &mut DeviceFacts, text: &str) -> Result<usize, Errno> {
    let count = text.parse::<u16>().map_err(|_| Errno::INVAL)?;
    let before = facts.virtual_functions.len();
    if count > facts.sriov_total {
        return Err(Errno::RANGE);
    }
    if count > 0 && before > 0 {
        return Err(Errno::BUSY);
    }
    // How many there would be is known, and not which.
    facts.virtual_functions = vec![facts.address; count.into()];
    Ok(before)
}

/// Whether a driver takes a device by its name. Which ids a host driver knows isn't shown: it takes
/// the device. One of VFIO's does so only by the override.
fn matches(facts: &DeviceFacts, driver: &str) -> bool {
    match &facts.driver_override {
        Some(only) => only == driver,
        None => !is_vfio(driver),
    }
}

fn take(facts: &mut DeviceFacts, driver: String) {
    facts.dma = dma_kind(Some(&driver));
    facts.driver = Some(driver);
}

fn leave(facts: &mut DeviceFacts) {
    facts.dma = DmaKind::None;
    facts.cdev = None;
    facts.private_domain = None;
}
