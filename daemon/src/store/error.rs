//! What can go wrong with the store.

/// The store could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The library is too old.
    #[error(
        "SQLite {found} can corrupt a database in WAL mode; 3.51.3 or newer is needed: build with \
         the bundled one"
    )]
    OldSqlite {
        /// The version found.
        found: String,
    },
    /// Another daemon has the directory.
    #[error("another berthd uses the state directory {dir}: stop it, or give another --state-dir")]
    Locked {
        /// The directory.
        dir: String,
    },
    /// A file operation.
    #[error("{op} {path}")]
    File {
        /// What was attempted.
        op: &'static str,
        /// On which path.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// SQLite.
    #[error("{op} in the store")]
    Sql {
        /// What was attempted.
        op: &'static str,
        /// Why not.
        source: sqlx::Error,
    },
    /// The schema could not be brought up to date.
    #[error(
        "migrate the store {path}: is it from a newer berthd? Run that one, or restore a backup"
    )]
    Migrate {
        /// The database.
        path: String,
        /// Why not.
        source: sqlx::migrate::MigrateError,
    },
    /// The database is open for nobody: it could not be opened since it failed.
    #[error("the database is not open")]
    Away,
    /// What is on the disk isn't what was committed.
    #[error("{path} has {found} where {wanted} was committed")]
    Otherwise {
        /// The database.
        path: String,
        /// What is there.
        found: String,
        /// What should be.
        wanted: String,
    },
    /// The file is a database of somebody else.
    #[error(
        "{path} is no database of berthd: it has tables of its own; name another --state-dir, or move it away"
    )]
    Foreign {
        /// The database.
        path: String,
    },
    /// The file is damaged.
    #[error("{path} is damaged: {message}")]
    Damaged {
        /// The database.
        path: String,
        /// What SQLite says.
        message: String,
    },
    /// A row isn't what it should be.
    #[error("row of {table} in the store can't be understood: {message}")]
    Row {
        /// The table.
        table: &'static str,
        /// What is wrong.
        message: String,
    },
}

impl StoreError {
    pub(super) fn sql(op: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Sql { op, source }
    }

    /// The error with its causes, in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }
}
