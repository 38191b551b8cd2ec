//! Opening the store: the lock, the version, the schema.

use std::{
    fs,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, Mode, OFlags};
use sqlx::{
    ConnectOptions as _, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{Loaded, Reader, Store, StoreError, Writer, load};

/// The oldest SQLite without the corruption of WAL resets.
const OLDEST_SQLITE: [u32; 3] = [3, 51, 3];
const READERS: u32 = 2;
/// How many texts of statements the writer keeps prepared. Those of large commits take some 100 kB.
const KEPT_TEXTS: usize = 32;

/// An open store: writer and reader for the ledger, the readers for everybody, what was in it.
#[derive(Debug)]
pub struct Pieces {
    /// The writer.
    pub writer: Writer,
    /// The ledger's reader.
    pub reader: Reader,
    /// The readers.
    pub store: Store,
    /// The rows.
    pub loaded: Loaded,
}

/// A directory that no other daemon has as long as this is there.
#[derive(Debug)]
pub struct Locked {
    dir: PathBuf,
    lock: OwnedFd,
}

impl Locked {
    /// Takes a directory, which is made if need be.
    ///
    /// # Errors
    /// Another daemon has it; it can't be made.
    pub fn take(dir: &Path) -> Result<Self, StoreError> {
        make_dir(dir)?;
        Ok(Self { dir: dir.to_owned(), lock: lock(dir)? })
    }
}

/// Takes a directory and opens the store in it: see [`Locked::take`] and [`open_locked`].
///
/// # Errors
/// Of both.
pub async fn open(dir: &Path) -> Result<Pieces, StoreError> {
    open_locked(Locked::take(dir)?).await
}

/// Opens `berth.db` and reads all current rows.
///
/// # Errors
/// What is wrong: SQLite is too old, the schema is of a newer daemon.
pub async fn open_locked(locked: Locked) -> Result<Pieces, StoreError> {
    let Locked { dir, lock } = locked;
    let path = dir.join("berth.db");
    let options = SqliteConnectOptions::new()
        .filename(&path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .statement_cache_capacity(KEPT_TEXTS);
    let mut conn = options.connect().await.map_err(StoreError::sql("open the database"))?;
    check_version(&mut conn).await?;
    sqlx::migrate!("../migrations")
        .run(&mut conn)
        .await
        .map_err(|source| StoreError::Migrate { path: path.display().to_string(), source })?;
    let mut writer = Writer::new(conn, lock);
    let loaded = load::load(writer.connection()).await?;
    let reading = SqliteConnectOptions::new().filename(&path).read_only(true);
    let readers =
        SqlitePoolOptions::new().max_connections(READERS).connect_lazy_with(reading.clone());
    Ok(Pieces { writer, reader: Reader::new(reading), store: Store::new(readers), loaded })
}

impl Store {
    fn new(readers: SqlitePool) -> Self {
        Self { readers }
    }
}

fn make_dir(dir: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| {
        StoreError::File { op: "create directory", path: dir.display().to_string(), source }
    })
}

fn lock(dir: &Path) -> Result<OwnedFd, StoreError> {
    let path = dir.join("berth.lock");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|errno| {
        StoreError::File { op: "open", path: path.display().to_string(), source: errno.into() }
    })?;
    rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| StoreError::Locked { dir: dir.display().to_string() })?;
    Ok(fd)
}

async fn check_version(conn: &mut sqlx::SqliteConnection) -> Result<(), StoreError> {
    let found = sqlx::query_scalar!(r#"SELECT sqlite_version() AS "version!: String""#)
        .fetch_one(conn)
        .await
        .map_err(StoreError::sql("ask for the version"))?;
    if is_safe(&found) { Ok(()) } else { Err(StoreError::OldSqlite { found }) }
}

fn is_safe(version: &str) -> bool {
    let mut parts = [0_u32; 3];
    for (slot, text) in parts.iter_mut().zip(version.split('.')) {
        let Ok(number) = text.parse() else { return false };
        *slot = number;
    }
    parts >= OLDEST_SQLITE
}

#[cfg(test)]
mod tests {
    use super::is_safe;

    #[test]
    fn refuses_versions_that_can_corrupt_the_wal() {
        for bad in ["3.40.1", "3.51.2", "3.7.0", "2.99.99", "", "three"] {
            assert!(!is_safe(bad), "{bad}");
        }
        for good in ["3.51.3", "3.52.0", "4.0.0"] {
            assert!(is_safe(good), "{good}");
        }
    }
}
