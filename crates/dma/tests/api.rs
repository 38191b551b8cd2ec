//! The public API is listed in `api.txt`: a change of it is one that was meant.
//!
//! `BERTH_BLESS=1 cargo test -p berth-dma --test api` writes the list anew.

use std::path::{Path, PathBuf};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            found.push(path);
        }
    }
}

/// What `of` begins with, up to its body, in one line.
fn declaration<'a>(lines: &mut impl Iterator<Item = &'a str>, first: &str) -> String {
    let mut whole = first.trim().to_owned();
    while !(whole.contains('{') || whole.ends_with([';', ',']) && !whole.contains('(')) {
        let done = whole.ends_with(';') || (whole.ends_with(',') && balanced(&whole));
        let next = lines.next().filter(|_| !done);
        let Some(next) = next else { break };
        whole.push(' ');
        whole.push_str(next.trim());
    }
    let end = whole.find(" {").unwrap_or(whole.len());
    whole[..end].trim_end_matches([';', ',', '{', ' ']).replace("( ", "(").replace(", )", ")")
}

fn balanced(text: &str) -> bool {
    text.matches('(').count() == text.matches(')').count()
}

/// Public items, fields and methods of a file, and the variants of its public enums.
fn listed(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut owner = String::new();
    let code = text.split("\n#[cfg(test)]\n").next().unwrap_or_default();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let (indent, trimmed) = (line.len() - line.trim_start().len(), line.trim());
        if indent == 0 && (trimmed.starts_with("impl") || trimmed.starts_with("pub ")) {
            owner = declaration(&mut lines, trimmed);
            if trimmed.starts_with("pub ") {
                found.push(format!("{name}: {owner}"));
            }
        } else if indent == 0 && !trimmed.is_empty() && !trimmed.starts_with(['#', '/', '}']) {
            owner.clear();
        } else if trimmed.starts_with("pub ") && !owner.is_empty() {
            let item = declaration(&mut lines, trimmed);
            found.push(format!("{name}: {owner}: {item}"));
        } else if indent == 4
            && owner.starts_with("pub enum")
            && trimmed.starts_with(|c: char| c.is_ascii_uppercase())
        {
            let variant = trimmed.trim_end_matches(['{', ',', ' ']);
            found.push(format!("{name}: {owner}: {variant}"));
        }
    }
    found
}

#[test]
fn the_public_api_is_what_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let name = file.strip_prefix(root.join("src")).expect("inside").display().to_string();
        if !name.contains("tests") {
            found.extend(listed(&name, &std::fs::read_to_string(&file).expect("a file")));
        }
    }
    let found = found.join("\n") + "\n";
    let list = root.join("api.txt");
    if std::env::var_os("BERTH_BLESS").is_some() {
        std::fs::write(&list, &found).expect("written");
    }
    let known = std::fs::read_to_string(&list).unwrap_or_default();
    let (mut new, mut gone) = (Vec::new(), Vec::new());
    for line in found.lines().filter(|line| !known.lines().any(|known| known == *line)) {
        new.push(line);
    }
    for line in known.lines().filter(|line| !found.lines().any(|found| found == *line)) {
        gone.push(line);
    }
    assert!(
        new.is_empty() && gone.is_empty(),
        "api.txt doesn't list\n{}\nand lists what is gone\n{}\nIf that was meant, bless it: see the \
         head of this test",
        new.join("\n"),
        gone.join("\n"),
    );
}
