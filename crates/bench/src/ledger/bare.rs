//! The peer in Rust: the same rows through sqlx, with nothing above it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, SqlStr, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{
    pairs::id,
    workload::{Commit, Parameter, Statement},
};
use berth_measure::rate;

/// How many pairs ago the reservation was made that is forgotten now, as in `commit.c`.
const AGO: u64 = 512;

/// How statements go to SQLite's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A transaction is one text of many statements: it goes to the thread at once.
    OneRoundTrip,
    /// Each statement is a round trip.
    EachByItself,
}

/// A database and what is written to it.
#[derive(Debug)]
pub(crate) struct Bare {
    database: SqliteConnection,
    commits: Vec<(SqlStr, Commit)>,
    style: Style,
    pair: u64,
    seq: i64,
}

/// Makes an empty database with the ledger's schema.
///
/// # Errors
/// Of the store.
pub(crate) async fn make_schema(dir: &Path) -> Result<()> {
    let pieces = berthd::store::open(dir).await.context("make the schema")?;
    pieces.writer.close().await;
    Ok(())
}

impl Bare {
    /// Opens a new database in a directory.
    ///
    /// # Errors
    /// Of the store.
    pub(crate) async fn open(dir: &Path, commits: &[Commit], style: Style) -> Result<Self> {
        make_schema(dir).await?;
        let options = SqliteConnectOptions::new()
            .filename(dir.join("berth.db"))
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true);
        let database = options.connect().await.context("open the peer's database")?;
        let whole = |commit: &Commit| {
            let statements: Vec<&str> =
                commit.iter().map(|statement| statement.sql.as_str()).collect();
            let text = format!("BEGIN IMMEDIATE; {}; COMMIT", statements.join("; "));
            sqlx::SqlSafeStr::into_sql_str(AssertSqlSafe(text))
        };
        let commits = commits.iter().map(|commit| (whole(commit), commit.clone())).collect();
        Ok(Self { database, commits, style, pair: AGO + 1, seq: 1 })
    }

    /// Pairs in a second.
    ///
    /// # Errors
    /// Of the database.
    pub(crate) async fn slice(&mut self, length: Duration) -> Result<f64> {
        let began = Instant::now();
        let mut done = 0;
        while began.elapsed() < length {
            for at in 0..self.commits.len() {
                self.commit(at).await?;
            }
            self.pair += 1;
            done += 1;
        }
        Ok(rate(done, began.elapsed()))
    }

    async fn commit(&mut self, at: usize) -> Result<()> {
        let Some((whole, commit)) = self.commits.get(at) else { return Ok(()) };
        let pair = self.pair;
        if self.style == Style::OneRoundTrip {
            let mut query = sqlx::query(whole.clone()).persistent(true);
            for parameter in commit.iter().flat_map(|statement| &statement.parameters) {
                query = bind(query, parameter, pair, &mut self.seq);
            }
            query.execute(&mut self.database).await.context("write a transaction")?;
            return Ok(());
        }
        sqlx::query("BEGIN IMMEDIATE").execute(&mut self.database).await?;
        for Statement { sql, parameters } in commit {
            let mut query = sqlx::query(AssertSqlSafe(sql.as_str()));
            for parameter in parameters {
                query = bind(query, parameter, pair, &mut self.seq);
            }
            query.execute(&mut self.database).await.with_context(|| sql.clone())?;
        }
        sqlx::query("COMMIT").execute(&mut self.database).await?;
        Ok(())
    }
}

type Query<'q> = sqlx::query::Query<'q, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

fn bind<'q>(query: Query<'q>, parameter: &Parameter, pair: u64, seq: &mut i64) -> Query<'q> {
    match parameter {
        Parameter::Null => query.bind(None::<String>),
        Parameter::Integer(number) => query.bind(*number),
        Parameter::Sequence => {
            *seq += 1;
            query.bind(*seq)
        }
        Parameter::Text(text) => query.bind(
            text.replace("@NEW@", &id(pair))
                .replace("@OLD@", &id(pair - AGO))
                .replace("@DEV@", "0000:f0:00.0")
                .replace("@GRP@", "g-000000000000"),
        ),
    }
}
