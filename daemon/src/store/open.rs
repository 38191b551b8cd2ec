//! Opening the store: the lock, the version, the schema.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use futures::{FutureExt as _, future::BoxFuture};
use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};
use sqlx::{
    ConnectOptions as _, Connection as _, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{HistoryLost, Loaded, Reader, Store, StoreError, Writer, copy::Copied, damage, load};

/// The database's name in the directory.
pub(super) const DATABASE: &str = "berth.db";
/// The file that is there since the directory is used.
const LOCK: &str = "berth.lock";
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
    /// Why they were read from a copy, and nothing can be written.
    pub unwritable: Option<StoreError>,
}

/// A locked file. The lock is of the open file, which a child has too from its fork to its exec: it is
/// given back as such, or the next daemon could find it taken by what has nothing to do with it.
#[derive(Debug)]
struct Lock(OwnedFd);

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = rustix::fs::flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(%error, "unlocking the state directory");
        }
    }
}

/// A directory that no other daemon has as long as this is there.
#[derive(Debug)]
pub struct Locked {
    dir: PathBuf,
    /// Whether it had been used before.
    used: bool,
    _locks: Vec<Lock>,
}

impl Locked {
    /// Takes a directory, which is made if need be. One that takes no writes can be taken, too.
    ///
    /// # Errors
    /// Another daemon has it; it can't be made.
    pub fn take(dir: &Path) -> Result<Self, StoreError> {
        make_dir(dir)?;
        let used = dir.join(LOCK).exists();
        Ok(Self { dir: dir.to_owned(), used, _locks: lock(dir)? })
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The database.
    pub(super) fn database(&self) -> PathBuf {
        self.dir.join(DATABASE)
    }
}

/// Takes a directory and opens the store in it: see [`Locked::take`] and [`open_locked`].
///
/// # Errors
/// Of both.
pub async fn open(dir: &Path) -> Result<Pieces, StoreError> {
    open_locked(Locked::take(dir)?).await
}

/// Opens `berth.db` and reads all current rows. A damaged one is set aside. Of one that can't be
/// written a copy is read, and [`Pieces::unwritable`] says why.
///
/// # Errors
/// What is wrong: SQLite is too old, the schema is of a newer daemon.
pub async fn open_locked(locked: Locked) -> Result<Pieces, StoreError> {
    let path = locked.database();
    let lost = (locked.used && !path.exists()).then(|| damage::gone(&path));
    match begin(&path, lost).await {
        Ok((conn, loaded)) => {
            let writer = Writer::new(conn, locked).await?;
            Ok(pieces(writer, &path, loaded, None))
        }
        Err(error) if damage::is_damage(&error) => {
            let lost = damage::set_aside(&path, &error.chain())?;
            let (conn, loaded) = begin(&path, Some(lost)).await?;
            let writer = Writer::new(conn, locked).await?;
            Ok(pieces(writer, &path, loaded, None))
        }
        Err(error) if error.disk_errno().is_some() => read_copy(locked, error).await,
        Err(error) => Err(error),
    }
}

/// Reads a copy of what can't be written.
async fn read_copy(locked: Locked, why: StoreError) -> Result<Pieces, StoreError> {
    let copied = Copied::of(locked.dir())?;
    let path = copied.dir().join(DATABASE);
    let (conn, loaded) = connect(&path).await?;
    if let Err(error) = conn.close().await {
        tracing::warn!(%error, "closing a copy of the database");
    }
    Ok(pieces(Writer::away(locked, copied), &path, loaded, Some(why)))
}

fn pieces(writer: Writer, path: &Path, loaded: Loaded, unwritable: Option<StoreError>) -> Pieces {
    let (reader, store) = (Reader::new(reading(path)), Store::new(readers(path)));
    Pieces { writer, reader, store, loaded, unwritable }
}

fn reading(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).read_only(true)
}

fn readers(path: &Path) -> SqlitePool {
    SqlitePoolOptions::new().max_connections(READERS).connect_lazy_with(reading(path))
}

/// Opens a database; where history was lost, that is written into it.
async fn begin(
    path: &Path,
    lost: Option<HistoryLost>,
) -> Result<(SqliteConnection, Loaded), StoreError> {
    let (mut conn, mut loaded) = connect(path).await?;
    if let Some(lost) = lost {
        let json = serde_json::to_string(&lost).unwrap_or_default();
        sqlx::query(
            "INSERT OR REPLACE INTO meta (name, value)
             VALUES ('history_lost', ?), ('epoch_floor', ?), ('last_intent', ?)",
        )
        .bind(json)
        .bind(lost.at_unix_ms.to_string())
        .bind(lost.at_unix_ms.to_string())
        .execute(&mut conn)
        .await
        .map_err(StoreError::sql("begin anew"))?;
        loaded.history_lost = Some(lost);
    }
    Ok((conn, loaded))
}

/// Opens a database for writing, checks it, brings its schema up to date and reads it.
pub(super) fn connect(
    path: &Path,
) -> BoxFuture<'static, Result<(SqliteConnection, Loaded), StoreError>> {
    let path = path.to_owned();
    async move { connect_to(&path).await }.boxed()
}

async fn connect_to(path: &Path) -> Result<(SqliteConnection, Loaded), StoreError> {
    keep_private(path);
    let options = SqliteConnectOptions::new()
        // In memory: of the file system only the state is within reach.
        .pragma("temp_store", "MEMORY")
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .statement_cache_capacity(KEPT_TEXTS);
    let mut conn = options.connect().await.map_err(StoreError::sql("open the database"))?;
    check_version(&mut conn).await?;
    damage::check(&mut conn, path).await?;
    check_ours(&mut conn, path).await?;
    super::migrations()
        .run_direct(None, &mut conn, false)
        .await
        .map_err(|source| StoreError::Migrate { path: path.display().to_string(), source })?;
    let loaded = load::load(&mut conn).await?;
    Ok((conn, loaded))
}

/// Lets no other user read the database, which has secrets in it, in a directory that others can look
/// into as well. Files that SQLite makes beside it get its mode. What stands against it is SQLite's to
/// tell, whose next call it is in the way of.
fn keep_private(path: &Path) {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    // One that is there isn't opened: to close it again would end the locks that SQLite has on it.
    if rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).is_ok() {
        return;
    }
    for beside in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(beside);
        let Ok(found) = fs::metadata(&name) else { continue };
        let mode = found.permissions().mode();
        if mode & 0o077 == 0 {
            continue;
        }
        if let Err(error) = fs::set_permissions(&name, fs::Permissions::from_mode(0o600)) {
            let path = Path::new(&name).display();
            tracing::warn!(%path, %error, "other users may read the database, which has secrets");
        }
    }
}

/// A database with tables but none of ours is somebody else's.
async fn check_ours(conn: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    let (all, ours): (i64, i64) = sqlx::query_as(
        "SELECT count(*), count(*) FILTER (WHERE name = '_sqlx_migrations')
         FROM sqlite_schema WHERE type = 'table'",
    )
    .fetch_one(conn)
    .await
    .map_err(StoreError::sql("look at the schema"))?;
    if all > 0 && ours == 0 {
        return Err(StoreError::Foreign { path: path.display().to_string() });
    }
    Ok(())
}

impl Store {
    fn new(readers: SqlitePool) -> Self {
        Self { readers: Arc::new(ArcSwap::from_pointee(readers)) }
    }

    /// Reads where the writer writes from now on.
    pub(super) fn read(&self, path: &Path) {
        self.readers.store(Arc::new(readers(path)));
    }
}

impl Reader {
    /// Reads where the writer writes from now on.
    pub(super) fn read(&mut self, path: &Path) {
        *self = Self::new(reading(path));
    }
}

fn make_dir(dir: &Path) -> Result<(), StoreError> {
    if dir.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| {
        StoreError::File { op: "create directory", path: dir.display().to_string(), source }
    })
}

/// Takes the directory itself, and the file in it that others look at, where there can be one.
fn lock(dir: &Path) -> Result<Vec<Lock>, StoreError> {
    let during = |path: &Path| {
        let path = path.display().to_string();
        move |errno: Errno| StoreError::File { op: "open", path, source: errno.into() }
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut files = vec![rustix::fs::open(dir, flags, Mode::empty()).map_err(during(dir))?];
    let path = dir.join(LOCK);
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => files.push(file),
        // The directory is enough.
        Err(Errno::ROFS | Errno::NOSPC | Errno::DQUOT | Errno::IO) => {}
        Err(errno) => return Err(during(&path)(errno)),
    }
    let locked = |file: OwnedFd| {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StoreError::Locked { dir: dir.display().to_string() })?;
        Ok(Lock(file))
    };
    files.into_iter().map(locked).collect()
}

async fn check_version(conn: &mut SqliteConnection) -> Result<(), StoreError> {
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
    use super::{StoreError, is_safe, lock};

    #[test]
    fn what_a_child_still_has_open_of_a_lock_does_not_keep_the_next_out() {
        let dir = tempfile::tempdir().unwrap();
        let locks = lock(dir.path()).unwrap();
        let of_the_child: Vec<_> = locks.iter().map(|lock| lock.0.try_clone().unwrap()).collect();
        assert!(matches!(lock(dir.path()), Err(StoreError::Locked { .. })));
        drop(locks);
        lock(dir.path()).unwrap();
        drop(of_the_child);
    }

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
