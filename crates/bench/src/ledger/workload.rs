//! What a pair of commands changes in the database, as statements with parameters.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use sqlx::{AssertSqlSafe, ConnectOptions as _, SqliteConnection, sqlite::SqliteConnectOptions};

use super::pairs::Pairs;

/// Pairs before the one that is taken, so that old reservations are forgotten as they are later.
const BEFORE: usize = 600;

/// A parameter of a statement.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Parameter {
    /// NULL.
    Null,
    /// As it is.
    Integer(i64),
    /// The next sequence number.
    Sequence,
    /// With the marks `@NEW@`, `@OLD@`, `@DEV@`, `@GRP@`.
    Text(String),
}

/// One statement.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    pub(crate) sql: String,
    pub(crate) parameters: Vec<Parameter>,
}

/// All that one command changes.
pub(crate) type Commit = Vec<Statement>;

#[derive(Debug)]
struct Table {
    name: String,
    columns: Vec<String>,
    keys: Vec<usize>,
    rows: BTreeMap<String, Vec<Value>>,
}

/// The marks of one pair: what stands for what.
struct Marks {
    new: String,
    device: String,
    group: String,
}

/// Makes a pair on a ledger and takes what it changed.
///
/// # Errors
/// The database can't be read.
pub(crate) async fn capture(pairs: &Pairs, dir: &Path) -> Result<Vec<Commit>> {
    for pair in 0..BEFORE {
        let id = pairs.reserve(pair % pairs.groups()).await?;
        pairs.release(&id).await?;
    }
    let options = SqliteConnectOptions::new().filename(dir.join("berth.db")).read_only(true);
    let mut database = options.connect().await.context("open the ledger's database")?;
    let before = tables(&mut database).await?;
    let id = pairs.reserve(0).await?;
    let between = tables(&mut database).await?;
    pairs.release(&id).await?;
    let after = tables(&mut database).await?;
    let target = between.iter().find(|table| table.name == "targets").context("no targets")?;
    let target = target.rows.values().next().context("the reservation has no target")?;
    let text = |at: usize| target.get(at).and_then(Value::as_str).unwrap_or("").to_owned();
    let marks = Marks { new: id, device: text(0), group: text(1) };
    let commits = vec![changes(&before, &between, &marks), changes(&between, &after, &marks)];
    if commits.iter().any(|commit| commit.len() < 2) {
        bail!("a command changed nothing: {commits:?}");
    }
    Ok(commits)
}

async fn tables(database: &mut SqliteConnection) -> Result<Vec<Table>> {
    let names: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE '\\_%' ESCAPE '\\' \
         AND name NOT LIKE 'sqlite%' ORDER BY name = 'targets', name",
    )
    .fetch_all(&mut *database)
    .await
    .context("list the tables")?;
    let mut tables = Vec::new();
    for name in names {
        tables.push(table(database, name).await?);
    }
    Ok(tables)
}

async fn table(database: &mut SqliteConnection, name: String) -> Result<Table> {
    let about: Vec<(String, i64)> =
        sqlx::query_as("SELECT name, pk FROM pragma_table_xinfo(?) WHERE hidden = 0")
            .bind(&name)
            .fetch_all(&mut *database)
            .await
            .with_context(|| format!("the columns of {name}"))?;
    let columns: Vec<String> = about.iter().map(|(column, _)| column.clone()).collect();
    let keys: Vec<usize> =
        about.iter().enumerate().filter(|(_, (_, key))| *key > 0).map(|(at, _)| at).collect();
    let sql = format!("SELECT json_array({}) FROM {name}", columns.join(", "));
    let found: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_all(database)
        .await
        .with_context(|| format!("the rows of {name}"))?;
    let mut rows = BTreeMap::new();
    for row in found {
        let row: Vec<Value> = serde_json::from_str(&row)?;
        let key: Vec<String> =
            keys.iter().filter_map(|at| row.get(*at)).map(Value::to_string).collect();
        rows.insert(key.join(","), row);
    }
    Ok(Table { name, columns, keys, rows })
}

/// Deletions first, so that a row can move.
fn changes(before: &[Table], after: &[Table], marks: &Marks) -> Commit {
    let (mut gone, mut written) = (Vec::new(), Vec::new());
    for (was, is) in before.iter().zip(after) {
        for (_, row) in was.rows.iter().filter(|(key, _)| !is.rows.contains_key(*key)) {
            gone.push(delete(was, row, marks));
        }
        for (_, row) in is.rows.iter().filter(|(key, row)| was.rows.get(*key) != Some(*row)) {
            written.push(insert(is, row, marks));
        }
    }
    gone.append(&mut written);
    gone
}

fn insert(table: &Table, row: &[Value], marks: &Marks) -> Statement {
    let verb = match table.name.as_str() {
        "events" | "targets" => "INSERT",
        _ => "INSERT OR REPLACE",
    };
    let places = vec!["?"; row.len()].join(", ");
    let (name, columns) = (&table.name, table.columns.join(", "));
    let parameters = row.iter().zip(&table.columns);
    Statement {
        sql: format!("{verb} INTO {name} ({columns}) VALUES ({places})"),
        parameters: parameters.map(|(value, column)| parameter(value, column, marks)).collect(),
    }
}

fn delete(table: &Table, row: &[Value], marks: &Marks) -> Statement {
    let columns = table.keys.iter().filter_map(|at| table.columns.get(*at));
    let tests: Vec<String> = columns.map(|column| format!("{column} = ?")).collect();
    let parameters =
        table.keys.iter().filter_map(|at| Some((row.get(*at)?, table.columns.get(*at)?)));
    Statement {
        sql: format!("DELETE FROM {} WHERE {}", table.name, tests.join(" AND ")),
        parameters: parameters.map(|(value, column)| parameter(value, column, marks)).collect(),
    }
}

fn parameter(value: &Value, column: &str, marks: &Marks) -> Parameter {
    match value {
        Value::Null => Parameter::Null,
        Value::Number(_) if column == "seq" => Parameter::Sequence,
        Value::Number(number) => Parameter::Integer(number.as_i64().unwrap_or(0)),
        Value::String(text) => Parameter::Text(mark(text, marks)),
        other => Parameter::Text(mark(&other.to_string(), marks)),
    }
}

fn mark(text: &str, marks: &Marks) -> String {
    let text = text
        .replace(&marks.new, "@NEW@")
        .replace(&marks.device, "@DEV@")
        .replace(&marks.group, "@GRP@");
    // What is left of other pairs is a reservation that is forgotten.
    let mut rest = text.as_str();
    let mut marked = String::with_capacity(text.len());
    while let Some((before, after)) = rest.split_once("ba5e") {
        let is_id = after.get(..8).is_some_and(|id| id.bytes().all(|b| b.is_ascii_hexdigit()));
        marked.push_str(before);
        marked.push_str(if is_id { "@OLD@" } else { "ba5e" });
        rest = if is_id { after.get(8..).unwrap_or("") } else { after };
    }
    marked.push_str(rest);
    marked
}

/// The form that the peer in C reads.
pub(crate) fn text(commits: &[Commit]) -> String {
    let mut text = String::new();
    for commit in commits {
        text.push_str("commit\n");
        for statement in commit {
            text.push_str(&statement.sql);
            for parameter in &statement.parameters {
                text.push('\t');
                match parameter {
                    Parameter::Null => text.push('n'),
                    Parameter::Integer(number) => text.push_str(&format!("i{number}")),
                    Parameter::Sequence => text.push('q'),
                    Parameter::Text(of) => text.push_str(&format!("s{of}")),
                }
            }
            text.push('\n');
        }
    }
    text
}
