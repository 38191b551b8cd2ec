//! `cargo xtask sbom`: what the programs that are shipped are made of, as a CycloneDX document. The same
//! sources give the same bytes: it says nothing of when and where it was written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::run::cargo;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::workspace;

/// The crates whose programs are installed.
const SHIPPED: [&str; 4] = ["berthd", "berth", "berth-helper", "berth-kubelet-plugin"];

/// They run on Linux; what other systems need is left out.
pub(crate) const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// Arguments of `cargo xtask sbom`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where it is written; `-` is standard output.
    #[arg(long, value_name = "FILE", default_value = "target/berth.cdx.json")]
    out: PathBuf,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    let root = workspace::root();
    let document = document(&root)?;
    let text = text(&document)?;
    if arguments.out == Path::new("-") {
        print!("{text}");
        return Ok(());
    }
    let file = root.join(&arguments.out);
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
    println!("{} components in {}", count(&document), file.display());
    Ok(())
}

/// What some of the programs are made of.
#[derive(Debug)]
pub(crate) struct MadeOf {
    /// The document.
    pub(crate) document: String,
    /// Each crate that isn't Berth's, by name and version, and where its sources are.
    pub(crate) sources: Vec<(String, PathBuf)>,
}

/// The same of the programs of some crates alone.
pub(crate) fn of(root: &Path, crates: &[&str]) -> Result<MadeOf> {
    let metadata = metadata(root)?;
    let document = text(&compose(&metadata, &lock(root)?, crates)?)?;
    let edges = edges(&metadata);
    let reached = reached(&roots(&metadata, crates)?, &edges);
    let others = metadata.packages.iter().filter(|it| it.source.is_some());
    let mut sources: Vec<(String, PathBuf)> = others
        .filter(|package| reached.contains(package.id.as_str()))
        .filter_map(|package| {
            let dir = package.manifest_path.parent()?.to_owned();
            Some((format!("{} {}", package.name, package.version), dir))
        })
        .collect();
    sources.sort();
    Ok(MadeOf { document, sources })
}

fn text(document: &Value) -> Result<String> {
    Ok(serde_json::to_string_pretty(document)? + "\n")
}

fn count(document: &Value) -> usize {
    document["components"].as_array().map_or(0, Vec::len)
}

/// What `cargo metadata` says.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    source: Option<String>,
    license: Option<String>,
    description: Option<String>,
    repository: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    /// `null` for what is linked, `build`, `dev`.
    kind: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Debug, Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

fn document(root: &Path) -> Result<Value> {
    compose(&metadata(root)?, &lock(root)?, &SHIPPED)
}

fn lock(root: &Path) -> Result<Lock> {
    let text = fs::read_to_string(root.join("Cargo.lock")).context("read Cargo.lock")?;
    toml::from_str(&text).context("Cargo.lock")
}

fn metadata(root: &Path) -> Result<Metadata> {
    let output = cargo(root)
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", PLATFORM])
        .output()
        .context("start cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata")
}

fn roots<'a>(metadata: &'a Metadata, shipped: &[&str]) -> Result<Vec<&'a Package>> {
    let named = metadata.packages.iter().filter(|it| shipped.contains(&it.name.as_str()));
    let roots: Vec<&Package> = named.filter(|it| it.source.is_none()).collect();
    if roots.len() != shipped.len() {
        bail!("of {shipped:?} there are {}", roots.len());
    }
    Ok(roots)
}

fn compose(metadata: &Metadata, lock: &Lock, shipped: &[&str]) -> Result<Value> {
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let edges = edges(metadata);
    let roots = roots(metadata, shipped)?;
    let version = &roots.first().context("nothing is shipped")?.version;
    let reached = reached(&roots, &edges);
    let mut chosen: Vec<&Package> =
        reached.iter().filter_map(|id| packages.get(id).copied()).collect();
    chosen.sort_by_key(|package| purl(package));
    let checksums: BTreeMap<(&str, &str), &str> = lock
        .package
        .iter()
        .filter_map(|it| Some(((it.name.as_str(), it.version.as_str()), it.checksum.as_deref()?)))
        .collect();
    let components: Vec<Value> = chosen
        .iter()
        .map(|package| {
            let key = (package.name.as_str(), package.version.as_str());
            component(package, checksums.get(&key).copied())
        })
        .collect();
    let whole = format!("pkg:generic/berth@{version}");
    let mut dependencies = vec![depends(&whole, roots.iter().map(|it| purl(it)).collect())];
    dependencies.extend(chosen.iter().map(|package| {
        let on = edges.get(package.id.as_str()).into_iter().flatten();
        let on = on.filter_map(|id| packages.get(id)).map(|it| purl(it)).collect();
        depends(&purl(package), on)
    }));
    Ok(json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": whole, "name": "berth", "version": version,
            },
        },
        "components": components,
        "dependencies": dependencies,
    }))
}

/// Which package is made with which, without what tests need.
fn edges(metadata: &Metadata) -> BTreeMap<&str, BTreeSet<&str>> {
    let nodes = metadata.resolve.nodes.iter();
    nodes
        .map(|node| {
            let made_with = |it: &&Dependency| {
                it.dep_kinds.iter().any(|kind| kind.kind.as_deref() != Some("dev"))
            };
            let on = node.deps.iter().filter(made_with).map(|it| it.pkg.as_str()).collect();
            (node.id.as_str(), on)
        })
        .collect()
}

fn reached<'a>(
    roots: &[&'a Package],
    edges: &BTreeMap<&'a str, BTreeSet<&'a str>>,
) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut left: Vec<&str> = roots.iter().map(|package| package.id.as_str()).collect();
    while let Some(id) = left.pop() {
        if reached.insert(id) {
            left.extend(edges.get(id).into_iter().flatten());
        }
    }
    reached
}

/// The package's URL, which names it everywhere.
fn purl(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

fn component(package: &Package, checksum: Option<&str>) -> Value {
    let ours = package.source.is_none();
    let shipped = ours && SHIPPED.contains(&package.name.as_str());
    let purl = purl(package);
    let mut component = json!({
        "type": if shipped { "application" } else { "library" },
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
    });
    if let Some(text) = &package.description {
        component["description"] = json!(text.trim());
    }
    if let Some(license) = &package.license {
        // An old way to write it.
        component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
    }
    if let Some(checksum) = checksum {
        component["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
    }
    if let Some(repository) = &package.repository {
        component["externalReferences"] = json!([{ "type": "vcs", "url": repository }]);
    }
    component
}

fn depends(what: &str, on: BTreeSet<String>) -> Value {
    json!({ "ref": what, "dependsOn": on })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(value: &Value, key: &str) -> Vec<String> {
        let all = value.as_array().expect("an array");
        all.iter().map(|it| it[key].as_str().expect("a text").to_owned()).collect()
    }

    fn text(value: &Value) -> String {
        value.as_str().expect("a text").to_owned()
    }

    #[test]
    fn it_has_what_the_schema_asks_for_and_is_the_same_again() {
        let root = workspace::root();
        let found = document(&root).expect("a document");
        assert_eq!(found, document(&root).expect("a document"));
        assert_eq!(
            (found["bomFormat"].as_str(), found["specVersion"].as_str()),
            (Some("CycloneDX"), Some("1.6"))
        );
        assert_eq!(found["version"], 1);
        let kinds = ["application", "library"];
        let mut refs = BTreeSet::from([text(&found["metadata"]["component"]["bom-ref"])]);
        for component in found["components"].as_array().expect("components") {
            assert!(kinds.contains(&component["type"].as_str().expect("a type")), "{component}");
            assert!(!component["name"].as_str().expect("a name").is_empty());
            assert!(component["licenses"][0]["expression"].is_string(), "{component}");
            assert!(refs.insert(text(&component["bom-ref"])), "twice: {component}");
            let hash = &component["hashes"][0];
            let ours = hash.is_null();
            assert!(
                ours || hash["content"].as_str().is_some_and(|it| it.len() == 64),
                "{component}"
            );
            assert_eq!(ours, component["name"].as_str().expect("a name").starts_with("berth"));
        }
        let whole = strings(&found["dependencies"], "ref");
        assert_eq!(whole.len(), refs.len(), "each has its dependencies");
        for dependency in found["dependencies"].as_array().expect("dependencies") {
            for on in dependency["dependsOn"].as_array().expect("a list") {
                assert!(refs.contains(&text(on)), "{on} is nothing");
            }
        }
    }

    #[test]
    fn what_is_shipped_is_in_it_and_what_tests_need_is_not() {
        let found = document(&workspace::root()).expect("a document");
        let names = strings(&found["components"], "name");
        for name in ["berthd", "berth", "tokio", "libsqlite3-sys", "seccompiler", "landlock"] {
            assert!(names.iter().any(|it| it == name), "{name} is missing");
        }
        for name in ["proptest", "rcgen", "xtask", "berth-testvm", "berth-bench"] {
            assert!(names.iter().all(|it| it != name), "{name} isn't shipped");
        }
    }
}
