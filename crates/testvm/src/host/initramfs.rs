//! The initramfs: a cpio archive ("newc") made of the init, its configuration and modules.

use std::{
    fs,
    io::{self, Write},
    path::Path,
};

use anyhow::{Context, Result};

use super::kernel::Kernel;
use crate::wire::{CONFIG_IN_INITRAMFS, GuestConfig};

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Writes newc entries; [`Archive::finish`] ends the archive.
#[derive(Debug)]
pub struct Archive<W: Write> {
    out: W,
    next_inode: u32,
}

impl<W: Write> Archive<W> {
    /// An empty archive.
    pub const fn new(out: W) -> Self {
        Self { out, next_inode: 1 }
    }

    fn entry(&mut self, name: &str, mode: u32, rdev: (u32, u32), data: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, name.to_owned());
        let size = u32::try_from(data.len()).map_err(too_large)?;
        let name_size = u32::try_from(name.len() + 1).map_err(too_large)?;
        let inode = self.next_inode;
        self.next_inode += 1;
        let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, rdev.0, rdev.1, name_size, 0]
            .map(|f| format!("{f:08X}"));
        write!(self.out, "070701{}{name}\0", fields.concat())?;
        // The header is 110 bytes; name and data are padded so that each ends on four bytes.
        self.pad(110 + name.len() + 1)?;
        self.out.write_all(data)?;
        self.pad(data.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        let rest = written.next_multiple_of(4) - written;
        self.out.write_all(&[0; 4][..rest])
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY, (0, 0), &[])
    }

    /// Adds a file.
    ///
    /// # Errors
    /// The output cannot be written, or the data is larger than the format allows.
    pub fn file(&mut self, name: &str, data: &[u8], executable: bool) -> io::Result<()> {
        self.entry(name, if executable { PROGRAM } else { FILE }, (0, 0), data)
    }

    /// Adds a character device node.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, CHARACTER_DEVICE, (major, minor), &[])
    }

    /// Writes the trailer and gives the output back.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.out)
    }
}

/// Packs the initramfs of one run.
///
/// # Errors
/// A module or the init cannot be read.
pub fn pack(init: &Path, kernel: &Kernel, config: &GuestConfig) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    let mut archive = Archive::new(Vec::new());
    for name in ["dev", "proc", "sys", "host", "debian", "rw", "newroot", "modules"] {
        archive.directory(name)?;
    }
    // Without it process 1 starts with no stdio and its error messages are lost.
    archive.character_device("dev/console", 5, 1)?;
    for module in &kernel.modules {
        let name = module.file_name().and_then(|n| n.to_str()).context("odd module name")?;
        archive.file(&format!("modules/{name}"), &read(module)?, false)?;
    }
    let config = serde_json::to_vec(config)?;
    archive.file(CONFIG_IN_INITRAMFS.trim_start_matches('/'), &config, false)?;
    archive.file("init", &read(init)?, true)?;
    Ok(archive.finish()?)
}

#[cfg(test)]
mod tests {
    use super::Archive;

    /// Reads an archive back: names, modes and data.
    fn parse(mut rest: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let whole = rest.len();
        let mut found = Vec::new();
        loop {
            assert_eq!(&rest[..6], b"070701");
            let field = |i: usize| {
                let text = std::str::from_utf8(&rest[6 + 8 * i..14 + 8 * i]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(rest[110..110 + name_size - 1].to_vec()).unwrap();
            rest = &rest[(110 + name_size).next_multiple_of(4)..];
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name, mode, rest[..size].to_vec()));
            rest = &rest[size.next_multiple_of(4)..];
            assert_eq!((whole - rest.len()) % 4, 0, "entries start on four bytes");
        }
    }

    #[test]
    fn what_is_packed_is_read_back() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev").unwrap();
        archive.character_device("dev/console", 5, 1).unwrap();
        archive.file("init", b"12345", true).unwrap();
        archive.file("a", b"", false).unwrap();
        let found = parse(&archive.finish().unwrap());
        let names: Vec<&str> = found.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["dev", "dev/console", "init", "a"]);
        assert_eq!(found[1].1, 0o020_600);
        assert_eq!(found[2], ("init".to_owned(), 0o100_755, b"12345".to_vec()));
        assert!(found[3].2.is_empty());
    }
}
