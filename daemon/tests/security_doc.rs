//! `docs/security.md` names tests; each of them is there.

use std::{collections::BTreeSet, fs, path::Path};

/// The names of the functions in all Rust files below a directory.
fn functions(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "target" {
            functions(&path, found);
        } else if name.ends_with(".rs") {
            let text = fs::read_to_string(&path).expect("text");
            let names = text.split("fn ").skip(1).filter_map(|rest| rest.split('(').next());
            found.extend(names.map(str::to_owned));
        }
    }
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("docs/security.md")).expect("the page");
    let mut there = BTreeSet::new();
    for dir in ["daemon", "crates", "cli"] {
        functions(&root.join(dir), &mut there);
    }
    // A name of three words or more in backticks is a test's.
    let named: Vec<&str> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.matches('_').count() >= 2 && !word.contains(['.', ' ', '=']))
        .collect();
    assert!(named.len() >= 25, "{named:?}");
    let missing: Vec<&&str> = named.iter().filter(|name| !there.contains(**name)).collect();
    assert!(missing.is_empty(), "no such tests: {missing:?}");
    for number in 1..=22 {
        assert!(page.contains(&format!("\n| {number} | ")), "attack {number} has no row");
    }
}
