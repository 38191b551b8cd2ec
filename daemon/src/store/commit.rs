//! A commit as SQLite takes it: statements of many rows, sent in as few round trips as can be.

use sqlx::{
    Arguments as _, AssertSqlSafe, Encode, Sqlite, SqliteConnection, Type, error::BoxDynError,
    sqlite::SqliteArguments,
};

use super::{Rows, StoreError};

/// Up to so many rows go as one text of all their statements: SQLite's thread is asked once. More
/// go by a text for each statement, as a text of many is seldom seen again.
const TOGETHER: usize = 1024;
/// How many rows a statement takes at most.
const MOST: usize = 256;
/// How long a text of few rows is.
const TEXT: usize = 2048;
/// How many values a row has, more or less.
const ROW: usize = 6;
/// Up to so many rows have a statement of exactly their number.
const FEW: usize = 4;

/// A statement about rows: what stands before them, the places of one, what stands around them. More
/// than [`FEW`] are filled up by rows of nothing but NULL, which do nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    before: &'static str,
    places: &'static str,
    around: Around,
}

/// What stands around the rows.
#[derive(Debug, Clone, Copy)]
enum Around {
    /// What an `INSERT` takes.
    Insert,
    /// What stands after them.
    Words(&'static str),
}

impl Form {
    /// Inserts rows, by an `INSERT` up to its columns. A table's first column is never NULL.
    pub(super) const fn insert(insert: &'static str, places: &'static str) -> Self {
        Self { before: insert, places, around: Around::Insert }
    }

    /// Does what the words around the rows say.
    pub(super) const fn new(
        before: &'static str,
        places: &'static str,
        after: &'static str,
    ) -> Self {
        Self { before, places, around: Around::Words(after) }
    }

    /// How many values a row has.
    fn width(&self) -> usize {
        self.places.bytes().filter(|byte| *byte == b'?').count()
    }

    /// The text for so many rows.
    fn write(&self, text: &mut String, size: usize) {
        let Self { before, places, around } = *self;
        let (rows, after) = match around {
            Around::Words(after) => ("", after),
            Around::Insert if size <= FEW => (" VALUES ", ""),
            Around::Insert => (" SELECT * FROM (VALUES ", ") WHERE column1 IS NOT NULL"),
        };
        text.push_str(before);
        text.push_str(rows);
        for at in 0..size {
            text.push_str(if at > 0 { ", " } else { "" });
            text.push_str(places);
        }
        text.push_str(after);
    }
}

/// The size of the statement for so many rows. Texts are kept prepared, so few differ: above a few rows
/// it is a power of two, and NULLs fill what is over.
const fn size(count: usize) -> usize {
    if count <= FEW { count } else { count.next_power_of_two() }
}

/// Whether all that such rows take is one text.
pub(super) fn is_one_text(rows: &Rows) -> bool {
    rows.len() <= TOGETHER
}

/// The values of a statement, in the order of its places.
#[derive(Debug, Default)]
pub(super) struct Values {
    arguments: SqliteArguments,
    failed: Option<BoxDynError>,
}

impl Values {
    /// Adds the next value.
    pub(super) fn add<'v, T: Encode<'v, Sqlite> + Type<Sqlite>>(&mut self, value: T) -> &mut Self {
        if let Err(error) = self.arguments.add(value) {
            self.failed.get_or_insert(error);
        }
        self
    }

    /// Adds a number of ours. SQLite has none above `i64::MAX`.
    pub(super) fn number(&mut self, value: u64) -> &mut Self {
        self.add(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

/// A transaction in the making.
#[derive(Debug)]
pub(super) struct Commit {
    together: bool,
    text: String,
    values: Values,
    parts: Vec<(String, Values)>,
}

impl Commit {
    /// Of such rows.
    pub(super) fn new(rows: &Rows) -> Self {
        let together = is_one_text(rows);
        let mut commit = Self {
            together,
            text: String::with_capacity(TEXT),
            values: Values::default(),
            parts: Vec::new(),
        };
        commit.text.push_str("BEGIN IMMEDIATE");
        commit.end_statement();
        commit.values.arguments.reserve(rows.len().min(TOGETHER) * ROW, 0);
        commit
    }

    /// Adds what a form does with rows.
    pub(super) fn rows<R>(&mut self, form: Form, rows: Vec<R>, value: impl Fn(R, &mut Values)) {
        let mut rows = rows.into_iter();
        while rows.len() > 0 {
            let count = rows.len().min(MOST);
            form.write(&mut self.text, size(count));
            rows.by_ref().take(count).for_each(|row| value(row, &mut self.values));
            for _ in 0..form.width() * (size(count) - count) {
                self.values.add(None::<i64>);
            }
            self.end_statement();
        }
    }

    fn end_statement(&mut self) {
        if self.together {
            self.text.push_str("; ");
        } else {
            self.end_part();
        }
    }

    fn end_part(&mut self) {
        self.parts.push((std::mem::take(&mut self.text), std::mem::take(&mut self.values)));
    }

    /// Writes all of it. When it returns, it is on the disk; when it fails, nothing is written.
    ///
    /// # Errors
    /// Of SQLite.
    pub(super) async fn run(self, conn: &mut SqliteConnection) -> Result<(), StoreError> {
        let done = self.parts(conn).await;
        if let Err(source) = done {
            // It fails where no transaction is open: SQLite rolls some back by itself.
            let _ = sqlx::query("ROLLBACK").execute(conn).await;
            return Err(StoreError::Sql { op: "commit", source });
        }
        Ok(())
    }

    async fn parts(self, conn: &mut SqliteConnection) -> sqlx::Result<()> {
        let Self { mut text, values, parts, .. } = self;
        for (text, values) in parts {
            part(conn, text, values).await?;
        }
        text.push_str("COMMIT");
        part(conn, text, values).await
    }
}

async fn part(conn: &mut SqliteConnection, text: String, values: Values) -> sqlx::Result<()> {
    if let Some(error) = values.failed {
        return Err(sqlx::Error::Encode(error));
    }
    // The text is made of constants: whatever comes from outside is a value.
    sqlx::query_with(AssertSqlSafe(text), values.arguments).execute(conn).await.map(drop)
}
