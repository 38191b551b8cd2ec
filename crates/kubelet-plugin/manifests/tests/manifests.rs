//! The files of `deploy/kubernetes`: read into Kubernetes' own types, with nothing left over.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Namespace, Pod, PodSpec, ServiceAccount},
};
use serde_json::Value;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../deploy/kubernetes")
}

fn text(name: &str) -> String {
    std::fs::read_to_string(dir().join(name)).unwrap()
}

fn value(name: &str) -> Value {
    serde_saphyr::from_str(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What of `written` is not in `read`: words that the type doesn't know.
fn lost(written: &Value, read: &Value, at: &str, found: &mut Vec<String>) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (key, value) in written {
                let at = format!("{at}.{key}");
                match read.get(key) {
                    Some(read) => lost(value, read, &at, found),
                    None => found.push(at),
                }
            }
        }
        (Value::Array(written), Value::Array(read)) if written.len() == read.len() => {
            for (index, (written, read)) in written.iter().zip(read).enumerate() {
                lost(written, read, &format!("{at}[{index}]"), found);
            }
        }
        (written, read) if written == read => {}
        (written, read) => found.push(format!("{at}: {written} is read as {read}")),
    }
}

/// Reads a document as a type that has to know all of it.
fn strictly<T>(text: &str) -> Result<T, String>
where
    T: serde::de::DeserializeOwned + serde::Serialize + k8s_openapi::Resource,
{
    let written: Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    assert_eq!(
        (&written["apiVersion"], &written["kind"]),
        (&T::API_VERSION.into(), &T::KIND.into())
    );
    let read: T = serde_json::from_value(written.clone()).map_err(|error| error.to_string())?;
    let mut found = Vec::new();
    lost(&written, &serde_json::to_value(&read).unwrap(), "", &mut found);
    if found.is_empty() { Ok(read) } else { Err(found.join(", ")) }
}

fn read<T>(name: &str) -> T
where
    T: serde::de::DeserializeOwned + serde::Serialize + k8s_openapi::Resource,
{
    strictly(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn strings(value: &Value) -> BTreeSet<String> {
    value.as_array().into_iter().flatten().map(|one| one.as_str().unwrap().to_owned()).collect()
}

/// The YAML files of a directory, its kustomization left out.
fn files(below: &str) -> BTreeSet<String> {
    std::fs::read_dir(dir().join(below))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml") && name != "kustomization.yaml")
        .collect()
}

/// Every mount has its volume and every volume its mount.
fn volumes_fit(name: &str, spec: &PodSpec) {
    let volumes: BTreeSet<&str> =
        spec.volumes.iter().flatten().map(|volume| volume.name.as_str()).collect();
    let mounts: BTreeSet<&str> = spec
        .containers
        .iter()
        .flat_map(|container| container.volume_mounts.iter().flatten())
        .map(|mount| mount.name.as_str())
        .collect();
    assert_eq!(volumes, mounts, "{name}");
}

#[test]
fn a_word_that_the_type_does_not_know_is_found() {
    let good = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\nspec:\n  containers: []\n";
    strictly::<Pod>(good).unwrap();
    let bad = format!("{good}  hostPid: true\n");
    assert_eq!(strictly::<Pod>(&bad).unwrap_err(), ".spec.hostPid");
    let bad = format!("{good}  hostPID: 1\n");
    assert!(strictly::<Pod>(&bad).is_err());
}

#[test]
fn every_file_is_listed_and_every_listed_file_is_there() {
    for below in ["", "examples"] {
        let kustomization = match below {
            "" => value("kustomization.yaml"),
            below => value(&format!("{below}/kustomization.yaml")),
        };
        assert_eq!(kustomization["kind"], "Kustomization");
        assert_eq!(strings(&kustomization["resources"]), files(below), "{below}");
    }
    let generated = &value("kustomization.yaml")["configMapGenerator"][0];
    for file in strings(&generated["files"]) {
        assert!(dir().join(&file).is_file(), "{file}");
    }
    // The CR is somebody else's object, of which this is a part: applied by hand.
    assert_eq!(files("kubevirt"), BTreeSet::from(["kubevirt.yaml".to_owned()]));
}

#[test]
fn the_daemon_set_fits_the_rest() {
    let set: DaemonSet = read("daemon-set.yaml");
    let namespace: Namespace = read("namespace.yaml");
    let account: ServiceAccount = read("service-account.yaml");
    let kustomization = value("kustomization.yaml");
    let spec = set.spec;
    let template = spec.template;
    let labels = template.metadata.unwrap().labels.unwrap();
    let selector = spec.selector.match_labels.unwrap();
    assert!(!selector.is_empty());
    assert!(selector.iter().all(|(key, value)| labels.get(key) == Some(value)));
    let pod = template.spec.unwrap();
    volumes_fit("daemon-set.yaml", &pod);
    assert_eq!(pod.service_account_name, account.metadata.name);
    assert_eq!(account.automount_service_account_token, Some(false));
    for namespaced in [&set.metadata.namespace, &account.metadata.namespace] {
        assert_eq!(namespaced, &namespace.metadata.name);
    }
    assert_eq!(kustomization["namespace"].as_str(), namespace.metadata.name.as_deref());
    let config = pod.volumes.iter().flatten().find_map(|volume| volume.config_map.as_ref());
    let generated = &kustomization["configMapGenerator"][0];
    assert_eq!(config.unwrap().name, generated["name"].as_str().unwrap());
    let image = pod.containers[0].image.as_deref().unwrap();
    assert_eq!(kustomization["images"][0]["name"].as_str(), Some(image));
    // Two at once would have the kubelet disconnect the new one.
    let rolling = spec.update_strategy.unwrap().rolling_update.unwrap();
    let none = k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(0);
    assert_eq!(rolling.max_surge, Some(none));
}

#[test]
fn the_daemon_set_has_the_least_rights_that_do() {
    let set: DaemonSet = read("daemon-set.yaml");
    let pod = set.spec.template.spec.unwrap();
    assert_eq!(pod.host_pid, Some(true));
    assert_eq!((pod.host_network, pod.host_ipc), (None, None));
    let seccomp = pod.security_context.unwrap().seccomp_profile.unwrap();
    assert_eq!(seccomp.type_, "RuntimeDefault");
    for container in &pod.containers {
        let rights = container.security_context.as_ref().unwrap();
        assert_eq!(rights.privileged, Some(false));
        assert_eq!(rights.allow_privilege_escalation, Some(false));
        assert_eq!(rights.read_only_root_filesystem, Some(true));
        let capabilities = rights.capabilities.as_ref().unwrap();
        assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
        // As in the unit, which has been seen to do.
        let unit = text("berth-kubelet-plugin.service");
        let bounding = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        let unit: BTreeSet<String> = bounding
            .unwrap()
            .split(' ')
            .map(|word| word.trim_start_matches("CAP_").to_owned())
            .collect();
        assert_eq!(capabilities.add.iter().flatten().cloned().collect::<BTreeSet<_>>(), unit);
    }
    // No path of the host but those of the configuration, as its file has them.
    let paths: BTreeSet<&str> = pod
        .volumes
        .iter()
        .flatten()
        .filter_map(|volume| volume.host_path.as_ref())
        .map(|host| host.path.as_str())
        .collect();
    let config = text("kubelet-plugin.toml");
    let named = |key: &str| {
        let line = config.lines().find_map(|line| line.strip_prefix(&format!("#{key} = \"")));
        line.unwrap_or_else(|| panic!("{key}")).trim_end_matches('"')
    };
    let parent = |path: &'static str| Path::new(path).parent().unwrap().to_str().unwrap();
    assert_eq!(named("berthd"), "/run/berth/berthd.sock");
    assert_eq!(named("handover"), "/run/berth/handover.sock");
    assert_eq!(named("kubelet_dir"), "/var/lib/kubelet");
    let expected = BTreeSet::from([
        parent("/run/berth/berthd.sock"),
        "/var/lib/kubelet/device-plugins",
        "/var/lib/kubelet/pod-resources",
        named("cdi_dir"),
        named("state_dir"),
        "/run/berth-kubelet-plugin",
    ]);
    assert_eq!(paths, expected);
    for mount in pod.containers[0].volume_mounts.iter().flatten() {
        let volumes = pod.volumes.as_ref().unwrap();
        let volume = volumes.iter().find(|volume| volume.name == mount.name).unwrap();
        let same =
            |host: &k8s_openapi::api::core::v1::HostPathVolumeSource| host.path == mount.mount_path;
        assert!(volume.host_path.as_ref().is_none_or(same), "{}", mount.name);
    }
}

#[test]
fn the_pods_ask_for_a_group_and_are_read_strictly() {
    for name in files("examples") {
        let name = format!("examples/{name}");
        let pod: Pod = read(&name);
        let spec = pod.spec.unwrap();
        volumes_fit(&name, &spec);
        let container = &spec.containers[0];
        let limits = container.resources.as_ref().unwrap().limits.as_ref().unwrap();
        let resource = limits.keys().find(|key| key.starts_with("example.com/")).unwrap();
        // The variables are those of the resource that it asks for.
        let env = resource.to_uppercase().replace(['/', '.'], "_");
        let words = container.args.iter().flatten().flat_map(|line| line.split('$').skip(1));
        for word in words {
            let end = word.find(|letter: char| !(letter.is_ascii_uppercase() || letter == '_'));
            let variable = &word[..end.unwrap_or(word.len())];
            assert!(variable.ends_with(&env), "{name}: ${variable} and {resource}");
        }
    }
}

/// Only that it is YAML, and of which kind: there are no types of KubeVirt's here to read it into.
#[test]
fn the_part_of_kubevirts_cr_is_well_formed() {
    let cr = value("kubevirt/kubevirt.yaml");
    assert_eq!(
        (cr["apiVersion"].as_str(), cr["kind"].as_str()),
        (Some("kubevirt.io/v1"), Some("KubeVirt"))
    );
}
