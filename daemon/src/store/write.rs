//! The one writer. A transaction is one round trip to SQLite's thread, however much it writes.

use serde::Serialize;
use sqlx::{Connection as _, SqliteConnection};

use super::{Rows, StoreError, StoredRequest};

/// The only connection that writes.
#[derive(Debug)]
pub struct Writer {
    conn: SqliteConnection,
    /// Held as long as the writer lives, so that no second daemon writes.
    _lock: std::os::fd::OwnedFd,
}

fn json<T: Serialize>(rows: &[T]) -> Result<String, StoreError> {
    if rows.is_empty() {
        return Ok("[]".to_owned());
    }
    serde_json::to_string(rows)
        .map_err(|error| StoreError::Row { table: "batch", message: error.to_string() })
}

fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Writer {
    pub(super) fn new(conn: SqliteConnection, lock: std::os::fd::OwnedFd) -> Self {
        Self { conn, _lock: lock }
    }

    /// Writes all rows in one transaction. When it returns, they are on the disk.
    ///
    /// # Errors
    /// Why nothing was written.
    pub async fn write(&mut self, rows: &Rows) -> Result<(), StoreError> {
        let written = self.transaction(rows).await;
        if written.is_err() {
            // Without an open transaction this fails, and nothing has to be done.
            let _ = sqlx::raw_sql("ROLLBACK").execute(&mut self.conn).await;
        }
        written
    }

    #[allow(
        clippy::too_many_lines,
        reason = "one statement per table; splitting it costs round trips"
    )]
    async fn transaction(&mut self, rows: &Rows) -> Result<(), StoreError> {
        let (events_before, history) =
            (integer(rows.events_before), integer(rows.history_before_unix_ms));
        let events = json(&rows.events)?;
        let reservations_gone = json(&rows.reservations_gone)?;
        let reservations = json(&rows.reservations)?;
        let retarget = json(&rows.retarget)?;
        let targets = json(&rows.targets)?;
        let groups_gone = json(&rows.groups_gone)?;
        let groups = json(&rows.groups)?;
        let devices_gone = json(&rows.devices_gone)?;
        let devices = json(&rows.devices)?;
        let identities = json(&rows.identities)?;
        let baselines = json(&rows.baselines)?;
        let baselines_gone = json(&rows.baselines_gone)?;
        let contexts_gone = json(&rows.contexts_gone)?;
        let contexts = json(&rows.contexts)?;
        let domains_gone = json(&rows.domains_gone)?;
        let domains = json(&rows.domains)?;
        let intents = json(&rows.intents)?;
        let closed = json(&rows.intents_closed)?;
        let steps = json(&rows.steps)?;
        let requests = json(&rows.requests)?;
        let answers = json(&rows.answers)?;
        let meta = json(&rows.meta)?;
        sqlx::query!(
            r#"BEGIN IMMEDIATE;
INSERT INTO events (seq, time_unix_ms, boot_id, actor, cause, request_id, kind, groups, devices, reservation, before, after)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10, value ->> 11 FROM json_each(?);
DELETE FROM events WHERE seq <= ?;
DELETE FROM reservations WHERE id IN (SELECT value FROM json_each(?));
INSERT OR REPLACE INTO reservations (id, record, extra) SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?);
DELETE FROM targets WHERE reservation IN (SELECT value FROM json_each(?));
INSERT INTO targets (device, group_id, reservation, owner) SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?);
DELETE FROM groups WHERE id IN (SELECT value FROM json_each(?));
INSERT OR REPLACE INTO groups (id, record) SELECT value ->> 0, value ->> 1 FROM json_each(?);
DELETE FROM devices WHERE address IN (SELECT value FROM json_each(?));
INSERT OR REPLACE INTO devices (address, present, record) SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?);
INSERT OR REPLACE INTO identities (address, identity) SELECT value ->> 0, value ->> 1 FROM json_each(?);
INSERT OR IGNORE INTO baselines (address, driver, driver_override, intent_id) SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?);
DELETE FROM baselines WHERE address IN (SELECT value FROM json_each(?));
DELETE FROM contexts WHERE id IN (SELECT value FROM json_each(?));
INSERT OR REPLACE INTO contexts (id, record) SELECT value ->> 0, value ->> 1 FROM json_each(?);
DELETE FROM domains WHERE id IN (SELECT value FROM json_each(?));
INSERT OR REPLACE INTO domains (id, record) SELECT value ->> 0, value ->> 1 FROM json_each(?);
INSERT INTO intents (id, reservation, body, boot_id, opened_unix_ms) SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?);
UPDATE intents SET closed_unix_ms = ended.value ->> 1, outcome = ended.value ->> 2 FROM json_each(?) AS ended WHERE intents.id = ended.value ->> 0;
DELETE FROM intents WHERE closed_unix_ms < ?;
INSERT INTO intent_steps (intent_id, ordinal, step, detail) SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(?);
INSERT INTO request_ids (identity, id, body, created_unix_ms, about, intent_id, answer, refusal)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7 FROM json_each(?);
UPDATE request_ids SET answer = ended.value ->> 1, refusal = ended.value ->> 2 FROM json_each(?) AS ended
    WHERE request_ids.intent_id = ended.value ->> 0 AND request_ids.answer IS NULL;
DELETE FROM request_ids WHERE created_unix_ms < ?;
INSERT OR REPLACE INTO meta (name, value) SELECT value ->> 0, value ->> 1 FROM json_each(?);
COMMIT"#,
            events, events_before, reservations_gone, reservations, retarget, targets, groups_gone,
            groups, devices_gone, devices, identities, baselines, baselines_gone, contexts_gone,
            contexts, domains_gone, domains, intents, closed, history, steps, requests, answers,
            history, meta,
        )
        .execute(&mut self.conn)
        .await
        .map(drop)
        .map_err(StoreError::sql("commit"))
    }

    /// The stored requests among these, asked for by identity and id.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn requests(
        &mut self,
        keys: &[(String, String)],
    ) -> Result<Vec<StoredRequest>, StoreError> {
        let keys = json(keys)?;
        let rows = sqlx::query!(
            r#"SELECT request_ids.identity AS "identity!", request_ids.id AS "id!", body, created_unix_ms, about, intent_id, answer, refusal
               FROM json_each(?) AS asked JOIN request_ids
               ON request_ids.identity = asked.value ->> 0 AND request_ids.id = asked.value ->> 1"#,
            keys
        )
        .fetch_all(&mut self.conn)
        .await
        .map_err(StoreError::sql("read request ids"))?;
        Ok(rows
            .into_iter()
            .map(|row| StoredRequest {
                identity: row.identity,
                id: row.id,
                body: row.body,
                created_unix_ms: u64::try_from(row.created_unix_ms).unwrap_or(0),
                about: row.about,
                intent: row.intent_id.and_then(|id| u64::try_from(id).ok()),
                answer: row.answer,
                refusal: row.refusal,
            })
            .collect())
    }

    /// Closes the connection, so that the WAL is folded back into the database.
    pub async fn close(self) {
        if let Err(error) = self.conn.close().await {
            tracing::warn!(%error, "closing the store");
        }
    }

    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.conn
    }
}
