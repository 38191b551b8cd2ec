//! A commit as SQLite takes it: statements of many rows, sent in as few round trips as can be.

use sqlx::{
    Arguments as _, AssertSqlSafe, Encode, Sqlite, SqliteConnection, Type, error::BoxDynError,
    sqlite::SqliteArguments,
};

use super::StoreError;

/// Up to so many rows go as one text of all their statements: SQLite's thread is asked once. More
/// go by a text for each statement, as a text of many is seldom seen again.
const TOGETHER: usize = 1024;
/// How many rows a statement takes at most.
const MOST: usize = 256;

/// A statement about rows: what stands before them, the places of one, what stands after them. Rows
/// of nothing but NULL do nothing in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    before: &'static str,
    rows: &'static str,
    places: &'static str,
    after: &'static str,
}

impl Form {
    /// Inserts rows, by an `INSERT` up to its columns. A table's first column is never NULL.
    pub(super) const fn insert(insert: &'static str, places: &'static str) -> Self {
        let after = ") WHERE column1 IS NOT NULL";
        Self { before: insert, rows: " SELECT * FROM (VALUES ", places, after }
    }

    /// Does what the words around the rows say.
    pub(super) const fn new(
        before: &'static str,
        places: &'static str,
        after: &'static str,
    ) -> Self {
        Self { before, rows: "", places, after }
    }

    /// How many values a row has.
    fn width(&self) -> usize {
        self.places.bytes().filter(|byte| *byte == b'?').count()
    }

    /// The text for so many rows.
    fn write(&self, text: &mut String, size: usize) {
        let Self { before, rows, places, after } = *self;
        text.reserve(before.len() + rows.len() + size * (places.len() + 2) + after.len());
        text.push_str(before);
        text.push_str(rows);
        for at in 0..size {
            text.push_str(if at > 0 { ", " } else { "" });
            text.push_str(places);
        }
        text.push_str(after);
    }
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
    /// Of about so many rows.
    pub(super) fn new(rows: usize) -> Self {
        let mut commit = Self {
            together: rows <= TOGETHER,
            text: "BEGIN IMMEDIATE".to_owned(),
            values: Values::default(),
            parts: Vec::new(),
        };
        commit.end_statement();
        commit
    }

    /// Adds what a form does with rows.
    pub(super) fn rows<R>(&mut self, form: Form, rows: &[R], value: impl Fn(&R, &mut Values)) {
        for rows in rows.chunks(MOST) {
            self.statement(form, rows, &value);
        }
    }

    /// Texts are kept prepared, so few differ: a statement's size is a power of two, and NULLs fill
    /// what is over.
    fn statement<R>(&mut self, form: Form, rows: &[R], value: impl Fn(&R, &mut Values)) {
        let size = rows.len().next_power_of_two();
        form.write(&mut self.text, size);
        for row in rows {
            value(row, &mut self.values);
        }
        for _ in 0..form.width() * (size - rows.len()) {
            self.values.add(None::<i64>);
        }
        self.end_statement();
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
    pub(super) async fn run(mut self, conn: &mut SqliteConnection) -> Result<(), StoreError> {
        self.text.push_str("COMMIT");
        self.end_part();
        for (text, values) in self.parts {
            let done = part(conn, text, values).await;
            if let Err(source) = done {
                // It fails where no transaction is open: SQLite rolls some back by itself.
                let _ = sqlx::query("ROLLBACK").execute(conn).await;
                return Err(StoreError::Sql { op: "commit", source });
            }
        }
        Ok(())
    }
}

async fn part(conn: &mut SqliteConnection, text: String, values: Values) -> sqlx::Result<()> {
    if let Some(error) = values.failed {
        return Err(sqlx::Error::Encode(error));
    }
    // The text is made of constants: whatever comes from outside is a value.
    sqlx::query_with(AssertSqlSafe(text), values.arguments).execute(conn).await.map(drop)
}
