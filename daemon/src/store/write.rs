//! The one writer, and the statements of a commit. Their order matters where rows go and come.

use std::{mem, sync::Arc};

use sqlx::{Connection as _, SqliteConnection};

use super::{
    BaselineRow, ClosedIntentRow, DeviceRow, IntentRow, Locked, Rows, StepRow, StoreError,
    TargetRow,
    commit::{Commit, Form, Values},
    copy::Copied,
    going::Bell,
};
use crate::json;

/// The only connection that writes.
#[derive(Debug)]
pub struct Writer {
    /// None while the database can't be opened.
    pub(super) conn: Option<SqliteConnection>,
    pub(super) bell: Arc<Bell>,
    /// Held as long as the writer lives, so that no second daemon writes.
    pub(super) locked: Locked,
    /// Where others read meanwhile.
    pub(super) copied: Option<Copied>,
}

impl Writer {
    pub(super) fn away(locked: Locked, copied: Copied) -> Self {
        Self { conn: None, bell: Arc::default(), locked, copied: Some(copied) }
    }

    /// # Errors
    /// The connection is gone.
    pub(super) async fn new(
        mut conn: SqliteConnection,
        locked: Locked,
    ) -> Result<Self, StoreError> {
        let bell = Arc::default();
        Bell::hang_on(&bell, &mut conn).await?;
        Ok(Self { conn: Some(conn), bell, locked, copied: None })
    }

    /// Writes all rows at once. When it returns, they are on the disk.
    ///
    /// # Errors
    /// Why nothing was written.
    pub async fn write(&mut self, mut rows: Rows) -> Result<(), StoreError> {
        let mut commit = Commit::new(&rows);
        history(&mut commit, &mut rows);
        records(&mut commit, &mut rows);
        work(&mut commit, &mut rows);
        drop(rows);
        commit.run(self.conn.as_mut().ok_or(StoreError::Away)?).await
    }

    /// Closes the connection, so that the WAL is folded back into the database.
    pub async fn close(self) {
        if let Some(conn) = self.conn
            && let Err(error) = conn.close().await
        {
            tracing::warn!(%error, "closing the store");
        }
    }
}

fn history(commit: &mut Commit, rows: &mut Rows) {
    commit.rows(
        Form::insert("INSERT INTO events (seq, time_unix_ms, boot_id, actor, cause, request_id, kind, groups, \
             devices, reservation, before, after)", "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"),
        mem::take(&mut rows.events),
        |event, values| {
            values.number(event.seq).number(event.time_unix_ms).add(Arc::clone(&event.boot_id));
            values.add(&*event.actor).add(&*event.cause).add(&*event.request_id).add(&*event.kind);
            values.add(list(&event.groups)).add(list(&event.devices)).add(&*event.reservation);
            values.add(event.before.as_deref()).add(event.after.as_deref());
        },
    );
    let before = some(rows.events_before);
    commit.rows(Form::new("DELETE FROM events WHERE seq <= ", "?", ""), before, number);
    let before = some(rows.history_before_unix_ms);
    commit.rows(
        Form::new("DELETE FROM intents WHERE closed_unix_ms < ", "?", ""),
        before.clone(),
        number,
    );
    commit.rows(
        Form::new("DELETE FROM request_ids WHERE created_unix_ms < ", "?", ""),
        before,
        number,
    );
    commit.rows(
        Form::insert("INSERT OR REPLACE INTO meta (name, value)", "(?, ?)"),
        mem::take(&mut rows.meta),
        pair,
    );
}

fn records(commit: &mut Commit, rows: &mut Rows) {
    commit.rows(
        Form::insert("INSERT OR REPLACE INTO reservations (id, record, extra)", "(?, ?, ?)"),
        mem::take(&mut rows.reservations),
        |(id, record, extra), values| {
            values.add(id).add(record).add(extra);
        },
    );
    commit.rows(
        Form::new("DELETE FROM reservations WHERE id IN (", "?", ")"),
        mem::take(&mut rows.reservations_gone),
        text,
    );
    // What moves goes before it comes: a device has one reservation.
    commit.rows(
        Form::new("DELETE FROM targets WHERE reservation IN (", "?", ")"),
        mem::take(&mut rows.retarget),
        text,
    );
    commit.rows(
        Form::insert("INSERT INTO targets (device, group_id, reservation, owner)", "(?, ?, ?, ?)"),
        mem::take(&mut rows.targets),
        |TargetRow(device, group, reservation, owner), values| {
            values.add(device).add(group).add(reservation).add(owner);
        },
    );
    let put = |insert| Form::insert(insert, "(?, ?)");
    commit.rows(
        put("INSERT OR REPLACE INTO groups (id, record)"),
        mem::take(&mut rows.groups),
        pair,
    );
    commit.rows(
        Form::new("DELETE FROM groups WHERE id IN (", "?", ")"),
        mem::take(&mut rows.groups_gone),
        text,
    );
    commit.rows(
        put("INSERT OR REPLACE INTO contexts (id, record)"),
        mem::take(&mut rows.contexts),
        pair,
    );
    commit.rows(
        Form::new("DELETE FROM contexts WHERE id IN (", "?", ")"),
        mem::take(&mut rows.contexts_gone),
        text,
    );
    commit.rows(
        put("INSERT OR REPLACE INTO domains (id, record)"),
        mem::take(&mut rows.domains),
        pair,
    );
    commit.rows(
        Form::new("DELETE FROM domains WHERE id IN (", "?", ")"),
        mem::take(&mut rows.domains_gone),
        text,
    );
    devices(commit, rows);
}

fn devices(commit: &mut Commit, rows: &mut Rows) {
    commit.rows(
        Form::insert("INSERT OR REPLACE INTO devices (address, present, record)", "(?, ?, ?)"),
        mem::take(&mut rows.devices),
        |DeviceRow(address, present, record), values| {
            values.add(address).add(present).add(record);
        },
    );
    commit.rows(
        Form::new("DELETE FROM devices WHERE address IN (", "?", ")"),
        mem::take(&mut rows.devices_gone),
        text,
    );
    commit.rows(
        Form::insert("INSERT OR REPLACE INTO identities (address, identity)", "(?, ?)"),
        mem::take(&mut rows.identities),
        pair,
    );
    commit.rows(
        Form::insert(
            "INSERT OR IGNORE INTO baselines (address, driver, driver_override, intent_id)",
            "(?, ?, ?, ?)",
        ),
        mem::take(&mut rows.baselines),
        |BaselineRow(address, driver, driver_override, intent), values| {
            values.add(address).add(driver).add(driver_override).number(intent);
        },
    );
    commit.rows(
        Form::new("DELETE FROM baselines WHERE address IN (", "?", ")"),
        mem::take(&mut rows.baselines_gone),
        text,
    );
    commit.rows(
        Form::insert("INSERT OR IGNORE INTO vf_tokens (address, token)", "(?, ?)"),
        mem::take(&mut rows.vf_tokens),
        |(address, token), values| {
            values.add(address).add(token.text());
        },
    );
    commit.rows(
        Form::new("DELETE FROM vf_tokens WHERE address IN (", "?", ")"),
        mem::take(&mut rows.vf_tokens_gone),
        text,
    );
}

/// Intents and request ids: each can be opened and ended in one commit.
fn work(commit: &mut Commit, rows: &mut Rows) {
    commit.rows(
        Form::insert(
            "INSERT INTO intents (id, reservation, body, boot_id, opened_unix_ms)",
            "(?, ?, ?, ?, ?)",
        ),
        mem::take(&mut rows.intents),
        |IntentRow(id, reservation, body, boot_id, opened), values| {
            values.number(id).add(reservation).add(body).add(boot_id).number(opened);
        },
    );
    commit.rows(
        Form::new("UPDATE intents SET closed_unix_ms = ended.column2, outcome = ended.column3 FROM (VALUES ", "(?, ?, ?)", ") AS ended WHERE intents.id = ended.column1"),
        mem::take(&mut rows.intents_closed),
        |ClosedIntentRow(id, closed, outcome), values| {
            values.number(id).number(closed).add(outcome);
        },
    );
    commit.rows(
        Form::insert("INSERT INTO intent_steps (intent_id, ordinal, step, detail)", "(?, ?, ?, ?)"),
        mem::take(&mut rows.steps),
        |StepRow(intent, ordinal, step, detail), values| {
            values.number(intent).number(ordinal).add(step).add(detail);
        },
    );
    requests(commit, rows);
}

fn requests(commit: &mut Commit, rows: &mut Rows) {
    commit.rows(
        Form::insert("INSERT INTO request_ids (identity, id, body, created_unix_ms, about, intent_id, answer, \
             refusal)", "(?, ?, ?, ?, ?, ?, ?, ?)"),
        mem::take(&mut rows.requests),
        |request, values| {
            values.add(request.identity).add(request.id).add(request.body);
            values.number(request.created_unix_ms).add(request.about);
            values.add(request.intent.map(|id| i64::try_from(id).unwrap_or(i64::MAX)));
            values.add(request.answer).add(request.refusal);
        },
    );
    commit.rows(
        Form::new(
            "UPDATE request_ids SET answer = ended.column2, refusal = ended.column3 FROM (VALUES ",
            "(?, ?, ?)",
            ") AS ended WHERE request_ids.intent_id = ended.column1 AND request_ids.answer IS NULL",
        ),
        mem::take(&mut rows.answers),
        |(intent, answer, refusal), values| {
            values.number(intent).add(answer).add(refusal);
        },
    );
}

fn text(value: String, values: &mut Values) {
    values.add(value);
}

fn number(value: u64, values: &mut Values) {
    values.number(value);
}

fn pair((id, record): (String, String), values: &mut Values) {
    values.add(id).add(record);
}

/// A bound; 0 is none.
fn some(number: u64) -> Vec<u64> {
    if number > 0 { vec![number] } else { Vec::new() }
}

/// A JSON array of names.
fn list(names: &[String]) -> String {
    // Strings can always be serialized.
    json::to_string(names).unwrap_or_default()
}
