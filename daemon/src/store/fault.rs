//! Why the state can't be written: what the system itself says of the directory.

use std::{io, path::Path};

use rustix::{
    fs::{AtFlags, Mode, OFlags, openat, unlinkat},
    io::Errno,
};

use super::StoreError;

/// Primary result codes of SQLite, and the errno that comes nearest.
///
/// # Source
/// <https://www.sqlite.org/rescode.html>
const CODES: [(i32, Errno); 9] = [
    (3, Errno::ACCESS),
    (7, Errno::NOMEM),
    (8, Errno::ROFS),
    (10, Errno::IO),
    (11, Errno::IO),
    (13, Errno::NOSPC),
    (14, Errno::IO),
    (22, Errno::OPNOTSUPP),
    (26, Errno::IO),
];

/// The name of the file that is written to find out.
const PROBE: &str = "berth.probe";

impl StoreError {
    /// The errno of an error that is the fault of the disk, the memory or the limits; `None` where a
    /// statement itself is wrong.
    #[must_use]
    pub fn disk_errno(&self) -> Option<i32> {
        match self {
            Self::File { source, .. } => source.raw_os_error(),
            Self::Sql { source, .. } => of_sqlx(source),
            Self::Migrate { source: sqlx::migrate::MigrateError::Execute(source), .. } => {
                of_sqlx(source)
            }
            Self::Away | Self::Otherwise { .. } => Some(Errno::IO.raw_os_error()),
            Self::OldSqlite { .. }
            | Self::Locked { .. }
            | Self::Migrate { .. }
            | Self::Foreign { .. }
            | Self::Damaged { .. }
            | Self::Row { .. } => None,
        }
    }
}

/// The primary result code of an error that SQLite answered.
pub(super) fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

fn of_sqlx(error: &sqlx::Error) -> Option<i32> {
    if let sqlx::Error::Io(error) = error {
        return error.raw_os_error();
    }
    let code = primary_code(error)?;
    let (_, errno) = CODES.iter().find(|(known, _)| *known == code)?;
    Some(errno.raw_os_error())
}

/// Writes a small file into a directory, down to the disk, and removes it.
///
/// # Errors
/// What was attempted, and what the system answered.
pub fn probe(dir: &Path) -> Result<(), (&'static str, io::Error)> {
    let during = |what| move |errno: Errno| (what, io::Error::from(errno));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(dir, flags, Mode::empty()).map_err(during("open the directory"))?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
    let file =
        openat(&dir, PROBE, flags, Mode::RUSR | Mode::WUSR).map_err(during("create a file"))?;
    let written = rustix::io::write(&file, &[0; 4096])
        .map_err(during("write a file"))
        .and_then(|_| rustix::fs::fsync(&file).map_err(during("fsync a file")));
    // It is in nobody's way.
    let _ = unlinkat(&dir, PROBE, AtFlags::empty());
    written
}

/// What heals it.
#[must_use]
pub fn way_out(errno: i32, dir: &str) -> String {
    match Errno::from_raw_os_error(errno) {
        Errno::NOSPC | Errno::DQUOT => {
            format!("make room in the file system of {dir} (`df {dir}`)")
        }
        Errno::ROFS => format!("find out why it is read-only (`dmesg`), then remount {dir} rw"),
        Errno::MFILE | Errno::NFILE => "raise LimitNOFILE= or fs.file-max".to_owned(),
        Errno::NOMEM => "free memory, or raise MemoryMax= of the service".to_owned(),
        Errno::ACCESS | Errno::PERM => format!("let berthd write {dir}"),
        _ => format!("see `dmesg` for the disk of {dir}; restore a backup where it is broken"),
    }
}
