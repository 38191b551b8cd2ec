//! One transaction as one text: a statement for each table that has rows, and no other.
//!
//! Rows go in as a JSON array that SQLite takes apart, so that a statement's text is the same
//! for any number of rows. What a commit changes is one of a few sets of tables: each set's text is
//! prepared once and kept.

use serde::Serialize;
use sqlx::{Arguments as _, sqlite::SqliteArguments};

use super::{Rows, StoreError};

/// The text and its parameters.
#[derive(Debug)]
pub(super) struct Transaction {
    pub(super) text: String,
    pub(super) arguments: SqliteArguments,
}

/// Defines statements of one parameter each, checked against the schema when they are compiled.
macro_rules! statements {
    ($($name:ident $sql:tt)*) => {
        $(const $name: &str = $sql;)*

        #[allow(dead_code, reason = "what it expands to is the check; nobody calls it")]
        fn checked() {
            $(drop(sqlx::query!($sql, ""));)*
        }
    };
}

statements! {
    EVENTS "INSERT INTO events (seq, time_unix_ms, boot_id, actor, cause, request_id, kind, groups, devices, reservation, before, after) \
            SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11 FROM json_each(?)"
    EVENTS_BEFORE "DELETE FROM events WHERE seq <= ?"
    RESERVATIONS_GONE "DELETE FROM reservations WHERE id IN (SELECT value FROM json_each(?))"
    RESERVATIONS "INSERT OR REPLACE INTO reservations (id, record, extra) SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?)"
    RETARGET "DELETE FROM targets WHERE reservation IN (SELECT value FROM json_each(?))"
    TARGETS "INSERT INTO targets (device, group_id, reservation, owner) SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?)"
    GROUPS_GONE "DELETE FROM groups WHERE id IN (SELECT value FROM json_each(?))"
    GROUPS "INSERT OR REPLACE INTO groups (id, record) SELECT value ->> 0, value ->> 1 FROM json_each(?)"
    DEVICES_GONE "DELETE FROM devices WHERE address IN (SELECT value FROM json_each(?))"
    DEVICES "INSERT OR REPLACE INTO devices (address, present, record) SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?)"
    IDENTITIES "INSERT OR REPLACE INTO identities (address, identity) SELECT value ->> 0, value ->> 1 FROM json_each(?)"
    BASELINES "INSERT OR IGNORE INTO baselines (address, driver, driver_override, intent_id) SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?)"
    BASELINES_GONE "DELETE FROM baselines WHERE address IN (SELECT value FROM json_each(?))"
    CONTEXTS_GONE "DELETE FROM contexts WHERE id IN (SELECT value FROM json_each(?))"
    CONTEXTS "INSERT OR REPLACE INTO contexts (id, record) SELECT value ->> 0, value ->> 1 FROM json_each(?)"
    DOMAINS_GONE "DELETE FROM domains WHERE id IN (SELECT value FROM json_each(?))"
    DOMAINS "INSERT OR REPLACE INTO domains (id, record) SELECT value ->> 0, value ->> 1 FROM json_each(?)"
    INTENTS "INSERT INTO intents (id, reservation, body, boot_id, opened_unix_ms) SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?)"
    INTENTS_CLOSED "UPDATE intents SET closed_unix_ms = ended.value ->> 1, outcome = ended.value ->> 2 FROM json_each(?) AS ended WHERE intents.id = ended.value ->> 0"
    INTENTS_BEFORE "DELETE FROM intents WHERE closed_unix_ms < ?"
    STEPS "INSERT INTO intent_steps (intent_id, ordinal, step, detail) SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?)"
    REQUESTS "INSERT INTO request_ids (identity, id, body, created_unix_ms, about, intent_id, answer, refusal) \
              SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7 FROM json_each(?)"
    ANSWERS "UPDATE request_ids SET answer = ended.value ->> 1, refusal = ended.value ->> 2 FROM json_each(?) AS ended \
             WHERE request_ids.intent_id = ended.value ->> 0 AND request_ids.answer IS NULL"
    REQUESTS_BEFORE "DELETE FROM request_ids WHERE created_unix_ms < ?"
    META "INSERT OR REPLACE INTO meta (name, value) SELECT value ->> 0, value ->> 1 FROM json_each(?)"
}

impl Transaction {
    /// The transaction that writes these rows. What moves goes before it comes.
    ///
    /// # Errors
    /// A row can't be written as JSON.
    pub(super) fn of(rows: &Rows) -> Result<Self, StoreError> {
        let text = String::from("BEGIN IMMEDIATE;\n");
        let mut this = Self { text, arguments: SqliteArguments::default() };
        this.rows(EVENTS, &rows.events)?;
        this.before(EVENTS_BEFORE, rows.events_before)?;
        this.rows(RESERVATIONS_GONE, &rows.reservations_gone)?;
        this.rows(RESERVATIONS, &rows.reservations)?;
        this.rows(RETARGET, &rows.retarget)?;
        this.rows(TARGETS, &rows.targets)?;
        this.rows(GROUPS_GONE, &rows.groups_gone)?;
        this.rows(GROUPS, &rows.groups)?;
        this.rows(DEVICES_GONE, &rows.devices_gone)?;
        this.rows(DEVICES, &rows.devices)?;
        this.rows(IDENTITIES, &rows.identities)?;
        this.rows(BASELINES, &rows.baselines)?;
        this.rows(BASELINES_GONE, &rows.baselines_gone)?;
        this.rows(CONTEXTS_GONE, &rows.contexts_gone)?;
        this.rows(CONTEXTS, &rows.contexts)?;
        this.rows(DOMAINS_GONE, &rows.domains_gone)?;
        this.rows(DOMAINS, &rows.domains)?;
        this.rows(INTENTS, &rows.intents)?;
        this.rows(INTENTS_CLOSED, &rows.intents_closed)?;
        this.before(INTENTS_BEFORE, rows.history_before_unix_ms)?;
        this.rows(STEPS, &rows.steps)?;
        this.rows(REQUESTS, &rows.requests)?;
        this.rows(ANSWERS, &rows.answers)?;
        this.before(REQUESTS_BEFORE, rows.history_before_unix_ms)?;
        this.rows(META, &rows.meta)?;
        this.text.push_str("COMMIT");
        Ok(this)
    }

    fn rows<T: Serialize>(&mut self, sql: &str, rows: &[T]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let rows = json(rows)?;
        self.statement(sql, rows)
    }

    /// A statement that lets go what is older; 0 is nothing.
    fn before(&mut self, sql: &str, before: u64) -> Result<(), StoreError> {
        if before == 0 {
            return Ok(());
        }
        self.statement(sql, i64::try_from(before).unwrap_or(i64::MAX))
    }

    fn statement<'a, T>(&mut self, sql: &str, parameter: T) -> Result<(), StoreError>
    where
        T: sqlx::Encode<'a, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite> + 'a,
    {
        self.text.push_str(sql);
        self.text.push_str(";\n");
        self.arguments
            .add(parameter)
            .map_err(|error| StoreError::Row { table: "batch", message: error.to_string() })
    }
}

/// Rows as one JSON array.
pub(super) fn json<T: Serialize>(rows: &[T]) -> Result<String, StoreError> {
    serde_json::to_string(rows)
        .map_err(|error| StoreError::Row { table: "batch", message: error.to_string() })
}
