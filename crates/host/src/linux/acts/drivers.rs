//! Binding and unbinding. The `driver` link is read again after every write: the kernel answers
//! some writes with success although nothing, or something else, was bound.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use rustix::io::Errno;

use super::sysfs::{self, Device};
use crate::{
    HostError, PciAddress,
    linux::{
        drivers::{is_driver_name, is_vfio},
        tree::{Root, file_error},
    },
};

/// Puts a device on a driver, by override and probe; what was bound before is unbound. The
/// override stays, also after a failure.
pub(super) fn bind(root: &Root, address: PciAddress, driver: &str) -> Result<String, HostError> {
    let device = Device::open(root, address)?;
    let driver = registered(root, driver)?;
    device.write("driver_override", &driver)?;
    match device.driver() {
        Some(bound) if bound == driver => return Ok(driver),
        Some(_) => detach(&device)?,
        None => {}
    }
    sysfs::write(&root.join("sys/bus/pci/drivers_probe"), &address.to_string()).or_else(
        |error| {
            // Every failure of a probe is EINVAL here; binding by name answers with the real one.
            if error.errno() == Some(Errno::INVAL.raw_os_error()) { Ok(()) } else { Err(error) }
        },
    )?;
    if device.driver().is_none() {
        sysfs::write(&driver_dir(root, &driver).join("bind"), &address.to_string())?;
    }
    expect(&device, Some(&driver))?;
    Ok(driver)
}

/// Takes a device from its driver.
pub(super) fn unbind(root: &Root, address: PciAddress) -> Result<(), HostError> {
    let device = Device::open(root, address)?;
    if device.driver().is_some() { detach(&device) } else { Ok(()) }
}

/// Sets or clears `driver_override`.
pub(super) fn set_override(
    root: &Root,
    address: PciAddress,
    driver: Option<&str>,
) -> Result<(), HostError> {
    write_override(&Device::open(root, address)?, driver)
}

/// Puts driver and override back. The override also where the driver is gone, so that it takes the
/// device once its module is loaded again.
pub(super) fn restore(
    root: &Root,
    address: PciAddress,
    driver: Option<&str>,
    driver_override: Option<&str>,
) -> Result<Option<String>, HostError> {
    let device = Device::open(root, address)?;
    let found = driver.map(|driver| registered(root, driver)).transpose();
    let driver = found.as_ref().ok().and_then(Option::as_ref);
    let bound = device.driver();
    if bound.is_some() && bound.as_ref() != driver {
        detach(&device)?;
    }
    if device.driver_override().as_deref() != driver_override {
        write_override(&device, driver_override)?;
    }
    let driver = found?;
    if let Some(driver) = &driver
        && bound.as_ref() != Some(driver)
    {
        bind_by_name(&device, driver, driver_override)?;
    }
    expect(&device, driver.as_deref())?;
    Ok(driver)
}

/// Binds a driver that may not match by itself, such as vfio-pci after `new_id` by others: then
/// the override makes it match for the time of the bind.
fn bind_by_name(
    device: &Device<'_>,
    driver: &str,
    driver_override: Option<&str>,
) -> Result<(), HostError> {
    let path = driver_dir(device.root, driver).join("bind");
    let address = device.address.to_string();
    match sysfs::write(&path, &address) {
        Err(error) if error.errno() == Some(Errno::NODEV.raw_os_error()) => {
            device.write("driver_override", driver)?;
            let bound = sysfs::write(&path, &address);
            write_override(device, driver_override)?;
            bound
        }
        answer => answer,
    }
}

fn write_override(device: &Device<'_>, driver: Option<&str>) -> Result<(), HostError> {
    match driver {
        Some(driver) => device.write("driver_override", checked(driver)?),
        // An empty write is not seen as one by every kernel.
        None => device.write("driver_override", "\n"),
    }
}

fn detach(device: &Device<'_>) -> Result<(), HostError> {
    device.write("driver/unbind", &device.address.to_string())?;
    expect(device, None)
}

fn expect(device: &Device<'_>, wanted: Option<&str>) -> Result<(), HostError> {
    let found = device.driver();
    if found.as_deref() == wanted {
        return Ok(());
    }
    let word = |driver: Option<&str>| driver.unwrap_or("none").to_owned();
    Err(HostError::DriverMismatch {
        device: device.address,
        wanted: word(wanted),
        found: word(found.as_deref()),
    })
}

pub(super) fn driver_dir(root: &Root, driver: &str) -> PathBuf {
    root.join("sys/bus/pci/drivers").join(driver)
}

fn checked(driver: &str) -> Result<&str, HostError> {
    if is_driver_name(driver) {
        return Ok(driver);
    }
    let shown: String = driver.chars().take(80).collect();
    Err(file_error("use driver name", format!("{shown:?}"), Errno::INVAL))
}

/// The name under which a driver is registered.
fn registered(root: &Root, driver: &str) -> Result<String, HostError> {
    let driver = checked(driver)?;
    spelled(root, driver)
        .ok_or_else(|| file_error("find driver", driver_dir(root, driver), Errno::NOENT))
}

/// Loads a VFIO driver that isn't there.
pub(super) fn load_missing(root: &Root, driver: &str) {
    let known = is_driver_name(driver) && is_vfio(driver) && root.is_live();
    if !known || spelled(root, driver).is_some() {
        return;
    }
    let why = load(driver);
    if spelled(root, driver).is_none() {
        tracing::warn!(driver, why, "driver is not registered");
    }
}

/// The spelling of a driver that exists: modules say `_` where some drivers say `-`.
pub(super) fn spelled(root: &Root, driver: &str) -> Option<String> {
    let spellings = [driver.to_owned(), driver.replace('-', "_"), driver.replace('_', "-")];
    spellings.into_iter().find(|name| driver_dir(root, name).is_dir())
}

fn load(driver: &str) -> String {
    let answer = Command::new("modprobe")
        .args(["--", driver])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output();
    match answer {
        Ok(output) if output.status.success() => "modprobe loaded it".to_owned(),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("modprobe: {error}"),
    }
}
