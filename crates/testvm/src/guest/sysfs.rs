//! The kernel's own view of devices: links and attributes under `/sys`, never Berth's answers.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::io::Errno;

const DEVICES: &str = "/sys/bus/pci/devices";
const DRIVERS: &str = "/sys/bus/pci/drivers";

/// The directory of a PCI function.
#[must_use]
pub fn device_dir(address: &str) -> PathBuf {
    Path::new(DEVICES).join(address)
}

fn link_name(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// The driver a device is bound to.
#[must_use]
pub fn driver(address: &str) -> Option<String> {
    link_name(&device_dir(address).join("driver"))
}

/// The number of the group a device is in.
#[must_use]
pub fn group(address: &str) -> Option<String> {
    link_name(&device_dir(address).join("iommu_group"))
}

/// The members of a group, sorted.
///
/// # Errors
/// There is no such group.
pub fn group_members(group: &str) -> Result<Vec<String>> {
    let dir = format!("/sys/kernel/iommu_groups/{group}/devices");
    let entries = fs::read_dir(&dir).with_context(|| format!("read {dir}"))?;
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// An attribute of a device, without the line's end; `None` where the file isn't there.
#[must_use]
pub fn attribute(address: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(device_dir(address).join(name)).ok()?;
    Some(text.trim_end().to_owned())
}

/// A device's `driver_override`; none set is `None`.
#[must_use]
pub fn driver_override(address: &str) -> Option<String> {
    attribute(address, "driver_override").filter(|text| text != "(null)" && !text.is_empty())
}

/// Every PCI function that is there, sorted.
///
/// # Errors
/// `/sys` isn't mounted.
pub fn devices() -> Result<Vec<String>> {
    let entries = fs::read_dir(DEVICES).with_context(|| format!("read {DEVICES}"))?;
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

/// Writes an attribute and gives the kernel's answer as an errno.
///
/// # Errors
/// The kernel's.
pub fn write(path: &Path, text: &str) -> Result<(), Errno> {
    let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let mut file = fs::OpenOptions::new().write(true).open(path).map_err(errno)?;
    file.write_all(text.as_bytes()).map_err(errno)
}

/// Asks the kernel to bind a device to a driver.
///
/// # Errors
/// The kernel's: EBUSY when someone owns the group's DMA, ENODEV when the driver doesn't want it.
pub fn bind(address: &str, driver: &str) -> Result<(), Errno> {
    write(&Path::new(DRIVERS).join(driver).join("bind"), address)
}

/// Takes a device from its driver; nothing happens when it has none.
///
/// # Errors
/// The kernel's.
pub fn unbind(address: &str) -> Result<(), Errno> {
    if driver(address).is_none() {
        return Ok(());
    }
    write(&device_dir(address).join("driver/unbind"), address)
}

/// Sets `driver_override`; an empty name clears it.
///
/// # Errors
/// The kernel's.
pub fn set_driver_override(address: &str, driver: &str) -> Result<(), Errno> {
    write(&device_dir(address).join("driver_override"), &format!("{driver}\n"))
}

/// Lets the kernel look for a driver again.
///
/// # Errors
/// The kernel's.
pub fn reprobe(address: &str) -> Result<(), Errno> {
    write(Path::new("/sys/bus/pci/drivers_probe"), address)
}

/// Brings a device to vfio-pci the way an administrator would, and checks the link.
///
/// # Errors
/// A step was refused, or the device did not end on vfio-pci.
pub fn to_vfio(address: &str) -> Result<()> {
    if driver(address).as_deref() == Some("vfio-pci") {
        return Ok(());
    }
    unbind(address).with_context(|| format!("unbind {address}"))?;
    set_driver_override(address, "vfio-pci").with_context(|| format!("override {address}"))?;
    reprobe(address).with_context(|| format!("probe {address} for vfio-pci"))?;
    anyhow::ensure!(
        driver(address).as_deref() == Some("vfio-pci"),
        "{address} is on {:?} after the probe, not on vfio-pci",
        driver(address)
    );
    Ok(())
}

/// Brings a device to the driver that a plain boot gives it, or to none.
///
/// # Errors
/// A step was refused, or the device did not end where it should.
pub fn to_host(address: &str, host_driver: Option<&str>) -> Result<()> {
    if driver(address).as_deref() != host_driver {
        unbind(address).with_context(|| format!("unbind {address}"))?;
    }
    set_driver_override(address, "").with_context(|| format!("clear the override of {address}"))?;
    if host_driver.is_some() && driver(address).is_none() {
        reprobe(address).with_context(|| format!("probe {address}"))?;
    }
    anyhow::ensure!(
        driver(address).as_deref() == host_driver,
        "{address} is on {:?}, not on {host_driver:?}",
        driver(address)
    );
    Ok(())
}

/// The driver and override of every device of the test machine, as it is now.
#[must_use]
pub fn bindings() -> Vec<(String, Option<String>, Option<String>)> {
    devices()
        .unwrap_or_default()
        .into_iter()
        .map(|address| {
            let (driver, over) = (driver(&address), driver_override(&address));
            (address, driver, over)
        })
        .collect()
}
