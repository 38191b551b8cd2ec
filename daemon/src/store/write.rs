//! The one writer. A commit is one statement, however much it writes: what `batch` in the schema is.

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

/// Rows as one JSON array; `None` of none.
fn json<T: Serialize>(rows: &[T]) -> Result<Option<String>, StoreError> {
    if rows.is_empty() {
        return Ok(None);
    }
    serde_json::to_string(rows)
        .map(Some)
        .map_err(|error| StoreError::Row { table: "batch", message: error.to_string() })
}

/// What is older goes; 0 lets nothing go.
fn since(number: u64) -> Option<i64> {
    (number > 0).then(|| i64::try_from(number).unwrap_or(i64::MAX))
}

impl Writer {
    pub(super) fn new(conn: SqliteConnection, lock: std::os::fd::OwnedFd) -> Self {
        Self { conn, _lock: lock }
    }

    /// Writes all rows at once. When it returns, they are on the disk.
    ///
    /// # Errors
    /// Why nothing was written.
    pub async fn write(&mut self, rows: &Rows) -> Result<(), StoreError> {
        let events = json(&rows.events)?;
        let events_before = since(rows.events_before);
        let reservations = json(&rows.reservations)?;
        let reservations_gone = json(&rows.reservations_gone)?;
        let retarget = json(&rows.retarget)?;
        let targets = json(&rows.targets)?;
        let groups = json(&rows.groups)?;
        let groups_gone = json(&rows.groups_gone)?;
        let devices = json(&rows.devices)?;
        let devices_gone = json(&rows.devices_gone)?;
        let identities = json(&rows.identities)?;
        let baselines = json(&rows.baselines)?;
        let baselines_gone = json(&rows.baselines_gone)?;
        let contexts = json(&rows.contexts)?;
        let contexts_gone = json(&rows.contexts_gone)?;
        let domains = json(&rows.domains)?;
        let domains_gone = json(&rows.domains_gone)?;
        let intents = json(&rows.intents)?;
        let closed = json(&rows.intents_closed)?;
        let steps = json(&rows.steps)?;
        let requests = json(&rows.requests)?;
        let answers = json(&rows.answers)?;
        let history_before = since(rows.history_before_unix_ms);
        let meta = json(&rows.meta)?;
        sqlx::query!(
            "INSERT INTO batch (events, events_before, reservations, reservations_gone, retarget, targets,
                 groups, groups_gone, devices, devices_gone, identities, baselines, baselines_gone,
                 contexts, contexts_gone, domains, domains_gone, intents, intents_closed, steps,
                 requests, answers, history_before_unix_ms, meta)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            events, events_before, reservations, reservations_gone, retarget, targets,
            groups, groups_gone, devices, devices_gone, identities, baselines, baselines_gone,
            contexts, contexts_gone, domains, domains_gone, intents, closed, steps,
            requests, answers, history_before, meta,
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
