//! A copy of a database whose own directory takes no writes: SQLite writes even where it reads.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::StoreError;

/// A directory with a copy, for as long as this is there.
#[derive(Debug)]
pub(super) struct Copied {
    dir: PathBuf,
}

impl Copied {
    /// Copies what there is of `berth.db` to where files can be made.
    ///
    /// # Errors
    /// There is no such place; the database can't be read.
    pub(super) fn of(dir: &Path) -> Result<Self, StoreError> {
        let copied = Self { dir: make_place()? };
        for name in ["berth.db", "berth.db-wal"] {
            let from = dir.join(name);
            match fs::copy(&from, copied.dir.join(name)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => {
                    let path = from.display().to_string();
                    return Err(StoreError::File { op: "copy", path, source });
                }
                Ok(_) => {}
            }
        }
        Ok(copied)
    }

    /// Where the copy is.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(dir = %self.dir.display(), %error, "a copy of the state is left");
        }
    }
}

/// A directory of our own in the first place that takes one.
fn make_place() -> Result<PathBuf, StoreError> {
    let runtime = env::var_os("RUNTIME_DIRECTORY").map(PathBuf::from);
    let places = runtime.into_iter().chain(["/run/berth", "/dev/shm"].map(PathBuf::from));
    let mut failed = None;
    for place in places.chain([env::temp_dir()]) {
        let dir = place.join(format!("berth-copy-{}", uuid::Uuid::new_v4()));
        let only_ours = fs::Permissions::from_mode(0o700);
        match fs::create_dir(&dir).and_then(|()| fs::set_permissions(&dir, only_ours)) {
            Ok(()) => return Ok(dir),
            Err(source) => {
                let path = dir.display().to_string();
                failed = Some(StoreError::File { op: "create directory", path, source });
            }
        }
    }
    Err(failed.unwrap_or(StoreError::Away))
}
