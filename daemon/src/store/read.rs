//! Reading past events.

use serde::de::DeserializeOwned;

use super::{EventRecord, Store, StoreError};

fn list<T: DeserializeOwned>(json: &str) -> Result<Vec<T>, StoreError> {
    serde_json::from_str(json)
        .map_err(|error| StoreError::Row { table: "events", message: error.to_string() })
}

impl Store {
    /// Events after `since_seq`, oldest first, at most `limit`; of one device, group or reservation
    /// if `object` isn't empty.
    ///
    /// # Errors
    /// Why they could not be read.
    pub async fn events(
        &self,
        since_seq: u64,
        limit: u32,
        object: &str,
    ) -> Result<Vec<EventRecord>, StoreError> {
        let since = i64::try_from(since_seq).unwrap_or(i64::MAX);
        let rows = sqlx::query!(
            r#"SELECT seq, time_unix_ms, boot_id, actor, cause, request_id, kind, groups, devices, reservation, before, after
               FROM events WHERE seq > ?1 AND (?3 = '' OR reservation = ?3
                   OR EXISTS (SELECT 1 FROM json_each(events.groups) WHERE value = ?3)
                   OR EXISTS (SELECT 1 FROM json_each(events.devices) WHERE value = ?3))
               ORDER BY seq LIMIT ?2"#,
            since,
            limit,
            object
        )
        .fetch_all(&**self.readers.load())
        .await
        .map_err(StoreError::sql("read events"))?;
        rows.into_iter()
            .map(|row| {
                Ok(EventRecord {
                    seq: u64::try_from(row.seq).unwrap_or(0),
                    time_unix_ms: u64::try_from(row.time_unix_ms).unwrap_or(0),
                    boot_id: row.boot_id.into(),
                    actor: row.actor,
                    cause: row.cause,
                    request_id: row.request_id,
                    kind: row.kind,
                    groups: list(&row.groups)?,
                    devices: list(&row.devices)?,
                    reservation: row.reservation,
                    before: row.before,
                    after: row.after,
                })
            })
            .collect()
    }

    /// The oldest event that is kept; 0 when there is none.
    ///
    /// # Errors
    /// Why it could not be read.
    pub async fn oldest_seq(&self) -> Result<u64, StoreError> {
        let oldest =
            sqlx::query_scalar!(r#"SELECT coalesce(min(seq), 0) AS "oldest!: i64" FROM events"#)
                .fetch_one(&**self.readers.load())
                .await
                .map_err(StoreError::sql("read the oldest event"))?;
        Ok(u64::try_from(oldest).unwrap_or(0))
    }
}
