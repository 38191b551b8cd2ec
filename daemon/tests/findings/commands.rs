//! The commands that are printed, run as they are printed.

use std::{collections::BTreeSet, path::Path, process::Command};

use berth_host::{ResetOutcome, sim::Foreign};
use serde_json::{Value, json};

use super::{
    causes::{BEHIND, CASES, Cause, DISK, FREE, NIC, NO_RESET, SIBLING, at, post, reserved},
    stories::{Story, attached, lived},
};
use crate::{SETTINGS, front_support::Running, until_said};

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
    /// As it is planted to be found.
    Planted,
    /// In a test of its own.
    Apart,
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Row {
    obstacle: Obstacle,
    /// What it is found as; empty where that has no command, and the refusal does.
    pub(crate) code: &'static str,
    /// The device that is wanted.
    device: &'static str,
    policy: &'static str,
}

const fn row(
    obstacle: Obstacle,
    code: &'static str,
    device: &'static str,
    policy: &'static str,
) -> Row {
    Row { obstacle, code, device, policy }
}

pub(crate) const ROWS: &[Row] = &[
    row(Obstacle::Cordoned, "CORDONED", FREE, "exclusive"),
    row(Obstacle::Quarantined, "QUARANTINED", FREE, "exclusive"),
    row(Obstacle::OneLabelOnly, "ONE_LABEL_ONLY", NO_RESET, "exclusive"),
    row(Obstacle::Reserved, "RESERVED", FREE, "exclusive"),
    row(Obstacle::Attached, "RESERVED", FREE, "exclusive"),
    row(Obstacle::HostDriver, "HOST_DRIVER", NIC, "exclusive"),
    row(Obstacle::Mounted, "HOST_DRIVER", DISK, "exclusive"),
    row(Obstacle::Sibling, "SIBLING_DRIVER", SIBLING, "group"),
    row(Obstacle::NotSingleton, "", BEHIND, "exclusive"),
    row(Obstacle::Foreign, "FOREIGN_OWNER", NO_RESET, "exclusive"),
    row(Obstacle::ResetTogether, "RESET_TOGETHER", FREE, "exclusive"),
    row(Obstacle::Planted, "MULTIFUNCTION", NO_RESET, "exclusive"),
    row(Obstacle::Planted, "LEASE_OVER", FREE, "exclusive"),
    row(Obstacle::Planted, "HOLDER_DRAINING", FREE, "exclusive"),
    row(Obstacle::Apart, "RESERVATION_LOST", FREE, "exclusive"),
    row(Obstacle::Apart, "DRIFT", SIBLING, "group"),
];

/// `berth`, as a shell runs it. The simulated machine has no mounts: what a command ends there is ended
/// for it first.
async fn sh(running: &Running, command: &str) -> (bool, String) {
    let tools = tempfile::tempdir().expect("a directory");
    if command.starts_with("umount ") {
        let umount = tools.path().join("umount");
        std::fs::write(&umount, "#!/bin/sh\n[ $# = 1 ] && [ \"$1\" = /srv/data ]\n")
            .expect("written");
        let runs = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&umount, runs).expect("it is ours");
        running.host.set_uses(at(DISK), Vec::new()).expect("there");
    }
    let program = Path::new(env!("CARGO_BIN_EXE_berthd")).with_file_name("berth");
    assert!(program.exists(), "cargo build -p berth builds {}", program.display());
    let folder = program.parent().expect("a directory").display().to_string();
    let mut shell = Command::new("sh");
    let path = std::env::var("PATH").unwrap_or_default();
    shell
        .args(["-c", command])
        .env("PATH", format!("{}:{folder}:{path}", tools.path().display()))
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

/// What plants the finding of a row.
fn story(row: &Row) -> Story {
    let case = CASES.iter().find(|case| case.code == row.code).expect("a case");
    let Cause::Story(story) = case.cause else { panic!("{case:?} is none") };
    story
}

/// Puts the obstacle there; a stranger lives as long as what is answered.
async fn put(running: &Running, row: &Row) -> Option<Foreign> {
    let sim = &running.host;
    match row.obstacle {
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
            until_said(running, "/api/v1/doctor", "FOREIGN_OWNER").await;
            return Some(stranger);
        }
        Obstacle::ResetTogether => {
            sim.set_reset_scope(at(FREE), &["bus"], &[at(NO_RESET)]).expect("there");
            until_said(running, "/api/v1/doctor", "its reset hits 0000:00:05.0").await;
            reserved(running, NO_RESET).await;
        }
        Obstacle::Planted | Obstacle::Apart => {
            let planted = story(row).plant(running).await;
            let path = format!("/api/v1/devices/{}/explain", row.device);
            until_said(running, &path, &format!("\"{}\"", row.code)).await;
            return planted.rival;
        }
    }
    None
}

/// What the explanation of a device says, policy by policy and finding by finding.
async fn explained(running: &Running, device: &str) -> Value {
    running.unix("GET", &format!("/api/v1/devices/{device}/explain"), None).await.json()
}

/// What is there to be run.
fn is_command(text: &str) -> bool {
    text.starts_with("berth ") || text.contains("&& berth ")
}

/// Every command of `berth` that an explanation of the device prints, in its order.
fn printed(explained: &Value, device: &str, policy: &str) -> Vec<String> {
    let verdicts = explained["policies"].as_array().expect("verdicts").iter();
    let wanted = policy.to_ascii_uppercase();
    let refusals = verdicts.filter(|it| it["policy"] == wanted).map(|it| &it["refusal"]["resolve"]);
    let devices = explained["devices"].as_array().expect("devices").iter();
    let own =
        devices.filter(|it| it["device"]["address"]["pci"] == device).map(|it| &it["resolve"]);
    let findings = explained["findings"].as_array().expect("findings").iter();
    let fixes = findings.map(|it| &it["fixes"]);
    let mut texts = Vec::new();
    for value in refusals.chain(own).chain(fixes) {
        match value {
            Value::String(text) => texts.push(text.clone()),
            Value::Array(several) => {
                texts.extend(several.iter().filter_map(Value::as_str).map(str::to_owned));
            }
            _ => {}
        }
    }
    texts.retain(|text| is_command(text));
    texts
}

/// The commands of one finding.
fn of_finding(explained: &Value, code: &str) -> Vec<String> {
    let findings = explained["findings"].as_array().expect("findings").iter();
    let fixes = findings
        .filter(|it| it["code"] == code)
        .flat_map(|it| it["fixes"].as_array().expect("fixes").iter().filter_map(Value::as_str));
    fixes.filter(|fix| is_command(fix)).map(str::to_owned).collect()
}

/// Ids and pids are new on each machine: commands are told apart without them.
fn verb(command: &str) -> String {
    let words = command.split(' ').filter(|word| !word.starts_with("r-"));
    words.take_while(|word| *word != "--pid").collect::<Vec<_>>().join(" ")
}

/// Some reserve by themselves, and one lets the owner go on: it ends the finding.
fn frees(command: &str) -> bool {
    !["berth reserve", "berth adopt", "berth reservation renew"]
        .iter()
        .any(|other| command.starts_with(other))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_printed_command_makes_the_next_reservation_succeed() {
    for row in ROWS.iter().filter(|row| !matches!(row.obstacle, Obstacle::Apart)) {
        let (mut tried, mut own) = (BTreeSet::new(), BTreeSet::new());
        loop {
            let running = Running::with(SETTINGS).await;
            let stranger = put(&running, row).await;
            let (done, said) = reserve(&running, row.device, row.policy).await;
            assert!(!done, "{row:?} is none: {said}");
            let explained = explained(&running, row.device).await;
            own.extend(of_finding(&explained, row.code).iter().map(|it| verb(it)));
            let commands = printed(&explained, row.device, row.policy);
            let Some(command) = commands.iter().find(|it| !tried.contains(&verb(it))) else {
                break;
            };
            tried.insert(verb(command));
            let (done, said) = sh(&running, command).await;
            assert!(done, "{row:?}: {command}: {said}");
            if command.starts_with("berth reservation renew") {
                let now = self::explained(&running, row.device).await;
                assert!(!now.to_string().contains(row.code), "{command}: {now:#}");
            } else if frees(command) {
                let (done, said) = reserve(&running, row.device, row.policy).await;
                assert!(done, "{row:?}: after {command}: {said}");
            }
            drop(stranger);
        }
        assert!(!tried.is_empty() && own.is_subset(&tried), "{row:?}: {own:?} of {tried:?}");
    }
}

/// Two have the group: what ends the drift, then what ends the reservation and what that leaves.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_of_a_drift_ends_it_and_the_owners_command_the_rest() {
    let row = ROWS.iter().find(|row| row.code == "DRIFT").expect("a row");
    let running = Running::with(SETTINGS).await;
    put(&running, row).await;
    let causes = [
        ("DRIFT", false),
        ("RESERVED", false),
        // Given back, without a reset, to the driver that there was.
        ("ONE_LABEL_ONLY", false),
        ("SIBLING_DRIVER", true),
    ];
    for (code, is_last) in causes {
        let (done, said) = reserve(&running, row.device, row.policy).await;
        assert!(!done, "{code} is none: {said}");
        let explained = explained(&running, row.device).await;
        let commands = of_finding(&explained, code);
        assert!(!commands.is_empty(), "{code}: {explained:#}");
        for command in &commands {
            let (done, said) = sh(&running, command).await;
            assert!(done, "{command}: {said}");
        }
        let now = self::explained(&running, row.device).await;
        assert!(of_finding(&now, code).is_empty(), "after {commands:?}: {now:#}");
        let (done, said) = reserve(&running, row.device, row.policy).await;
        assert!(done == is_last, "after {commands:?}: {said}");
    }
}

/// It is in nobody's way: its command puts it out of the doctor's sight.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_of_a_lost_reservation_ends_it() {
    let running = Running::with(SETTINGS).await;
    Story::Lost.plant(&running).await;
    until_said(&running, "/api/v1/doctor", "RESERVATION_LOST").await;
    let found = running.unix("GET", "/api/v1/doctor", None).await.json();
    let findings = found["findings"].as_array().expect("findings").iter();
    let lost = findings.filter(|it| it["code"] == "RESERVATION_LOST");
    let fixes: Vec<&str> = lost.filter_map(|it| it["fixes"][0].as_str()).collect();
    let [command] = fixes.as_slice() else { panic!("not one: {found:#}") };
    let (done, said) = sh(&running, command).await;
    assert!(done, "{command}: {said}");
    let found = running.unix("GET", "/api/v1/doctor", None).await;
    assert!(!found.body.contains("RESERVATION_LOST"), "{found:?}");
    let (done, said) = reserve(&running, FREE, "exclusive").await;
    assert!(done, "{said}");
}
