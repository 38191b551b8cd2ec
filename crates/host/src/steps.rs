//! What the acts write to sysfs, write by write: the same on a real machine, on a simulated one and
//! in a rehearsal, which differ in what a write does and in who answers a read.
//!
//! The `driver` link is read again after every change of drivers: the kernel answers some writes with
//! success although nothing, or something else, was bound.

use rustix::io::Errno;

use crate::{
    Act, ActOutcome, Attribute, DeviceFacts, HostError, PciAddress, ResetOutcome,
    api::sriov_writes,
    linux::{file_error, is_driver_name},
};

/// A device whose attributes are read and written.
pub(crate) trait Device {
    /// Its address.
    fn address(&self) -> PciAddress;

    /// The driver that is bound now.
    fn driver(&self) -> Option<String>;

    /// What an attribute reads, without its newline; `None` where it can't be read.
    fn read(&self, attribute: &Attribute) -> Option<String>;

    /// Writes an attribute in one write.
    ///
    /// # Errors
    /// The kernel's errno, with the path.
    fn write(&self, attribute: &Attribute, text: &str) -> Result<(), HostError>;

    /// The name under which a driver is registered.
    ///
    /// # Errors
    /// ENOENT: it isn't.
    fn registered(&self, driver: &str) -> Result<String, HostError>;

    /// The method of its reset that the kernel tries first.
    fn reset_method(&self) -> Option<String>;

    /// Its configuration space, as much of it as there is.
    ///
    /// # Errors
    /// The kernel's errno, with the path.
    fn config(&self) -> Result<Vec<u8>, HostError>;
}

/// What an attribute reads where a device is as these facts say.
pub(crate) fn shown(facts: &DeviceFacts, attribute: &Attribute) -> Option<String> {
    match attribute {
        Attribute::Override => facts.driver_override.clone(),
        Attribute::Vfs | Attribute::Autoprobe if facts.sriov_total == 0 => None,
        Attribute::Vfs => Some(facts.virtual_functions.len().to_string()),
        Attribute::Autoprobe => Some(u8::from(facts.sriov_autoprobe).to_string()),
        Attribute::Unbind | Attribute::Probe | Attribute::Bind(_) | Attribute::Reset => None,
    }
}

/// Does an act that writes attributes; all others come to nothing here.
///
/// # Errors
/// The kernel's errno with the file that gave it; what was written before stays.
pub(crate) fn perform(device: &impl Device, act: &Act) -> Result<ActOutcome, HostError> {
    match act {
        Act::Bind { driver, .. } => bind(device, driver).map(|it| ActOutcome::Driver(Some(it))),
        Act::Unbind { .. } => unbind(device).map(|()| ActOutcome::Driver(None)),
        Act::Override { driver, .. } => {
            write_override(device, driver.as_deref()).map(|()| ActOutcome::Done)
        }
        Act::Restore { driver, driver_override, .. } => {
            restore(device, driver.as_deref(), driver_override.as_deref()).map(ActOutcome::Driver)
        }
        Act::Sriov { count, autoprobe, .. } => {
            sriov(device, *count, *autoprobe).map(|()| ActOutcome::Done)
        }
        Act::Reset { .. } => reset(device).map(ActOutcome::Reset),
        Act::ReadConfig { .. }
        | Act::WhoHolds { .. }
        | Act::Prlimit { .. }
        | Act::Kill { .. }
        | Act::OpenIommu
        | Act::Access { .. } => Ok(ActOutcome::Done),
    }
}

/// Puts a device on a driver, by override and probe; what was bound before is unbound. The
/// override stays, also after a failure.
fn bind(device: &impl Device, driver: &str) -> Result<String, HostError> {
    let driver = device.registered(checked(driver)?)?;
    device.write(&Attribute::Override, &driver)?;
    match device.driver() {
        Some(bound) if bound == driver => return Ok(driver),
        Some(_) => detach(device)?,
        None => {}
    }
    let address = device.address().to_string();
    device.write(&Attribute::Probe, &address).or_else(|error| {
        // Every failure of a probe is EINVAL here; binding by name answers with the real one.
        if error.errno() == Some(Errno::INVAL.raw_os_error()) { Ok(()) } else { Err(error) }
    })?;
    if device.driver().is_none() {
        device.write(&Attribute::Bind(driver.clone()), &address)?;
    }
    expect(device, Some(&driver))?;
    Ok(driver)
}

/// Takes a device from its driver.
fn unbind(device: &impl Device) -> Result<(), HostError> {
    if device.driver().is_some() { detach(device) } else { Ok(()) }
}

/// Puts driver and override back. The override also where the driver is gone, so that it takes the
/// device once its module is loaded again.
fn restore(
    device: &impl Device,
    driver: Option<&str>,
    driver_override: Option<&str>,
) -> Result<Option<String>, HostError> {
    let found = driver.map(|driver| device.registered(checked(driver)?)).transpose();
    let driver = found.as_ref().ok().and_then(Option::as_ref);
    let bound = device.driver();
    if bound.is_some() && bound.as_ref() != driver {
        detach(device)?;
    }
    if overridden(device).as_deref() != driver_override {
        write_override(device, driver_override)?;
    }
    let driver = found?;
    if let Some(driver) = &driver
        && bound.as_ref() != Some(driver)
    {
        bind_by_name(device, driver, driver_override)?;
    }
    expect(device, driver.as_deref())?;
    Ok(driver)
}

/// Binds a driver that may not match by itself, such as vfio-pci after `new_id` by others: then
/// the override makes it match for the time of the bind.
fn bind_by_name(
    device: &impl Device,
    driver: &str,
    driver_override: Option<&str>,
) -> Result<(), HostError> {
    let by_name = Attribute::Bind(driver.to_owned());
    let address = device.address().to_string();
    match device.write(&by_name, &address) {
        Err(error) if error.errno() == Some(Errno::NODEV.raw_os_error()) => {
            device.write(&Attribute::Override, driver)?;
            let bound = device.write(&by_name, &address);
            write_override(device, driver_override)?;
            bound
        }
        answer => answer,
    }
}

fn write_override(device: &impl Device, driver: Option<&str>) -> Result<(), HostError> {
    match driver {
        Some(driver) => device.write(&Attribute::Override, checked(driver)?),
        // An empty write is not seen as one by every kernel.
        None => device.write(&Attribute::Override, "\n"),
    }
}

/// `driver_override`, `None` when unset.
fn overridden(device: &impl Device) -> Option<String> {
    let text = device.read(&Attribute::Override)?;
    (!text.is_empty() && text != "(null)").then_some(text)
}

fn detach(device: &impl Device) -> Result<(), HostError> {
    device.write(&Attribute::Unbind, &device.address().to_string())?;
    expect(device, None)
}

fn expect(device: &impl Device, wanted: Option<&str>) -> Result<(), HostError> {
    let found = device.driver();
    if found.as_deref() == wanted {
        return Ok(());
    }
    let word = |driver: Option<&str>| driver.unwrap_or("none").to_owned();
    Err(HostError::DriverMismatch {
        device: device.address(),
        wanted: word(wanted),
        found: word(found.as_deref()),
    })
}

fn checked(driver: &str) -> Result<&str, HostError> {
    if is_driver_name(driver) {
        return Ok(driver);
    }
    let shown: String = driver.chars().take(80).collect();
    Err(file_error("use driver name", format!("{shown:?}"), Errno::INVAL))
}

/// Sets the number of virtual functions, and whether host drivers are offered them. What is so
/// already isn't written.
fn sriov(device: &impl Device, count: u16, autoprobe: bool) -> Result<(), HostError> {
    for (attribute, value) in sriov_writes(count, autoprobe) {
        if device.read(&attribute).as_deref() != Some(&value) {
            device.write(&attribute, &value)?;
        }
    }
    Ok(())
}

/// Resets by the `reset` attribute. The write decides; `reset_method` is a hint.
fn reset(device: &impl Device) -> Result<ResetOutcome, HostError> {
    let method = device.reset_method().unwrap_or_else(|| "unknown".to_owned());
    if let Err(error) = device.write(&Attribute::Reset, "1") {
        return not_reset(error);
    }
    Ok(match device.config() {
        Ok(bytes) if bytes.len() < 2 => {
            ResetOutcome::Failed { note: "the configuration space reads as nothing".to_owned() }
        }
        Ok(bytes) if !answers(&bytes) => {
            ResetOutcome::Failed { note: "the configuration space reads as all ones".to_owned() }
        }
        Ok(_) => ResetOutcome::Verified { method },
        Err(error) => ResetOutcome::Failed { note: error.to_string() },
    })
}

/// Virtual functions read all ones as vendor by design; then the command register must answer.
fn answers(bytes: &[u8]) -> bool {
    bytes.iter().take(64).any(|byte| *byte != 0xff)
}

fn not_reset(error: HostError) -> Result<ResetOutcome, HostError> {
    let HostError::File { errno, .. } = &error else { return Err(error) };
    match Errno::from_raw_os_error(*errno) {
        Errno::NOENT => {
            let note = "the device has no reset attribute: the kernel knows no way".to_owned();
            Ok(ResetOutcome::NotPossible { note })
        }
        Errno::NOTTY => {
            let note = "the kernel has no method that fits (ENOTTY)".to_owned();
            Ok(ResetOutcome::NotPossible { note })
        }
        // Those are about who asks, not about the device.
        Errno::ACCESS | Errno::PERM | Errno::ROFS => Err(error),
        _ => Ok(ResetOutcome::Failed { note: error.to_string() }),
    }
}
