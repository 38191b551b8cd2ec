//! A commit as SQLite takes it: statements of many rows, sent in as few round trips as pay.

use sqlx::{
    Arguments as _, AssertSqlSafe, Encode, Sqlite, SqliteConnection, Type, error::BoxDynError,
    sqlite::SqliteArguments,
};

use super::StoreError;

/// Up to so many rows go as one text of all their statements: SQLite's thread is asked once. Texts
/// differ by their numbers of rows, and each that is kept prepared takes memory, so more rows go
/// by statements of fixed sizes.
const TOGETHER: usize = 32;
/// How many rows a statement takes where there are many.
const SIZES: [usize; 4] = [64, 16, 4, 1];

/// A statement about rows: what stands before them, the places of one, what stands after them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form(pub(super) &'static str, pub(super) &'static str, pub(super) &'static str);

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
        let mut left = rows;
        while !left.is_empty() {
            let size = match self.together {
                true => left.len(),
                false => SIZES.into_iter().find(|size| *size <= left.len()).unwrap_or(1),
            };
            let (now, later) = left.split_at(size);
            left = later;
            self.statement(form, now, &value);
        }
    }

    fn statement<R>(&mut self, form: Form, rows: &[R], value: impl Fn(&R, &mut Values)) {
        let Form(before, places, after) = form;
        self.text.reserve(before.len() + rows.len() * (places.len() + 2) + after.len());
        self.text.push_str(before);
        for (at, row) in rows.iter().enumerate() {
            if at > 0 {
                self.text.push_str(", ");
            }
            self.text.push_str(places);
            value(row, &mut self.values);
        }
        self.text.push_str(after);
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
