//! Who may open a node: its mode and its access list, as `getfacl` reads them from the kernel.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use rustix::{fs::lgetxattr, io::Errno};

/// Owner, mode, and what the access list says beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// Owner and group.
    pub owner: (u32, u32),
    /// The permission bits.
    pub mode: u32,
    /// Named users and what they may; empty without a list.
    pub users: Vec<(u32, u16)>,
    /// Whether there is a list at all.
    pub listed: bool,
}

/// Reads it.
///
/// # Errors
/// The node isn't there, or its list is none that is known.
pub fn of(path: &Path) -> Result<Access> {
    let meta = fs::symlink_metadata(path).with_context(|| format!("stat {}", path.display()))?;
    let mut access = Access {
        owner: (meta.uid(), meta.gid()),
        mode: meta.permissions().mode() & 0o7777,
        users: Vec::new(),
        listed: false,
    };
    let mut bytes = [0; 4096];
    let count = match lgetxattr(path, "system.posix_acl_access", &mut bytes[..]) {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(access),
        count => count.with_context(|| format!("read the list of {}", path.display()))?,
    };
    access.listed = true;
    ensure!(bytes[..4] == [2, 0, 0, 0], "another version: {:?}", &bytes[..4]);
    for entry in bytes[4..count].chunks(8) {
        let [2, 0, low, high, a, b, c, d] = *entry else { continue };
        access.users.push((u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([low, high])));
    }
    Ok(access)
}
