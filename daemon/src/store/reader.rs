//! The ledger's own reader: request ids. It waits for no write, and sees what is on the disk.

use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{StoreError, StoredRequest};

/// A connection that reads alone. It is made when it is first needed.
#[derive(Debug)]
pub struct Reader {
    options: SqliteConnectOptions,
    conn: Option<SqliteConnection>,
}

/// Requests as one JSON array.
fn json(keys: &[(String, String)]) -> Result<String, StoreError> {
    serde_json::to_string(keys)
        .map_err(|error| StoreError::Row { table: "request_ids", message: error.to_string() })
}

impl Reader {
    pub(super) fn new(options: SqliteConnectOptions) -> Self {
        Self { options, conn: None }
    }

    /// The stored requests among these, asked for by identity and id.
    ///
    /// # Errors
    /// Why they could not be read. The next time another connection is tried.
    pub async fn requests(
        &mut self,
        keys: &[(String, String)],
    ) -> Result<Vec<StoredRequest>, StoreError> {
        let mut conn = self.connection().await?;
        let stored = requests(&mut conn, keys).await?;
        self.conn = Some(conn);
        Ok(stored)
    }

    /// Identities and ids of the stored requests, so many at most.
    ///
    /// # Errors
    /// Why they could not be read. The next time another connection is tried.
    pub async fn ids(&mut self, most: usize) -> Result<Vec<(String, String)>, StoreError> {
        let mut conn = self.connection().await?;
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let ids = sqlx::query!("SELECT identity, id FROM request_ids LIMIT ?", most)
            .map(|row| (row.identity, row.id))
            .fetch_all(&mut conn)
            .await
            .map_err(StoreError::sql("read request ids"))?;
        self.conn = Some(conn);
        Ok(ids)
    }

    async fn connection(&mut self) -> Result<SqliteConnection, StoreError> {
        match self.conn.take() {
            Some(conn) => Ok(conn),
            None => self.options.connect().await.map_err(StoreError::sql("open the database")),
        }
    }

    /// Closes the connection.
    pub async fn close(self) {
        if let Some(conn) = self.conn
            && let Err(error) = conn.close().await
        {
            tracing::warn!(%error, "closing the store's reader");
        }
    }
}

async fn requests(
    conn: &mut SqliteConnection,
    keys: &[(String, String)],
) -> Result<Vec<StoredRequest>, StoreError> {
    let keys = json(keys)?;
    let rows = sqlx::query!(
        r#"SELECT request_ids.identity AS "identity!", request_ids.id AS "id!", body, created_unix_ms, about, intent_id, answer, refusal
               FROM json_each(?) AS asked JOIN request_ids
               ON request_ids.identity = asked.value ->> 0 AND request_ids.id = asked.value ->> 1"#,
        keys
    )
    .fetch_all(conn)
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
