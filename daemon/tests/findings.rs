//! What the doctor and `berth explain` find: each cause that is planted is named, with a fix and a
//! place to read on, and goes when it is taken away; two at once are both named; and a command that is
//! printed, run as it is printed, makes the next reservation succeed.

mod findings {
    pub(crate) mod causes;
    pub(crate) mod commands;
    pub(crate) mod stories;
}
mod front_support;

use std::time::{Duration, Instant};

use findings::{
    causes::{CASES, COMMAND, Case, ELSEWHERE, FREE, hides, prepare},
    commands,
};
use front_support::{PATIENCE, Running};
use serde_json::Value;

/// So that what nobody tells the daemon is seen soon.
const SETTINGS: &str =
    "[condition]\npoll_ms = 100\nquiet_ms = 1000\n[timeouts]\nrescan_ms = 1000\n";

/// Findings of one surface; nothing while the device that is asked about isn't there.
async fn told(running: &Running, path: &str) -> Option<Vec<Value>> {
    let answer = running.unix("GET", path, None).await;
    assert!([200, 404].contains(&answer.status), "{path}: {answer:?}");
    (answer.status == 200).then(|| answer.json()["findings"].as_array().expect("findings").clone())
}

/// The same of what is there all the time.
async fn asked(running: &Running, path: &str) -> Vec<Value> {
    told(running, path).await.expect("it is there")
}

/// Waits until something is said somewhere.
async fn until_said(running: &Running, path: &str, says: &str) {
    let end = Instant::now() + PATIENCE;
    while !running.unix("GET", path, None).await.body.contains(says) {
        assert!(Instant::now() < end, "{path}: not {says}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Where a case is to be found.
fn paths(case: &Case) -> Vec<String> {
    let doctor = case.doctor.then(|| "/api/v1/doctor".to_owned());
    let explain = case.explain.map(|device| format!("/api/v1/devices/{device}/explain"));
    doctor.into_iter().chain(explain).collect()
}

fn is_meant(case: &Case, it: &Value) -> bool {
    it["code"] == case.code && case.object.is_none_or(|object| it["object"] == object)
}

async fn until(running: &Running, case: &Case, there: bool) {
    let end = Instant::now() + PATIENCE;
    for path in paths(case) {
        loop {
            let all = told(running, &path).await;
            if let Some(all) = &all {
                let found = all.iter().find(|it| is_meant(case, it));
                if found.is_some() == there {
                    if let Some(finding) = found {
                        is_complete(case, finding);
                    }
                    break;
                }
            }
            assert!(Instant::now() < end, "{path}: {} there: {}: {all:#?}", case.code, !there);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// One line of cause, at least one of fix, and a link that leads somewhere.
fn is_complete(case: &Case, finding: &Value) {
    let cause = finding["cause"].as_str().expect("text");
    assert!(cause.contains(case.says) && !cause.contains('\n'), "{}: {finding}", case.says);
    let fixes = finding["fixes"].as_array().expect("fixes");
    let line = |fix: &Value| fix.as_str().is_some_and(|fix| !fix.is_empty() && !fix.contains('\n'));
    assert!(!fixes.is_empty() && fixes.iter().all(line), "{finding}");
    let fixes: Vec<&str> = fixes.iter().filter_map(Value::as_str).collect();
    assert!(fixes.iter().any(|fix| fix.contains(case.fix)), "no {:?}: {finding}", case.fix);
    // What begins with it is run as it stands.
    let runs = fixes.iter().any(|fix| fix.starts_with(COMMAND));
    assert_eq!(runs, case.fix == COMMAND, "{finding}");
    let (file, anchor) =
        finding["docs"].as_str().and_then(|it| it.split_once('#')).expect("a link");
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join(file)).expect("a document");
    let section = format!("### {}", anchor.to_ascii_uppercase());
    assert!(text.lines().any(|line| line == section), "{file} has no {section}");
}

/// The closed list: the daemon's own is compared with the sections of its documentation where it is.
fn codes() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/doctor.md");
    let text = std::fs::read_to_string(path).expect("a document");
    text.lines().filter_map(|line| line.strip_prefix("### ")).map(str::to_owned).collect()
}

#[test]
fn each_code_has_a_row() {
    let codes = codes();
    assert!(codes.iter().any(|code| code == "IOMMU_OFF"), "no list: {codes:?}");
    for code in &codes {
        let row = CASES.iter().any(|case| case.code == code);
        let elsewhere = ELSEWHERE.iter().any(|(other, _)| other == code);
        assert!(row != elsewhere, "{code}: a row, or the reason for none");
    }
    let known = |code: &str| codes.iter().any(|it| it == code);
    assert!(CASES.iter().all(|case| known(case.code)) && ELSEWHERE.iter().all(|it| known(it.0)));
    for case in CASES.iter().filter(|case| case.fix == COMMAND) {
        let run = commands::ROWS.iter().any(|row| row.code == case.code);
        assert!(run, "{}: nobody runs its command", case.code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cause_is_named_until_it_is_taken_away() {
    for case in CASES {
        let running = case.start().await;
        prepare(&running, case);
        until(&running, case, false).await;
        let planted = case.cause.plant(&running).await;
        until(&running, case, true).await;
        if case.quick {
            case.cause.take_away(&running, planted).await;
            until(&running, case, false).await;
            continue;
        }
        let other = case.beside();
        let second = other.cause.plant(&running).await;
        until(&running, &other, true).await;
        until(&running, case, true).await;
        case.cause.take_away(&running, planted).await;
        until(&running, case, false).await;
        until(&running, &other, true).await;
        other.cause.take_away(&running, second).await;
        until(&running, &other, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_causes_are_both_named() {
    let quick = || CASES.iter().filter(|case| case.quick);
    let running = Running::with(SETTINGS).await;
    for (index, first) in quick().enumerate() {
        for second in quick().skip(index + 1) {
            if hides(first, second) {
                continue;
            }
            prepare(&running, first);
            prepare(&running, second);
            let planted = (first.cause.plant(&running).await, second.cause.plant(&running).await);
            until(&running, first, true).await;
            until(&running, second, true).await;
            first.cause.take_away(&running, planted.0).await;
            until(&running, first, false).await;
            until(&running, second, true).await;
            second.cause.take_away(&running, planted.1).await;
            until(&running, second, false).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_guests_memory_lacks_is_named_until_a_reservation_states_it() {
    let running = Running::with(SETTINGS).await;
    let limits = async |object: &str, bytes: u64| {
        let path = format!("/api/v1/groups/{object}/explain?memoryBytes={bytes}");
        let all = asked(&running, &path).await;
        let code = |it: &Value| it["code"].as_str().unwrap_or_default().to_owned();
        all.iter().map(code).filter(|code| code.ends_with("_LIMIT")).collect::<Vec<_>>()
    };
    let large = 512 << 30;
    assert_eq!(limits(FREE, 0).await, Vec::<String>::new());
    assert_eq!(limits(FREE, 1 << 30).await, ["MEMLOCK_LIMIT"]);
    assert_eq!(limits(FREE, large).await, ["MAPPING_LIMIT", "MEMLOCK_LIMIT"]);
    for (backend, found) in [("TYPE1", vec!["MAPPING_LIMIT"]), ("IOMMUFD", Vec::new())] {
        let ask = serde_json::json!({
            "holder": "vm1", "policy": "EXCLUSIVE", "delivery": "HELD", "backend": backend,
            "devices": [{"pci": FREE}], "memoryBytes": large.to_string(),
        });
        let made = running.unix("POST", "/api/v1/reservations", Some(&ask)).await;
        assert_eq!(made.status, 201, "{made:?}");
        let id = made.json()["id"].as_str().expect("an id").to_owned();
        assert_eq!(limits(&id, large).await, found, "{backend}");
        let path = format!("/api/v1/reservations/{id}");
        assert_eq!(running.unix("DELETE", &path, None).await.status, 200);
    }
}
