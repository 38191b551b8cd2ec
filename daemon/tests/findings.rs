//! What the doctor and `berth explain` find: each cause that is planted is named, with a fix and a
//! place to read on, and goes when it is taken away; two at once are both named; and a command that is
//! printed, run as it is printed, makes the next reservation succeed.

mod findings {
    pub(crate) mod causes;
    pub(crate) mod commands;
}
mod front_support;

use std::time::{Duration, Instant};

use findings::causes::{CASES, Case, FREE, hides, prepare};
use front_support::{PATIENCE, Running};
use serde_json::Value;

/// So that what nobody tells the daemon is seen soon.
const SETTINGS: &str = "[timeouts]\nrescan_ms = 1000\n";

/// Findings of one surface.
async fn asked(running: &Running, path: &str) -> Vec<Value> {
    let answer = running.unix("GET", path, None).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.json()["findings"].as_array().expect("findings").clone()
}

/// Where a case is to be found.
fn paths(case: &Case) -> Vec<String> {
    let doctor = case.doctor.then(|| "/api/v1/doctor".to_owned());
    let explain = case.explain.map(|device| format!("/api/v1/devices/{device}/explain"));
    doctor.into_iter().chain(explain).collect()
}

async fn is_there(running: &Running, case: &Case, path: &str) -> Option<Value> {
    let mut all = asked(running, path).await.into_iter();
    all.find(|it| {
        it["code"] == case.code && case.object.is_none_or(|object| it["object"] == object)
    })
}

async fn until(running: &Running, case: &Case, there: bool) {
    let end = Instant::now() + PATIENCE;
    for path in paths(case) {
        loop {
            let found = is_there(running, case, &path).await;
            if found.is_some() == there {
                if let Some(finding) = found {
                    is_complete(case, &finding);
                }
                break;
            }
            let all = asked(running, &path).await;
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
    let (file, anchor) =
        finding["docs"].as_str().and_then(|it| it.split_once('#')).expect("a link");
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = std::fs::read_to_string(root.join(file)).expect("a document");
    let section = format!("### {}", anchor.to_ascii_uppercase());
    assert!(text.lines().any(|line| line == section), "{file} has no {section}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cause_is_named_until_it_is_taken_away() {
    for case in CASES {
        let running = Running::with(SETTINGS).await;
        prepare(&running, case);
        until(&running, case, false).await;
        let planted = case.cause.plant(&running).await;
        until(&running, case, true).await;
        case.cause.take_away(&running, planted).await;
        until(&running, case, false).await;
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
