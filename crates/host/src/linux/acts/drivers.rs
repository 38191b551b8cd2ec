//! Finding drivers, and loading those of VFIO.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use rustix::io::Errno;

use crate::{
    HostError,
    linux::{
        drivers::{is_driver_name, is_vfio, plain},
        tree::{Root, file_error},
    },
};

pub(super) fn driver_dir(root: &Root, driver: &str) -> PathBuf {
    root.join("sys/bus/pci/drivers").join(driver)
}

/// The name under which a driver is registered.
///
/// # Errors
/// ENOENT: it isn't.
pub(in crate::linux) fn registered(root: &Root, driver: &str) -> Result<String, HostError> {
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

/// Whether [`load_missing`] would find a module for a driver.
pub(in crate::linux) fn is_loadable(root: &Root, release: &str, driver: &str) -> bool {
    if !is_driver_name(driver) || !is_vfio(driver) || !root.is_live() {
        return false;
    }
    let list = root.join("lib/modules").join(release).join("modules.dep");
    let modules = std::fs::read_to_string(list).unwrap_or_default();
    let files = modules.lines().filter_map(|line| line.split(':').next()?.rsplit('/').next());
    let mut names = files.filter_map(|file| file.split(".ko").next());
    names.any(|name| plain(name) == plain(driver))
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
