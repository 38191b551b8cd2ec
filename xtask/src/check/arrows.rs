//! Which crate of ours may see which.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::run::cargo;
use serde_json::Value;

/// Every crate and what it may depend on, dev-dependencies left out.
const ALLOWED: &[(&str, &[&str])] = &[
    ("berth-uapi", &[]),
    ("berth-dma", &["berth-uapi"]),
    ("berth-handover", &[]),
    ("berth-ownership", &[]),
    ("berth-roles", &[]),
    ("berth-proto", &[]),
    ("berth-host", &["berth-uapi", "berth-dma"]),
    ("berth-confine", &["berth-uapi"]),
    ("berth-manual", &[]),
    ("berth-helper", &["berth-uapi", "berth-host", "berth-confine", "berth-manual"]),
    (
        "berthd",
        &[
            "berth-uapi",
            "berth-dma",
            "berth-handover",
            "berth-ownership",
            "berth-roles",
            "berth-proto",
            "berth-host",
            "berth-helper",
            "berth-confine",
            "berth-manual",
        ],
    ),
    ("berth", &["berth-proto", "berth-handover"]),
    ("berth-kubelet-plugin", &["berth-proto", "berth-handover", "berth-manual"]),
    ("berth-kubelet-double", &["berth-kubelet-plugin"]),
    ("berth-kubernetes-manifests", &[]),
    (
        "berth-testvm",
        &["berth-uapi", "berth-dma", "berth-host", "berth-helper", "berth-proto", "berthd"],
    ),
    ("berth-measure", &[]),
    ("berth-dma-bench", &["berth-dma", "berth-measure", "berth-uapi"]),
    (
        "berth-bench",
        &[
            "berth-handover",
            "berth-measure",
            "berth-ownership",
            "berth-proto",
            "berth-host",
            "berthd",
        ],
    ),
    ("xtask", &["berth-testvm"]),
];

/// Crates that a VMM or a test links, so that none of these may be below them unless asked for: an
/// optional dependency is allowed where no default feature turns it on.
const LEAN: &[&str] = &["berth-uapi", "berth-dma", "berth-handover", "berth-ownership"];
const HEAVY: &[&str] = &["tokio", "tonic", "sqlx", "axum", "async-trait"];

pub(super) fn check(root: &Path) -> Result<()> {
    let output = cargo(root)
        .args(["metadata", "--format-version=1", "--no-deps"])
        .output()
        .context("start cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let wrong = wrong_arrows(&metadata).context("cargo metadata has an unknown shape")?;
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

fn wrong_arrows(metadata: &Value) -> Option<Vec<String>> {
    let crates = dependencies(metadata)?;
    let mut wrong = Vec::new();
    for (name, seen) in &crates {
        let Some((_, allowed)) = ALLOWED.iter().find(|(known, _)| known == name) else {
            wrong.push(format!("{name} is not in the table of xtask/src/check/arrows.rs"));
            continue;
        };
        for dependency in seen {
            let of = &dependency.name;
            if crates.contains_key(of) && !allowed.contains(&of.as_str()) {
                wrong.push(format!("{name} must not depend on {of}"));
            }
            let heavy = HEAVY.contains(&of.as_str()) && !dependency.on_request;
            if LEAN.contains(&name.as_str()) && heavy {
                wrong.push(format!("{name} is linked by others and must not bring {of}"));
            }
        }
    }
    Some(wrong)
}

struct Dependency {
    name: String,
    /// Optional, in a crate without default features: who wants it names it.
    on_request: bool,
}

fn dependencies(metadata: &Value) -> Option<BTreeMap<String, Vec<Dependency>>> {
    let mut crates = BTreeMap::new();
    for package in metadata.get("packages")?.as_array()? {
        let name = package.get("name")?.as_str()?.to_owned();
        let default = package.get("features")?.get("default").and_then(Value::as_array);
        let no_default = default.is_none_or(Vec::is_empty);
        let seen = package
            .get("dependencies")?
            .as_array()?
            .iter()
            .filter(|dependency| dependency.get("kind").is_some_and(|kind| kind != "dev"))
            .filter_map(|dependency| {
                let optional = dependency.get("optional")?.as_bool()?;
                Some(Dependency {
                    name: dependency.get("name")?.as_str()?.to_owned(),
                    on_request: optional && no_default,
                })
            })
            .collect();
        crates.insert(name, seen);
    }
    Some(crates)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn wrong(optional: bool, features: Value) -> Vec<String> {
        let tokio = json!({"name": "tokio", "kind": null, "optional": optional});
        let handover =
            json!({"name": "berth-handover", "features": features, "dependencies": [tokio]});
        wrong_arrows(&json!({"packages": [handover]})).unwrap()
    }

    #[test]
    fn a_lean_crate_brings_a_runtime_only_to_those_who_ask() {
        assert_eq!(wrong(true, json!({"tokio": ["dep:tokio"]})), Vec::<String>::new());
        let brought = ["berth-handover is linked by others and must not bring tokio"];
        assert_eq!(wrong(false, json!({})), brought);
        assert_eq!(wrong(true, json!({"default": ["tokio"], "tokio": ["dep:tokio"]})), brought);
    }
}
