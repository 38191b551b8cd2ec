//! Writing again after it failed.
//!
//! After a failed `fsync` the page cache may have what the disk has not, and a commit that was said
//! to have failed may stand in the write-ahead log. So the log is folded into the database and cut,
//! which takes new writes and new syncs; then the files are read anew.

use std::path::{Path, PathBuf};

use rustix::fs::{Advice, Mode, OFlags};
use sqlx::{Connection as _, SqliteConnection};

use super::{Loaded, Reader, Store, StoreError, Writer, fault::primary_code, open};

/// `SQLITE_READONLY`.
const READ_ONLY: i32 = 8;

impl Writer {
    /// The directory that is written.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.locked.dir()
    }

    /// Opens the database anew. What is in it comes back: it must be what was committed.
    ///
    /// # Errors
    /// Why it can't be written yet. It may be tried again.
    pub async fn reopen(&mut self) -> Result<Loaded, StoreError> {
        if let Some(conn) = &mut self.conn {
            match fold(conn).await {
                // Opened where nothing could be written, it never can: nothing of ours is in its log.
                Err(error) if is_read_only(&error) => {}
                folded => folded?,
            }
        }
        if let Some(conn) = self.conn.take()
            && let Err(error) = conn.close().await
        {
            tracing::warn!(%error, "closing the store that failed");
        }
        let path = self.locked.database();
        forget_cached(&path);
        let (mut conn, loaded) = open::connect(&path).await?;
        self.bell.hang_on(&mut conn).await?;
        self.conn = Some(conn);
        Ok(loaded)
    }

    /// Closes what was reopened, as it isn't what was committed.
    pub async fn give_up(&mut self) {
        if let Some(conn) = self.conn.take()
            && let Err(error) = conn.close().await
        {
            tracing::warn!(%error, "closing the store that is otherwise");
        }
    }

    /// Lets readers read what is written.
    pub fn lead(&mut self, reader: Option<&mut Reader>, store: &Store) {
        let path = self.locked.database();
        if let Some(reader) = reader {
            reader.read(&path);
        }
        store.read(&path);
        self.copied = None;
    }
}

/// Moves all that is committed from the log into the database, and cuts the log.
async fn fold(conn: &mut SqliteConnection) -> Result<(), StoreError> {
    let (busy, _, _): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)")
        .fetch_one(conn)
        .await
        .map_err(StoreError::sql("fold the log into the database"))?;
    if busy == 0 { Ok(()) } else { Err(StoreError::Away) }
}

/// Whether a connection was opened for reading only (`SQLITE_READONLY`).
fn is_read_only(error: &StoreError) -> bool {
    matches!(error, StoreError::Sql { source, .. } if primary_code(source) == Some(READ_ONLY))
}

/// Has the next read come from the disk. Where the kernel doesn't do that, nothing is lost.
fn forget_cached(database: &Path) {
    let log = PathBuf::from(format!("{}-wal", database.display()));
    for path in [database, &log] {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) {
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
        }
    }
}
