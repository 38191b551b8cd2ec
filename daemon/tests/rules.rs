//! Rules of the configuration keep devices on the host.

mod front_support;

use front_support::Running;
use serde_json::{Value, json};

/// Alone in its group, without a driver.
const DEVICE: &str = "0000:00:06.0";
/// The same, of the same kind.
const OTHER: &str = "0000:00:05.0";
/// Shares its group.
const MEMBER: &str = "0000:05:00.0";
const SIBLING: &str = "0000:05:00.1";

fn ask(by: &str, what: Value) -> Value {
    json!({"holder": "vm1", "policy": "GROUP", "takeFromHost": true, by: what})
}

async fn refusal(running: &Running, ask: &Value) -> Value {
    let answer = running.unix("POST", "/api/v1/reservations", Some(ask)).await;
    assert_eq!(answer.status, 403, "{answer:?}");
    let problem = answer.problem();
    assert_eq!(problem["reason"], "DENIED_BY_RULE", "{problem}");
    problem
}

async fn reserved(running: &Running, ask: &Value) -> Value {
    let answer = running.unix("POST", "/api/v1/reservations", Some(ask)).await;
    assert!(answer.status < 300, "{answer:?}");
    answer.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_rule_that_fits_counts_and_is_named() {
    let rules = format!(
        "[[device]]\nverdict = \"allow\"\naddress = \"{OTHER}\"\n\
         [[device]]\nverdict = \"deny\"\naddress = \"0000:00:*\"\nnote = \"the host's own\"\n"
    );
    let running = Running::with(&rules).await;
    let problem = refusal(&running, &ask("devices", json!([{"pci": DEVICE}]))).await;
    let text = problem.to_string();
    assert!(text.contains("berthd.toml:4, the host's own"), "{text}");
    assert!(text.contains(DEVICE), "{text}");
    reserved(&running, &ask("devices", json!([{"pci": OTHER}]))).await;

    let path = format!("/api/v1/devices/{DEVICE}/explain");
    let explained = running.unix("GET", &path, None).await.json();
    let policies = explained["policies"].as_array().expect("policies");
    assert!(policies.iter().all(|policy| policy["may"] == false), "{explained}");
    assert!(explained["devices"][0]["text"].to_string().contains("the host's own"), "{explained}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sibling_that_is_denied_keeps_the_whole_group() {
    let rule = format!("[[device]]\nverdict = \"deny\"\naddress = \"{SIBLING}\"\n");
    let running = Running::with(&rule).await;
    let problem = refusal(&running, &ask("devices", json!([{"pci": MEMBER}]))).await;
    assert!(problem.to_string().contains(SIBLING), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_choice_by_class_leaves_out_what_is_denied() {
    let rule = format!("[[device]]\nverdict = \"deny\"\naddress = \"{OTHER}\"\n");
    let running = Running::with(&rule).await;
    let code = running.unix("GET", &format!("/api/v1/devices/{OTHER}"), None).await.json();
    let class = format!("{:06x}", code["classCode"].as_u64().expect("a code"));
    let one = reserved(&running, &ask("class", json!({"class": class}))).await;
    assert!(!one.to_string().contains(OTHER), "{one}");

    let all = Running::with("[[device]]\nverdict = \"deny\"\n").await;
    refusal(&all, &ask("class", json!({"class": class}))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_by_ids_fits_those_ids_only() {
    let running = Running::with("[[device]]\nverdict = \"deny\"\nvendor = \"1234:11e8\"\n").await;
    refusal(&running, &ask("devices", json!([{"pci": DEVICE}]))).await;
    let running = Running::with("[[device]]\nverdict = \"deny\"\nvendor = \"1234:11e9\"\n").await;
    reserved(&running, &ask("devices", json!([{"pci": DEVICE}]))).await;
}
