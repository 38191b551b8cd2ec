//! Each cause that is planted is found, and goes when what the doctor says is done.

mod front_support;

use std::time::{Duration, Instant};

use berth_host::{PciAddress, ResetOutcome};
use front_support::{PATIENCE, Running};
use serde_json::{Value, json};

/// Alone in its group, without a driver, with a reset.
const DEVICE: &str = "0000:00:06.0";
/// Alone in its group, without a reset.
const NO_RESET: &str = "0000:00:05.0";

fn at(text: &str) -> PciAddress {
    text.parse().expect("an address")
}

async fn findings(running: &Running) -> Vec<Value> {
    let answer = running.unix("GET", "/api/v1/doctor", None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["findings"].as_array().expect("findings").clone()
}

async fn found(running: &Running, code: &str, object: &str) -> Option<Value> {
    let all = findings(running).await;
    all.into_iter().find(|finding| finding["code"] == code && finding["object"] == object)
}

async fn is_found(running: &Running, code: &str, object: &str, says: &str) -> Value {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(finding) = found(running, code, object).await {
            assert!(finding.to_string().contains(says), "nothing of {says}: {finding}");
            return finding;
        }
        assert!(Instant::now() < end, "no {code} of {object}: {:#?}", findings(running).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn post(running: &Running, path: &str, body: Value) -> Value {
    let answer = running.unix("POST", path, Some(&body)).await;
    assert!(answer.status < 300, "{path}: {answer:?}");
    answer.json()
}

async fn reserve(running: &Running, device: &str) -> String {
    let ask = json!({
        "holder": "vm1", "policy": "EXCLUSIVE", "delivery": "HELD", "devices": [{"pci": device}],
    });
    let answer = post(running, "/api/v1/reservations", ask).await;
    answer["id"].as_str().expect("an id").to_owned()
}

/// A whole life.
async fn live(running: &Running, device: &str) {
    let id = reserve(running, device).await;
    let path = format!("/api/v1/reservations/{id}");
    post(running, &format!("{path}/attach"), json!({})).await;
    let answer = running.unix("DELETE", &path, None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cordon_is_found_until_it_ends_as_the_doctor_says() {
    let running = Running::start().await;
    assert!(found(&running, "CORDONED", DEVICE).await.is_none());
    let path = format!("/api/v1/devices/{DEVICE}");
    post(&running, &format!("{path}/cordon"), json!({"note": "the fan is loud"})).await;
    let finding = is_found(&running, "CORDONED", DEVICE, "the fan is loud").await;
    assert_eq!(finding["fixes"][0], format!("berth uncordon {DEVICE}"), "{finding}");
    post(&running, &format!("{path}/uncordon"), json!({})).await;
    assert!(found(&running, "CORDONED", DEVICE).await.is_none());
    reserve(&running, DEVICE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_causes_are_two_findings_and_the_worst_comes_first() {
    let running = Running::start().await;
    let failed = ResetOutcome::Failed { note: "it hangs".to_owned() };
    running.host.set_reset(at(DEVICE), &failed).expect("there");
    live(&running, DEVICE).await;
    live(&running, NO_RESET).await;
    let finding = is_found(&running, "QUARANTINED", DEVICE, "its reset failed").await;
    let fix = format!("berth quarantine clear {DEVICE} --reason TEXT");
    assert_eq!(finding["fixes"][0], fix, "{finding}");
    is_found(&running, "ONE_LABEL_ONLY", NO_RESET, "berth quarantine clear").await;
    let levels: Vec<String> = findings(&running)
        .await
        .iter()
        .map(|finding| finding["level"].as_str().expect("a level").to_owned())
        .collect();
    let first_warning = levels.iter().position(|level| level == "WARNING");
    let last_problem = levels.iter().rposition(|level| level == "PROBLEM");
    assert!(last_problem < first_warning, "{levels:?}");

    let verified = ResetOutcome::Verified { method: "flr".to_owned() };
    running.host.set_reset(at(DEVICE), &verified).expect("there");
    for device in [DEVICE, NO_RESET] {
        let path = format!("/api/v1/devices/{device}/clear-quarantine");
        post(&running, &path, json!({"reason": "power cycled"})).await;
        reserve(&running, device).await;
    }
    for (code, device) in [("QUARANTINED", DEVICE), ("ONE_LABEL_ONLY", NO_RESET)] {
        assert!(found(&running, code, device).await.is_none(), "{code} of {device} stays");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reservation_and_a_missing_driver_are_found() {
    let running = Running::start().await;
    let id = reserve(&running, DEVICE).await;
    running.host.exchange(at(DEVICE)).expect("not open");
    let finding = is_found(&running, "RESERVATION_LOST", &id, "vm1").await;
    assert_eq!(finding["fixes"][0], format!("berth release {id}"), "{finding}");
    let answer = running.unix("DELETE", &format!("/api/v1/reservations/{id}"), None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(found(&running, "RESERVATION_LOST", &id).await.is_none());

    assert!(found(&running, "NO_VFIO_PCI", "").await.is_none());
    running.host.set_unloaded("vfio-pci", true);
    is_found(&running, "NO_VFIO_PCI", "", "modprobe vfio-pci").await;
    running.host.set_unloaded("vfio-pci", false);
    assert!(found(&running, "NO_VFIO_PCI", "").await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_found_by_name_until_it_ends() {
    let running = Running::with("[timeouts]\nrescan_ms = 1000\n").await;
    let group = running.unix("GET", &format!("/api/v1/devices/{NO_RESET}"), None).await.json();
    let group = group["group"].as_str().expect("a group").to_owned();
    running.host.host_override(at(NO_RESET), Some("vfio-pci")).expect("there");
    running.host.host_driver_bind(at(NO_RESET), "vfio-pci").expect("free");
    let rival = running.host.foreign_bind(at(NO_RESET)).expect("nobody has it");
    is_found(&running, "FOREIGN_OWNER", &group, &format!("--pid {}", rival.pid())).await;
    drop(rival);
    let end = Instant::now() + PATIENCE;
    while found(&running, "FOREIGN_OWNER", &group).await.is_some() {
        assert!(Instant::now() < end, "it stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
