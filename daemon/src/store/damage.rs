//! A database that is damaged, or that is gone: it is set aside, and what can't be known any more is
//! marked.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;

use super::{StoreError, fault::primary_code};

/// How long the check at start may take. What it doesn't come to is checked when it is read.
const CHECKING: Duration = Duration::from_secs(2);
/// After how many steps of SQLite's machine the time is looked at.
const STEPS: i32 = 20_000;
/// The result codes of a file that is no database any more: `SQLITE_CORRUPT`, `SQLITE_NOTADB`.
const DAMAGED: [i32; 2] = [11, 26];
/// `SQLITE_INTERRUPT`.
const INTERRUPTED: i32 = 9;

/// That the record was begun anew, and why. It is kept until the first look at the machine has
/// marked what can't be known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryLost {
    /// When, and no event or epoch up to this is given again.
    ///
    /// # Units
    /// Milliseconds since 1970-01-01 UTC.
    pub at_unix_ms: u64,
    /// Where the old database is now; empty where there was none.
    pub set_aside: String,
    /// What was wrong with it.
    pub message: String,
}

/// Whether an error says that the file is damaged.
pub(super) fn is_damage(error: &StoreError) -> bool {
    match error {
        StoreError::Damaged { .. } => true,
        StoreError::Sql { source, .. } => of_sqlx(source),
        StoreError::Migrate { source: sqlx::migrate::MigrateError::Execute(source), .. } => {
            of_sqlx(source)
        }
        _ => false,
    }
}

fn of_sqlx(error: &sqlx::Error) -> bool {
    primary_code(error).is_some_and(|code| DAMAGED.contains(&code))
}

/// Checks a database, as far as that can be done in a bounded time.
///
/// # Errors
/// What is damaged.
pub(super) async fn check(conn: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    let until = Instant::now() + CHECKING;
    let handle = conn.lock_handle().await;
    handle
        .map_err(StoreError::sql("check the database"))?
        .set_progress_handler(STEPS, move || Instant::now() < until);
    let checked: Result<String, _> =
        sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut *conn).await;
    let handle = conn.lock_handle().await;
    handle.map_err(StoreError::sql("check the database"))?.remove_progress_handler();
    match checked {
        Ok(answer) if answer == "ok" => Ok(()),
        Ok(message) => Err(StoreError::Damaged { path: path.display().to_string(), message }),
        Err(error) if primary_code(&error) == Some(INTERRUPTED) => {
            tracing::warn!(within = ?CHECKING, "the database is large: not all of it was checked");
            Ok(())
        }
        Err(source) => Err(StoreError::Sql { op: "check the database", source }),
    }
}

/// Moves a damaged database out of the way, with what belongs to it. Nothing is deleted.
///
/// # Errors
/// It can't be moved.
pub(super) fn set_aside(path: &Path, message: &str) -> Result<HistoryLost, StoreError> {
    let newest = ["", "-wal"].iter().filter_map(|end| changed(&with_end(path, end))).max();
    let now = millis(SystemTime::now());
    // A number that was given since the last write is within a minute of it.
    let at_unix_ms = newest.map_or(now, |changed| now.max(millis(changed).saturating_add(60_000)));
    let name = format!("{}.corrupt-{at_unix_ms}", path.display());
    // The log first: without it nobody takes what is left for the whole.
    for end in ["-wal", "-shm", ""] {
        let (from, to) = (with_end(path, end), PathBuf::from(format!("{name}{end}")));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                let path = from.display().to_string();
                return Err(StoreError::File {
                    op: "set the damaged database aside:",
                    path,
                    source,
                });
            }
            Ok(()) => {}
        }
    }
    tracing::error!(
        set_aside = name,
        message,
        "the database is damaged: it was set aside, and the record begins anew with what the kernel says"
    );
    Ok(HistoryLost { at_unix_ms, set_aside: name, message: message.to_owned() })
}

/// What is to say where a directory was used before, and its database is gone.
pub(super) fn gone(path: &Path) -> HistoryLost {
    let message = format!("{} is gone from a directory that was used before", path.display());
    tracing::error!(message, "the record begins anew with what the kernel says");
    HistoryLost { at_unix_ms: millis(SystemTime::now()), set_aside: String::new(), message }
}

fn with_end(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).and_then(|found| found.modified()).ok()
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
