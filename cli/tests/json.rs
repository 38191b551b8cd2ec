//! What `-o json` prints is what `docs/api/openapi.json` says, of every command that prints an answer.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic as tests do")]

mod daemon;

use std::{fs, path::Path};

use daemon::Daemon;
use serde_json::{Value, json};

/// Alone in its group, free in the topology `small`, without a reset.
const DEVICE: &str = "0000:00:05.0";
/// On a host driver.
const NIC: &str = "0000:04:00.0";

fn document() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api/openapi.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Schemas by name, of the published document.
struct Schemas {
    components: Value,
}

impl Schemas {
    fn load() -> Self {
        Self { components: document()["components"].clone() }
    }

    /// What is wrong with a value.
    fn wrong(&self, name: &str, value: &Value) -> Vec<String> {
        assert!(self.components["schemas"][name].is_object(), "there is no schema {name}");
        let schema = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$ref": format!("#/components/schemas/{name}"),
            "components": self.components,
        });
        let validator = jsonschema::validator_for(&schema).unwrap();
        let found = validator.iter_errors(value);
        let mut wrong: Vec<String> =
            found.map(|error| format!("{}: {error}", error.instance_path())).collect();
        wrong.extend(self.unknown(name, value));
        wrong
    }

    /// Fields that the document doesn't have: it leaves room for later ones, and there are none yet.
    fn unknown(&self, name: &str, value: &Value) -> Vec<String> {
        let known = self.components["schemas"][name]["properties"].as_object().unwrap();
        let fields = value.as_object().unwrap().keys();
        fields.filter(|field| !known.contains_key(*field)).cloned().collect()
    }
}

fn text(daemon: &Daemon, args: &[&str]) -> String {
    let output = daemon.berth(&[&["-o", "json"], args].concat());
    assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn printed(daemon: &Daemon, schemas: &Schemas, args: &[&str], name: &str) -> Value {
    let printed = text(daemon, args);
    let value = serde_json::from_str(&printed).unwrap();
    let wrong = schemas.wrong(name, &value);
    assert!(wrong.is_empty(), "{args:?}: {wrong:#?}\n{printed}");
    value
}

#[test]
fn every_answer_is_as_the_published_document_says() {
    let (daemon, schemas) = (Daemon::start(|_| String::new()), Schemas::load());
    let see = |args: &[&str], name: &str| printed(&daemon, &schemas, args, name);
    for (args, name) in [
        (&["group", "list"][..], "ListGroupsResponse"),
        (&["group", "show", DEVICE], "Group"),
        (&["device", "list"], "ListDevicesResponse"),
        (&["device", "show", NIC], "Device"),
        (&["explain", "05:00.0"], "Explanation"),
        (&["explain", DEVICE, "--memory", "512G"], "Explanation"),
        (&["explain", "--what-if", "acs=on"], "WhatIfResponse"),
        (&["capabilities"], "Capabilities"),
        (&["snapshot"], "Snapshot"),
        (&["quota"], "ListQuotasResponse"),
        (&["config"], "ConfigState"),
        (&["kernel-dma", "query", NIC], "KernelDma"),
        (&["kernel-dma", "release", NIC, "--dry-run"], "KernelDma"),
        (&["kernel-dma", "release", NIC], "KernelDma"),
        (&["kernel-dma", "set", NIC, "--dry-run"], "KernelDma"),
        (&["kernel-dma", "set", NIC], "KernelDma"),
        (&["cordon", NIC, "--note", "loud", "--for", "1h"], "Device"),
        (&["device", "show", NIC], "Device"),
        (&["uncordon", NIC], "Device"),
    ] {
        see(args, name);
    }
    let wanted = ["reserve", "--holder", "vm", "--device", DEVICE, "--policy", "group"];
    let options = ["--delivery", "held", "--ttl", "1h"];
    let reserve = [&wanted[..], &options].concat();
    see(&[&reserve[..], &["--dry-run"]].concat(), "Reservation");
    let id = see(&reserve, "Reservation")["id"].as_str().unwrap().to_owned();
    see(&["reservation", "renew", &id], "Reservation");
    let domain = see(&["attach", &id], "Reservation")["domain"].as_str().unwrap().to_owned();
    see(&["reservation", "show", &id], "Reservation");
    see(&["reservation", "list"], "ListReservationsResponse");
    see(&["domain", "list"], "ListDomainsResponse");
    see(&["domain", "show", &domain], "Domain");
    let other = see(&["domain", "create", "--context", &id], "Domain")["id"].clone();
    let other = other.as_str().unwrap();
    see(&["domain", "replace", "--reservation", &id, "--domain", other], "Reservation");
    see(&["detach", &id], "Reservation");
    let spare = see(&["domain", "create", "--context", &id], "Domain")["id"].clone();
    see(&["domain", "delete", spare.as_str().unwrap()], "DeleteDomainResponse");
    see(&["revoke", &id, "--dry-run"], "Reservation");
    let told = see(&["release", &id, "--dry-run"], "Reservation");
    assert!(told["writes"].as_array().is_some_and(|writes| !writes.is_empty()), "{told}");
    see(&["release", &id], "Reservation");
    see(&["doctor"], "Diagnosis");
    see(&["quarantine", "clear", DEVICE, "--reason", "looked at"], "Device");
    see(&["history"], "ListEventsResponse");
    for line in text(&daemon, &["history", "export"]).lines() {
        let event = serde_json::from_str(line).unwrap();
        assert_eq!(schemas.wrong("Event", &event), Vec::<String>::new(), "{line}");
    }
}

#[test]
fn a_wrong_answer_would_be_noticed() {
    let schemas = Schemas::load();
    let right = json!({"findings": []});
    assert_eq!(schemas.wrong("Diagnosis", &right), Vec::<String>::new());
    for wrong in [json!({}), json!({"findings": [{}]}), json!({"findings": [], "more": 1})] {
        assert!(!schemas.wrong("Diagnosis", &wrong).is_empty(), "{wrong}");
    }
}
