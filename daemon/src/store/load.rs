//! Reading all current rows, once, at start.

use berth_ownership::{Context, Device, Domain, Epoch, Group, Parts, Reservation};
use berth_uapi::VfToken;
use serde::de::DeserializeOwned;
use sqlx::SqliteConnection;

use super::{
    HistoryLost, StoreError,
    parsing::{self, Parsing},
};
use crate::model::{AnswerOf, Baseline, Extra, Intent, OpenIntent, StepNote};

/// Everything that is current.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The state's parts.
    pub parts: Parts,
    /// What is known of reservations beside the record.
    pub extras: Vec<(String, Extra)>,
    /// Baselines.
    pub baselines: Vec<Baseline>,
    /// VF tokens by the address of the physical function.
    pub vf_tokens: Vec<(String, VfToken)>,
    /// Identities by address.
    pub identities: Vec<(String, String)>,
    /// Intents without an outcome.
    pub intents: Vec<OpenIntent>,
    /// What requests are about whose kernel work hasn't ended, by intent.
    pub waiting: Vec<(u64, AnswerOf)>,
    /// The last event.
    pub last_seq: u64,
    /// The oldest event that is kept.
    pub oldest_seq: u64,
    /// The highest intent ever.
    pub last_intent: u64,
    /// The boot that was written last.
    pub boot_id: Option<String>,
    /// That the record was begun anew, until the machine was looked at.
    pub history_lost: Option<HistoryLost>,
}

fn parse<T: DeserializeOwned>(table: &'static str, json: &str) -> Result<T, StoreError> {
    serde_json::from_str(json).map_err(|error| parsing::row(table, &error))
}

fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// Reads a table in parts that follow each other by key, and has each part taken apart while the
/// next one is read. Parts are small beside the whole, so that the same memory serves many of them,
/// and not so small that handing them over costs as much as reading them.
///
/// The query has the last key of a part as `last` and its rows as JSON values in `list`, both NULL
/// when there are no more.
macro_rules! read {
    ($conn:expr, $table:literal, $query:literal) => {{
        let parsing = Parsing::start($table);
        let mut last = String::new();
        loop {
            let part = sqlx::query!($query, last)
                .fetch_one(&mut *$conn)
                .await
                .map_err(StoreError::sql(concat!("read the ", $table)))?;
            let (Some(next), Some(list)) = (part.last, part.list) else { break };
            parsing.push(list);
            last = next;
        }
        parsing
    }};
}

/// Reads all current rows.
///
/// # Errors
/// What can't be read or understood.
pub(super) async fn load(conn: &mut SqliteConnection) -> Result<Loaded, StoreError> {
    let mut loaded = Loaded::default();
    load_records(conn, &mut loaded).await?;
    load_baselines(conn, &mut loaded).await?;
    load_vf_tokens(conn, &mut loaded).await?;
    load_intents(conn, &mut loaded).await?;
    load_meta(conn, &mut loaded).await?;
    Ok(loaded)
}

async fn load_records(conn: &mut SqliteConnection, loaded: &mut Loaded) -> Result<(), StoreError> {
    // The largest first, as taking it apart takes longest.
    let reservations: Parsing<(Reservation, Option<Extra>)> = read!(
        conn,
        "reservations",
        r#"SELECT max(id) AS "last?: String", group_concat('[' || record || ',' || iif(extra = '{}', 'null', extra) || ']', char(10)) AS "list?: String"
           FROM (SELECT id, record, extra FROM reservations WHERE id > ? ORDER BY id LIMIT 2048)"#
    );
    let groups: Parsing<Group> = read!(
        conn,
        "groups",
        r#"SELECT max(id) AS "last?: String", group_concat(record, char(10)) AS "list?: String"
           FROM (SELECT id, record FROM groups WHERE id > ? ORDER BY id LIMIT 2048)"#
    );
    let devices: Parsing<(u8, Device)> = read!(
        conn,
        "devices",
        r#"SELECT max(address) AS "last?: String", group_concat('[' || present || ',' || record || ']', char(10)) AS "list?: String"
           FROM (SELECT address, present, record FROM devices WHERE address > ? ORDER BY address LIMIT 2048)"#
    );
    let contexts: Parsing<Context> = read!(
        conn,
        "contexts",
        r#"SELECT max(id) AS "last?: String", group_concat(record, char(10)) AS "list?: String"
           FROM (SELECT id, record FROM contexts WHERE id > ? ORDER BY id LIMIT 2048)"#
    );
    let domains: Parsing<Domain> = read!(
        conn,
        "domains",
        r#"SELECT max(id) AS "last?: String", group_concat(record, char(10)) AS "list?: String"
           FROM (SELECT id, record FROM domains WHERE id > ? ORDER BY id LIMIT 2048)"#
    );
    let identities: Parsing<(String, String)> = read!(
        conn,
        "identities",
        r#"SELECT max(address) AS "last?: String", group_concat(json_array(address, identity), char(10)) AS "list?: String"
           FROM (SELECT address, identity FROM identities WHERE address > ? ORDER BY address LIMIT 2048)"#
    );
    for (record, extra) in reservations.end().await? {
        loaded.extras.extend(extra.map(|extra| (record.id.to_string(), extra)));
        loaded.parts.reservations.push(record);
    }
    let parts = &mut loaded.parts;
    for (present, device) in devices.end().await? {
        if present == 0 { parts.absent.push(device) } else { parts.devices.push(device) }
    }
    parts.groups = groups.end().await?;
    parts.contexts = contexts.end().await?;
    parts.domains = domains.end().await?;
    loaded.identities = identities.end().await?;
    Ok(())
}

async fn load_baselines(
    conn: &mut SqliteConnection,
    loaded: &mut Loaded,
) -> Result<(), StoreError> {
    let baselines = sqlx::query!("SELECT address, driver, driver_override FROM baselines")
        .fetch_all(conn)
        .await
        .map_err(StoreError::sql("read the baselines"))?;
    loaded.baselines = baselines
        .into_iter()
        .map(|row| Baseline {
            device: row.address.into(),
            driver: row.driver,
            driver_override: row.driver_override,
        })
        .collect();
    Ok(())
}

async fn load_vf_tokens(
    conn: &mut SqliteConnection,
    loaded: &mut Loaded,
) -> Result<(), StoreError> {
    let rows = sqlx::query!("SELECT address, token FROM vf_tokens")
        .fetch_all(conn)
        .await
        .map_err(StoreError::sql("read the VF tokens"))?;
    for row in rows {
        // What it is instead isn't told: it may be most of one.
        let message = || format!("the VF token of {} is no UUID", row.address);
        let token = VfToken::parse(&row.token);
        let token =
            token.ok_or_else(|| StoreError::Row { table: "vf_tokens", message: message() })?;
        loaded.vf_tokens.push((row.address, token));
    }
    Ok(())
}

async fn load_intents(conn: &mut SqliteConnection, loaded: &mut Loaded) -> Result<(), StoreError> {
    let intents = sqlx::query!(
        r#"SELECT id, reservation, body, boot_id FROM intents WHERE closed_unix_ms IS NULL ORDER BY id"#
    )
    .fetch_all(&mut *conn)
    .await
    .map_err(StoreError::sql("read the intents"))?;
    for row in intents {
        let steps = sqlx::query!(
            "SELECT step, detail FROM intent_steps WHERE intent_id = ? ORDER BY ordinal",
            row.id
        )
        .fetch_all(&mut *conn)
        .await
        .map_err(StoreError::sql("read the steps"))?;
        let body: crate::model::IntentBody = parse("intents", &row.body)?;
        loaded.intents.push(OpenIntent {
            intent: Intent {
                id: number(row.id),
                reservation: row.reservation.map(Into::into),
                kind: body.kind(),
                body,
            },
            steps: steps
                .into_iter()
                .map(|step| StepNote { step: step.step, detail: step.detail })
                .collect(),
            boot_id: row.boot_id,
        });
    }
    let waiting = sqlx::query!(
        r#"SELECT intent_id AS "intent_id!", about FROM request_ids
           WHERE answer IS NULL AND refusal IS NULL AND intent_id IS NOT NULL"#
    )
    .fetch_all(conn)
    .await
    .map_err(StoreError::sql("read the waiting requests"))?;
    for row in waiting {
        loaded.waiting.push((number(row.intent_id), parse("request_ids", &row.about)?));
    }
    Ok(())
}

async fn load_meta(conn: &mut SqliteConnection, loaded: &mut Loaded) -> Result<(), StoreError> {
    let seqs = sqlx::query!(
        r#"SELECT coalesce((SELECT max(seq) FROM events), 0) AS "last!: i64",
                  coalesce((SELECT min(seq) FROM events), 0) AS "oldest!: i64",
                  coalesce((SELECT max(id) FROM intents), 0) AS "intent!: i64""#
    )
    .fetch_one(&mut *conn)
    .await
    .map_err(StoreError::sql("read the last event"))?;
    loaded.last_seq = number(seqs.last);
    loaded.oldest_seq = number(seqs.oldest);
    loaded.last_intent = number(seqs.intent);
    let meta = sqlx::query!("SELECT name, value FROM meta")
        .fetch_all(conn)
        .await
        .map_err(StoreError::sql("read the store's facts"))?;
    for row in meta {
        match row.name.as_str() {
            "boot_id" => loaded.boot_id = Some(row.value),
            "history_lost" => loaded.history_lost = parse("meta", &row.value)?,
            "epoch_floor" => loaded.parts.epoch_floor = Epoch(parse("meta", &row.value)?),
            "last_intent" => {
                loaded.last_intent = loaded.last_intent.max(parse("meta", &row.value)?);
            }
            _ => {}
        }
    }
    Ok(())
}
