//! vDPA devices as an administrator makes them, and the domain that the IOMMU really walks.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use rustix::io::Errno;

use super::sysfs;

const TOOLS: &[&str] = &["/usr/sbin/vdpa", "/usr/bin/vdpa"];
const IOMMU_DEBUG: &str = "/sys/kernel/debug/iommu/intel";

fn tool() -> Option<&'static str> {
    TOOLS.iter().copied().find(|path| Path::new(path).exists())
}

pub(super) fn is_there() -> bool {
    let drivers = ["/sys/bus/pci/drivers/vp-vdpa", "/sys/bus/vdpa/drivers/vhost_vdpa"];
    tool().is_some() && drivers.iter().all(|path| Path::new(path).exists())
}

/// Makes a vDPA device of a function that is on a driver for it, and gives the node of that device.
///
/// # Errors
/// The kernel's, as the tool tells it; or `vhost_vdpa` did not take the device.
pub fn make(address: &str, name: &str) -> Result<PathBuf> {
    let parent = format!("pci/{address}");
    let mut command = Command::new(tool().context("there is no vdpa tool")?);
    command.args(["dev", "add", "name", name, "mgmtdev", &parent]);
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{command:?}: {said}");
    let dir = sysfs::device_dir(address).join(name);
    let names = fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
    let mut names = names.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let node = names.find(|name| name.starts_with("vhost-vdpa-"));
    Ok(Path::new("/dev").join(node.with_context(|| format!("{name} has no node"))?))
}

/// Opens the node, as a VMM does; the kernel then attaches the function to a domain of its own.
///
/// # Errors
/// The kernel's: EBUSY while somebody else has it open.
pub fn open(node: &Path) -> Result<File, Errno> {
    let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    OpenOptions::new().read(true).write(true).open(node).map_err(errno)
}

/// A process that has the node open and does nothing.
///
/// # Errors
/// The node doesn't open, or there is no such program.
pub fn keeper(node: &Path) -> Result<std::process::Child> {
    let file = open(node).with_context(|| format!("open {}", node.display()))?;
    Command::new("/bin/sleep").arg("600").stdin(Stdio::from(file)).spawn().context("start sleep")
}

/// Where the page table lies that the IOMMU walks for a function, as the IOMMU's own tables in
/// memory say.
///
/// # Errors
/// The kernel doesn't show it.
pub fn page_table(address: &str) -> Result<String> {
    let path = Path::new(IOMMU_DEBUG).join(address).join("domain_translation_struct");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let first = text.lines().next().unwrap_or_default();
    let table = first.split_once('@').map(|(_, table)| table.trim().to_owned());
    table.with_context(|| format!("{address} has no page table: {first:?}"))
}
