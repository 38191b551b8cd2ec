//! The one writer. A transaction is one round trip to SQLite's thread, however much it writes.

use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};

use super::{Rows, StoreError, StoredRequest, transaction::Transaction};

/// The only connection that writes.
#[derive(Debug)]
pub struct Writer {
    conn: SqliteConnection,
    /// Held as long as the writer lives, so that no second daemon writes.
    _lock: std::os::fd::OwnedFd,
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

    async fn transaction(&mut self, rows: &Rows) -> Result<(), StoreError> {
        let Transaction { text, arguments } = Transaction::of(rows)?;
        sqlx::query_with(AssertSqlSafe(text), arguments)
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
        let keys = super::transaction::json(keys)?;
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
