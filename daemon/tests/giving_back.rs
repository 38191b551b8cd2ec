//! What a device that wasn't given back clean means for the next who asks, and how an operator ends
//! that: over gRPC's service, over REST, and as the history tells it.

mod front_support;

use front_support::Running;
use serde_json::{Value, json};

/// Has no reset.
const NO_RESET: &str = "0000:00:05.0";
/// On a host driver, with one.
const FREE: &str = "0000:00:06.0";

fn ask(holder: &str, device: &str, label: &str) -> Value {
    json!({
        "holder": holder, "policy": "EXCLUSIVE", "delivery": "HELD", "label": label,
        "devices": [{"pci": device}],
    })
}

async fn reserve(running: &Running, ask: &Value) -> Value {
    let answer = running.unix("POST", "/api/v1/reservations", Some(ask)).await;
    assert!(answer.status < 300, "{answer:?}");
    answer.json()
}

/// A whole life; the answer to the release.
async fn live(running: &Running, ask: &Value) -> Value {
    let id = reserve(running, ask).await["id"].as_str().expect("an id").to_owned();
    let path = format!("/api/v1/reservations/{id}");
    let attached = running.unix("POST", &format!("{path}/attach"), Some(&json!({}))).await;
    assert_eq!(attached.status, 200, "{attached:?}");
    let released = running.unix("DELETE", &path, None).await;
    assert_eq!(released.status, 200, "{released:?}");
    released.json()
}

async fn refused(running: &Running, ask: &Value) -> Value {
    let answer = running.unix("POST", "/api/v1/reservations", Some(ask)).await;
    assert!(answer.status >= 400, "{answer:?}");
    answer.problem()
}

fn clear_path(device: &str) -> String {
    format!("/api/v1/devices/{device}/clear-quarantine")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_reset_stays_with_its_label_until_an_operator_clears_it() {
    let running = Running::start().await;
    let released = live(&running, &ask("vm1", NO_RESET, "red")).await;
    assert_eq!(released["givenBack"][0]["reset"], "NOT_POSSIBLE", "{released}");
    let note = released["givenBack"][0]["note"].as_str().expect("a note");
    assert!(note.contains("bus master is off"), "{note}");

    let way = format!("berth quarantine clear {NO_RESET} --reason TEXT");
    let problem = refused(&running, &ask("vm2", NO_RESET, "blue")).await;
    assert_eq!(problem["reason"], "LABEL_MISMATCH", "{problem}");
    assert!(problem.to_string().contains(&way), "{problem}");
    assert!(problem.to_string().contains("red"), "{problem}");
    let released = live(&running, &ask("vm3", NO_RESET, "red")).await;
    assert_eq!(released["state"], "RELEASED", "the same label may");

    let path = clear_path(NO_RESET);
    let mute = running.unix("POST", &path, Some(&json!({"reason": "  "}))).await;
    assert_eq!(mute.status, 400, "{mute:?}");
    let cleared = running.unix("POST", &path, Some(&json!({"reason": "power cycled"}))).await;
    assert_eq!(cleared.status, 200, "{cleared:?}");
    let headers = "accept: application/json\r\n";
    let events = running.unix_raw("GET", "/api/v1/events?limit=1000", None, headers).await.json();
    let events = events["events"].as_array().expect("events").clone();
    let told = events
        .iter()
        .find(|event| event.to_string().contains("power cycled"))
        .expect("the reason is kept in the history");
    assert_eq!(told["actor"], format!("uid:{}", rustix::process::getuid().as_raw()), "{told}");
    assert_eq!(told["cause"], "clear quarantine", "{told}");
    live(&running, &ask("vm2", NO_RESET, "blue")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_whose_reset_is_required_is_quarantined_without_one() {
    for (policy, reason) in [
        ("require", Some("QUARANTINED")),
        ("allow-same-label", Some("LABEL_MISMATCH")),
        ("none", None),
    ] {
        // edu: no base class that is known; and a rule for another class, which must not count.
        let settings = format!(
            "[[reset]]\nclass = \"nic\"\npolicy = \"require\"\n\
             [[reset]]\nclass = \"00ff\"\npolicy = \"{policy}\"\n"
        );
        let running = Running::with(&settings).await;
        live(&running, &ask("vm1", NO_RESET, "red")).await;
        let next = ask("vm2", NO_RESET, "blue");
        let Some(reason) = reason else {
            live(&running, &next).await;
            continue;
        };
        let problem = refused(&running, &next).await;
        assert_eq!(problem["reason"], reason, "{policy}: {problem}");
        let way = format!("berth quarantine clear {NO_RESET} --reason TEXT");
        assert!(problem.to_string().contains(&way), "{problem}");
        let reason = json!({"reason": "looked at"});
        let cleared = running.unix("POST", &clear_path(NO_RESET), Some(&reason)).await;
        assert_eq!(cleared.json()["condition"], "OK", "{cleared:?}");
        live(&running, &next).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_reset_binds_nobody() {
    let running = Running::with("[[reset]]\nclass = \"*\"\npolicy = \"require\"\n").await;
    for label in ["red", "blue", "red"] {
        let released = live(&running, &ask("vm", FREE, label)).await;
        assert_eq!(released["givenBack"][0]["reset"], "VERIFIED", "{released}");
        assert_eq!(released["givenBack"][0]["resetMethod"], "flr", "{released}");
    }
}
