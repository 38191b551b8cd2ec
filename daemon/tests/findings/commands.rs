//! The commands that are printed, run as they are printed.

use std::{collections::BTreeSet, path::Path, process::Command};

use berth_host::{ResetOutcome, sim::Foreign};
use serde_json::{Value, json};

use super::causes::{FREE, NIC, NO_RESET, SIBLING, at};
use crate::{SETTINGS, front_support::Running};

/// Mounted.
const DISK: &str = "0000:03:00.0";
/// One of two behind a bridge.
const BEHIND: &str = "0000:02:01.0";

/// What keeps a reservation from being made.
#[derive(Debug, Clone, Copy)]
enum Obstacle {
    Cordoned,
    Quarantined,
    OneLabelOnly,
    Reserved,
    Attached,
    HostDriver,
    Mounted,
    Sibling,
    NotSingleton,
    Foreign,
    ResetTogether,
}

/// The obstacle, the device that is wanted, the policy, and how many commands there are at least.
const ROWS: &[(Obstacle, &str, &str, usize)] = &[
    (Obstacle::Cordoned, FREE, "exclusive", 1),
    (Obstacle::Quarantined, FREE, "exclusive", 1),
    (Obstacle::OneLabelOnly, NO_RESET, "exclusive", 1),
    (Obstacle::Reserved, FREE, "exclusive", 1),
    (Obstacle::Attached, FREE, "exclusive", 1),
    (Obstacle::HostDriver, NIC, "exclusive", 1),
    (Obstacle::Mounted, DISK, "exclusive", 1),
    (Obstacle::Sibling, SIBLING, "group", 1),
    (Obstacle::NotSingleton, BEHIND, "exclusive", 1),
    (Obstacle::Foreign, NO_RESET, "exclusive", 1),
    (Obstacle::ResetTogether, FREE, "exclusive", 1),
];

/// `berth`, as a shell runs it.
async fn sh(running: &Running, command: &str) -> (bool, String) {
    let program = Path::new(env!("CARGO_BIN_EXE_berthd")).with_file_name("berth");
    assert!(program.exists(), "cargo build -p berth builds {}", program.display());
    let folder = program.parent().expect("a directory").display().to_string();
    let mut shell = Command::new("sh");
    let path = std::env::var("PATH").unwrap_or_default();
    shell
        .args(["-c", command])
        .env("PATH", format!("{folder}:{path}"))
        .env("BERTH_ENDPOINT", format!("unix:{}", running.grpc_path().display()));
    let ran = tokio::task::spawn_blocking(move || shell.output()).await;
    let output = ran.expect("no panic").expect("a shell");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

async fn reserve(running: &Running, device: &str, policy: &str) -> (bool, String) {
    let label = "--label elsewhere --delivery held";
    sh(running, &format!("berth reserve --holder vm2 {label} --device {device} --policy {policy}"))
        .await
}

async fn post(running: &Running, path: &str, body: Value) -> Value {
    let answer = running.unix("POST", path, Some(&body)).await;
    assert!(answer.status < 300, "{path}: {answer:?}");
    answer.json()
}

async fn reserved(running: &Running, device: &str) -> String {
    let devices = json!([{"pci": device}]);
    let ask =
        json!({"holder": "vm1", "policy": "EXCLUSIVE", "delivery": "HELD", "devices": devices});
    let made = post(running, "/api/v1/reservations", ask).await;
    made["id"].as_str().expect("an id").to_owned()
}

async fn attached(running: &Running, device: &str) -> String {
    let id = reserved(running, device).await;
    post(running, &format!("/api/v1/reservations/{id}/attach"), json!({})).await;
    id
}

async fn lived(running: &Running, device: &str) {
    let id = attached(running, device).await;
    let path = format!("/api/v1/reservations/{id}");
    assert_eq!(running.unix("DELETE", &path, None).await.status, 200);
}

/// Puts the obstacle there; a stranger lives as long as what is answered.
async fn put(running: &Running, obstacle: Obstacle) -> Option<Foreign> {
    let sim = &running.host;
    match obstacle {
        Obstacle::Cordoned => {
            post(running, &format!("/api/v1/devices/{FREE}/cordon"), json!({})).await;
        }
        Obstacle::Quarantined => {
            let failed = ResetOutcome::Failed { note: "it hangs".to_owned() };
            sim.set_reset(at(FREE), &failed).expect("there");
            lived(running, FREE).await;
            let verified = ResetOutcome::Verified { method: "flr".to_owned() };
            sim.set_reset(at(FREE), &verified).expect("there");
        }
        Obstacle::OneLabelOnly => lived(running, NO_RESET).await,
        Obstacle::Reserved => drop(reserved(running, FREE).await),
        Obstacle::Attached => drop(attached(running, FREE).await),
        // They are there at the start.
        Obstacle::HostDriver | Obstacle::Mounted | Obstacle::Sibling | Obstacle::NotSingleton => {}
        Obstacle::Foreign => {
            sim.host_override(at(NO_RESET), Some("vfio-pci")).expect("there");
            sim.host_driver_bind(at(NO_RESET), "vfio-pci").expect("free");
            let stranger = sim.foreign_bind(at(NO_RESET)).expect("free");
            until(running, "/api/v1/doctor", "FOREIGN_OWNER").await;
            return Some(stranger);
        }
        Obstacle::ResetTogether => {
            sim.set_reset_scope(at(FREE), &["bus"], &[at(NO_RESET)]).expect("there");
            until(running, "/api/v1/doctor", "its reset hits 0000:00:05.0").await;
            reserved(running, NO_RESET).await;
        }
    }
    None
}

async fn until(running: &Running, path: &str, says: &str) {
    let end = std::time::Instant::now() + crate::PATIENCE;
    while !running.unix("GET", path, None).await.body.contains(says) {
        assert!(std::time::Instant::now() < end, "{path}: not {says}");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Every command of `berth` that an explanation of the device, or the doctor about it, prints.
async fn printed(running: &Running, device: &str, policy: &str) -> BTreeSet<String> {
    let path = format!("/api/v1/devices/{device}/explain");
    let explained = running.unix("GET", &path, None).await.json();
    let verdicts = explained["policies"].as_array().expect("verdicts").iter();
    let wanted = policy.to_ascii_uppercase();
    let refusals = verdicts.filter(|it| it["policy"] == wanted).map(|it| &it["refusal"]["resolve"]);
    let devices = explained["devices"].as_array().expect("devices").iter();
    let own =
        devices.filter(|it| it["device"]["address"]["pci"] == device).map(|it| &it["resolve"]);
    let findings = explained["findings"].as_array().expect("findings").iter();
    let fixes = findings.map(|it| &it["fixes"]);
    let mut texts = BTreeSet::new();
    for value in refusals.chain(own).chain(fixes) {
        match value {
            Value::String(text) => drop(texts.insert(text.clone())),
            Value::Array(several) => {
                texts.extend(several.iter().filter_map(Value::as_str).map(str::to_owned));
            }
            _ => {}
        }
    }
    texts.retain(|text| text.starts_with("berth "));
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_printed_command_makes_the_next_reservation_succeed() {
    for (obstacle, device, policy, least) in ROWS {
        let mut tried = BTreeSet::new();
        loop {
            let running = Running::with(SETTINGS).await;
            let stranger = put(&running, *obstacle).await;
            let (done, said) = reserve(&running, device, policy).await;
            assert!(!done, "{obstacle:?} is none: {said}");
            let commands = printed(&running, device, policy).await;
            // Ids are new on each machine: commands are told apart by their verbs.
            let verb = |text: &String| text.split(" r-").next().unwrap_or_default().to_owned();
            let verb = |text: &String| verb(text).split(" --pid").next().map(str::to_owned);
            let Some(command) = commands.iter().find(|it| !tried.contains(&verb(it))) else {
                break;
            };
            tried.insert(verb(command));
            let (done, said) = sh(&running, command).await;
            assert!(done, "{obstacle:?}: {command}: {said}");
            // Some of them reserve by themselves.
            if !command.starts_with("berth reserve") && !command.starts_with("berth adopt") {
                let (done, said) = reserve(&running, device, policy).await;
                assert!(done, "{obstacle:?}: after {command}: {said}");
            }
            drop(stranger);
        }
        assert!(tried.len() >= *least, "{obstacle:?}: only {tried:?}");
    }
}
