//! Reading small files and links below a directory, with few system calls and no allocation
//! where the caller has a buffer.

use std::{
    ffi::CStr,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Dir, Mode, OFlags},
    io::Errno,
    path::Arg,
};

use crate::{HostError, PciAddress};

/// The largest attribute that sysfs can show: one page.
pub(super) const PAGE_BYTES: usize = 4096;

/// The tree that discovery reads: `ROOT/sys`, `ROOT/proc`, `ROOT/lib/modules`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Root {
    path: PathBuf,
}

impl Root {
    /// A tree at `path`; `/` is the running machine.
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where the tree is.
    #[must_use]
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this is the running machine, not a copy or a fake.
    #[must_use]
    pub(super) fn is_live(&self) -> bool {
        self.path == Path::new("/")
    }

    /// A path below the root; `below` is relative.
    #[must_use]
    pub(super) fn join(&self, below: &str) -> PathBuf {
        self.path.join(below)
    }

    /// `sys/bus/pci/devices/ADDRESS`.
    pub(super) fn device(&self, address: PciAddress) -> PathBuf {
        self.path.join("sys/bus/pci/devices").join(address.to_string())
    }
}

/// An error about a file.
pub(crate) fn file_error(op: &'static str, path: impl AsRef<Path>, errno: Errno) -> HostError {
    HostError::File { op, path: path.as_ref().display().to_string(), errno: errno.raw_os_error() }
}

/// Opens a directory for lookups below it.
pub(super) fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, dir_flags(), Mode::empty())
}

/// Opens a directory below another one.
pub(super) fn open_dir_at(dir: impl AsFd, name: impl Arg) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, dir_flags(), Mode::empty())
}

fn dir_flags() -> OFlags {
    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC
}

/// Opens a file below a directory for reading.
pub(super) fn open_at(dir: impl AsFd, name: impl Arg) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Reads a file below a directory, up to the buffer's size, in one read.
pub(super) fn read_at(dir: impl AsFd, name: impl Arg, buffer: &mut [u8]) -> Result<&[u8], Errno> {
    let file = open_at(dir, name)?;
    let count = rustix::io::read(&file, &mut *buffer)?;
    Ok(&buffer[..count])
}

/// Reads an attribute as text without its newline; `None` when it can't be read.
pub(super) fn text_at(dir: impl AsFd, name: impl Arg) -> Option<String> {
    let mut buffer = [0; PAGE_BYTES];
    let bytes = read_at(dir, name, &mut buffer).ok()?;
    Some(String::from_utf8_lossy(bytes).trim_end().to_owned())
}

/// The last component of a link below a directory; `None` when it isn't a link.
pub(super) fn link_name_at(dir: impl AsFd, name: impl Arg, buffer: &mut [u8]) -> Option<&str> {
    let target = link_at(dir, name, buffer)?;
    target.rsplit('/').next().filter(|last| !last.is_empty())
}

/// The target of a link below a directory; `None` when it isn't a link.
pub(super) fn link_at(dir: impl AsFd, name: impl Arg, buffer: &mut [u8]) -> Option<&str> {
    std::str::from_utf8(raw_link_at(dir, name, buffer).ok()?).ok()
}

/// The target of a link below a directory, whatever bytes it has.
///
/// # Errors
/// The errno of reading it.
pub(super) fn raw_link_at(
    dir: impl AsFd,
    name: impl Arg,
    buffer: &mut [u8],
) -> Result<&[u8], Errno> {
    let count = rustix::fs::readlinkat_raw(dir, name, &mut *buffer)?;
    Ok(&buffer[..count])
}

/// Calls `visit` with each name of a directory; a directory that can't be read has none.
pub(super) fn each_name_at(dir: impl AsFd, name: &str, mut visit: impl FnMut(&str)) {
    let all = |name: &str| {
        visit(name);
        Ok(())
    };
    // What was visited before an error is all there is to see.
    let _ = try_each_name_at(dir, name, all);
}

/// Calls `visit` with each name of a directory, until it fails.
///
/// # Errors
/// The errno of opening or reading it, or that of `visit`.
pub(super) fn try_each_name_at(
    dir: impl AsFd,
    name: &str,
    mut visit: impl FnMut(&str) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    for entry in Dir::new(opened)? {
        if let Some(name) = visible(entry?.file_name()) {
            visit(name)?;
        }
    }
    Ok(())
}

/// The names in a directory.
///
/// # Errors
/// The errno of opening or reading it.
pub(super) fn names_in(path: &Path) -> Result<Vec<String>, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::new(opened)? {
        if let Some(name) = visible(entry?.file_name()) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn visible(name: &CStr) -> Option<&str> {
    name.to_str().ok().filter(|name| !matches!(*name, "." | ".."))
}
