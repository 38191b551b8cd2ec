//! An nvme's disk as the host's own driver shows it.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use anyhow::{Context, Result};

use super::{Ctx, sysfs, wait_for};

/// The disk, which appears a moment after its driver. With multipath the entry below the device is a
/// path (`nvme1c1n1`), whose disk (`nvme1n1`) lies below the subsystem.
///
/// # Errors
/// It doesn't appear.
pub fn block_device(ctx: &Ctx, address: &str) -> Result<PathBuf> {
    let find = || {
        let dir = sysfs::device_dir(address).join("nvme");
        let controller = fs::read_dir(dir).ok()?.flatten().next()?.path();
        let names = fs::read_dir(controller).ok()?.flatten();
        let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let found = names.find(|name| name.starts_with("nvme") && name.contains('n'))?;
        let (front, namespace) = found.rsplit_once('n')?;
        let front = front.split('c').next()?;
        Some(PathBuf::from(format!("/dev/{front}n{namespace}"))).filter(|disk| disk.exists())
    };
    wait_for(&format!("the disk of {address}"), ctx.patience(), find)
}

/// Writes to the disk, and not only to the kernel's memory.
///
/// # Errors
/// The disk's.
pub fn write(ctx: &Ctx, address: &str, offset: u64, bytes: &[u8]) -> Result<()> {
    let path = block_device(ctx, address)?;
    let disk = OpenOptions::new().write(true).open(&path);
    let disk = disk.with_context(|| format!("open {}", path.display()))?;
    disk.write_all_at(bytes, offset)?;
    disk.sync_all().with_context(|| format!("write {}", path.display()))
}

/// Reads from the disk. What the kernel remembers of it goes with its driver.
///
/// # Errors
/// The disk's.
pub fn read(ctx: &Ctx, address: &str, offset: u64, length: usize) -> Result<Vec<u8>> {
    let path = block_device(ctx, address)?;
    let disk = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let mut bytes = vec![0; length];
    disk.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}
