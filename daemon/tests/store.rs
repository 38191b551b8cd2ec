//! What a commit writes: each table, few rows and many, all or nothing.

use std::{path::Path, sync::Arc};

use berthd::store::{
    BaselineRow, ClosedIntentRow, DeviceRow, EventRecord, IntentRow, Pieces, Rows, StepRow,
    StoredRequest, TargetRow, open,
};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Row as _, sqlite::SqliteConnectOptions};

fn event(seq: u64) -> Arc<EventRecord> {
    Arc::new(EventRecord {
        seq,
        time_unix_ms: 5,
        boot_id: "b".into(),
        actor: "uid:0".to_owned(),
        cause: "reserve".to_owned(),
        request_id: String::new(),
        kind: "reservation.created".to_owned(),
        groups: vec!["g-1".to_owned(), "g-\"2".to_owned()],
        devices: Vec::new(),
        reservation: "r-1".to_owned(),
        before: None,
        after: Some("{}".to_owned()),
    })
}

fn request(number: u64, intent: Option<u64>) -> StoredRequest {
    StoredRequest {
        identity: "uid:0".to_owned(),
        id: format!("q{number}"),
        body: "00".to_owned(),
        created_unix_ms: 7,
        about: "{}".to_owned(),
        intent,
        answer: None,
        refusal: None,
    }
}

/// `count` rows of each table; what ends in them has come in them, too.
fn full(count: u64) -> Rows {
    let all = || 1..=count;
    let pair = |prefix: &str| -> Vec<(String, String)> {
        all().map(|number| (format!("{prefix}{number}"), format!("{{\"n\":{number}}}"))).collect()
    };
    let gone = |prefix: &str| vec![format!("{prefix}1")];
    let text = |prefix: &str, number: u64| format!("{prefix}{number}");
    Rows {
        events: all().map(event).collect(),
        groups: pair("g-"),
        devices: all().map(|n| DeviceRow(text("d", n), 1, "{}".to_owned())).collect(),
        identities: pair("d"),
        baselines: all().map(|n| BaselineRow(text("d", n), None, Some("x".into()), n)).collect(),
        contexts: pair("c-"),
        domains: pair("d-"),
        reservations: all().map(|n| (text("r-", n), "{}".to_owned(), "{}".to_owned())).collect(),
        targets: all()
            .map(|n| TargetRow(text("d", n), text("g-", n), text("r-", n), text("r-", n)))
            .collect(),
        intents: all()
            .map(|n| IntentRow(n, Some(text("r-", n)), "{}".into(), "b".into(), 9))
            .collect(),
        intents_closed: vec![ClosedIntentRow(1, 10, "done".to_owned())],
        steps: all().map(|n| StepRow(n, 0, "bind".to_owned(), "it's".to_owned())).collect(),
        requests: all().map(|n| request(n, Some(n))).collect(),
        answers: vec![(1, Some("{\"a\":1}".to_owned()), None)],
        meta: vec![("last_intent".to_owned(), count.to_string())],
        contexts_gone: gone("none"),
        ..Rows::default()
    }
}

const TABLES: [&str; 11] = [
    "events",
    "groups",
    "devices",
    "identities",
    "baselines",
    "contexts",
    "domains",
    "reservations",
    "targets",
    "intents",
    "intent_steps",
];

/// The first column of what a query answers.
async fn ask(dir: &Path, sql: &str) -> Vec<String> {
    let options = SqliteConnectOptions::new().filename(dir.join("berth.db")).read_only(true);
    let mut database = options.connect().await.expect("the database");
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut database).await.expect(sql);
    rows.iter().map(|row| row.get::<String, _>(0)).collect()
}

async fn count(dir: &Path, table: &str) -> String {
    ask(dir, &format!("SELECT CAST(count(*) AS TEXT) FROM {table}")).await.remove(0)
}

#[tokio::test]
async fn each_table_takes_few_rows_and_many() {
    for rows in [1, 2, 3, 4, 5, 100, 1000] {
        let dir = tempfile::tempdir().expect("a directory");
        let Pieces { mut writer, .. } = open(dir.path()).await.expect("a new store");
        writer.write(full(rows)).await.expect("all rows");
        for table in TABLES {
            assert_eq!(count(dir.path(), table).await, rows.to_string(), "{table}");
        }
        let one = |sql| ask(dir.path(), sql);
        let event = "SELECT json_array(time_unix_ms, boot_id, actor, cause, request_id, kind, groups, \
                     devices, reservation, before, after) FROM events WHERE seq = 1";
        let expected = r#"[5,"b","uid:0","reserve","","reservation.created","[\"g-1\",\"g-\\\"2\"]","[]","r-1",null,"{}"]"#;
        assert_eq!(one(event).await, [expected]);
        assert_eq!(one("SELECT outcome FROM intents WHERE closed_unix_ms = 10").await, ["done"]);
        assert_eq!(one("SELECT id FROM request_ids WHERE answer = '{\"a\":1}'").await, ["q1"]);
        assert_eq!(one("SELECT value FROM meta").await, [rows.to_string()]);
        assert_eq!(one("SELECT detail FROM intent_steps WHERE intent_id = 1").await, ["it's"]);
        let gone = Rows {
            events_before: rows,
            history_before_unix_ms: 11,
            groups_gone: vec!["g-1".to_owned()],
            reservations_gone: vec!["r-1".to_owned()],
            retarget: vec!["r-1".to_owned()],
            devices_gone: vec!["d1".to_owned()],
            domains_gone: vec!["d-1".to_owned()],
            contexts_gone: vec!["c-1".to_owned()],
            baselines_gone: vec!["d1".to_owned()],
            ..Rows::default()
        };
        writer.write(gone).await.expect("all that goes");
        let left = (rows - 1).to_string();
        for table in TABLES {
            let expected = match table {
                "events" => "0",
                "identities" => &rows.to_string(),
                _ => &left,
            };
            assert_eq!(count(dir.path(), table).await, expected, "{table} after {rows}");
        }
        assert_eq!(count(dir.path(), "request_ids").await, "0");
    }
}

#[tokio::test]
async fn a_commit_that_fails_in_its_middle_writes_nothing() {
    for rows in [2, 200] {
        let dir = tempfile::tempdir().expect("a directory");
        let Pieces { mut writer, .. } = open(dir.path()).await.expect("a new store");
        let mut bad = full(rows);
        // The last device of its group has another owner: the store refuses it by itself.
        bad.targets.push(TargetRow("d0".into(), "g-1".into(), "r-2".into(), "r-2".into()));
        let error = writer.write(bad).await.expect_err("a second owner");
        assert!(error.chain().contains("a group would get a second owner"), "{}", error.chain());
        for table in TABLES {
            assert_eq!(count(dir.path(), table).await, "0", "{table}");
        }
        writer.write(full(rows)).await.expect("the next commit");
        assert_eq!(count(dir.path(), "targets").await, rows.to_string());
    }
}

#[tokio::test]
async fn views_show_the_axes_of_documents() {
    let dir = tempfile::tempdir().expect("a directory");
    let Pieces { mut writer, .. } = open(dir.path()).await.expect("a new store");
    let record = r#"{"holder":"vm1","state":"held","claims":1,"domain":"d-1"}"#.to_owned();
    let rows = Rows { reservations: vec![("r-1".into(), record, "{}".into())], ..full(1) };
    writer.write(rows).await.expect("all rows");
    let axes = "SELECT holder || state || claims FROM reservation_axes";
    assert_eq!(ask(dir.path(), axes).await, ["vm1held1"]);
    assert_eq!(ask(dir.path(), "SELECT device || domain FROM claims").await, ["d1d-1"]);
}

#[tokio::test]
async fn a_record_of_an_earlier_version_is_taken_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let migrations = sqlx::migrate!("../migrations");
    let options =
        SqliteConnectOptions::new().filename(dir.path().join("berth.db")).create_if_missing(true);
    let mut database = options.connect().await.expect("a database");
    migrations.run_to(2, &mut database).await.expect("an early schema");
    sqlx::raw_sql(
        r#"INSERT INTO groups (id, record) VALUES ('g-1', '{"epoch":7}');
           INSERT INTO devices (address, present, record) VALUES ('d1', 1, '{}');
           INSERT INTO identities (address, identity) VALUES ('d1', 'x');
           INSERT INTO baselines (address, driver, intent_id) VALUES ('d1', 'nvme', 1);
           INSERT INTO contexts (id, record) VALUES ('c-1', '{}');
           INSERT INTO domains (id, record) VALUES ('d-1', '{}');
           INSERT INTO reservations (id, record, extra) VALUES ('r-1', '{"claims":1,"domain":"d-1"}', '{}');
           INSERT INTO targets VALUES ('d1', 'g-1', 'r-1', 'r-1');
           INSERT INTO events VALUES (1, 2, 'b', 'uid:0', 'start', '', 'group.observed', '[]', '[]', '', NULL, '{}');
           INSERT INTO intents (id, body, boot_id, opened_unix_ms) VALUES (1, '{"kind":"prepare"}', 'b', 3);
           INSERT INTO intent_steps VALUES (1, 0, 'bind', '');
           INSERT INTO request_ids VALUES ('uid:0', 'q1', '00', 4, '{}', 1, NULL, NULL);"#,
    )
    .execute(&mut database)
    .await
    .expect("rows of each table");
    migrations.run(&mut database).await.expect("the newest schema");
    for table in TABLES {
        assert_eq!(count(dir.path(), table).await, "1", "{table}");
    }
    let one = |sql| ask(dir.path(), sql);
    assert_eq!(one("SELECT CAST(epoch AS TEXT) FROM group_axes").await, ["7"]);
    assert_eq!(one("SELECT device || domain FROM claims").await, ["d1d-1"]);
    assert_eq!(one("SELECT identity FROM request_ids WHERE answer IS NULL").await, ["uid:0"]);
}
