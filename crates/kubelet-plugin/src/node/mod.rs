//! The node: the kubelet's PodResources, processes and control groups, CDI files.

mod cdi;
mod pods;
mod processes;

use std::{fs, io, io::Write as _, path::Path};

pub use cdi::Cdi;
pub use pods::{Listed, Pods};
pub use processes::{ALLOCATION_ENV, Process, Processes, is_in_container};

/// Writes a file so that a reader, and a crash, see the old one or the new one.
///
/// # Errors
/// Of the system, with the file.
pub fn replace_file(file: &Path, bytes: &[u8]) -> io::Result<()> {
    // CDI and others read by extension: this one they pass over.
    let temporary = file.with_extension("tmp");
    let write = || {
        let mut open = fs::File::create(&temporary)?;
        open.write_all(bytes)?;
        open.sync_all()?;
        fs::rename(&temporary, file)
    };
    write().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", file.display())))
}

/// What is in a directory; nothing where there is none.
pub(crate) fn names_in(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
