//! The documents: their links lead somewhere, and their tours run as they are written.
//!
//! A fenced block that begins with `console tour` holds commands (`$ berth ...`) and what they
//! print. Each is run against a daemon on the document's simulated host; ids, epochs and times may
//! differ, all else must be equal. `BERTH_BLESS=1` writes what was printed into the document.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::daemon::Daemon;
use crate::{check::root, tally::Tally};

/// Documents, each with the simulated host of its tour.
const TOURS: [(&str, &str); 4] = [
    ("README.md", "small"),
    ("docs/quick-start.md", "small"),
    ("docs/sriov.md", "sriov-nic"),
    ("docs/dry-run.md", "small"),
];

pub(super) fn run() -> Result<Tally> {
    let root = root()?;
    let mut tally = Tally::default();
    let broken = broken_links(&root)?;
    for link in &broken {
        println!("broken link: {link}");
    }
    println!("docs links ... {}", if broken.is_empty() { "ok" } else { "FAILED" });
    tally += Tally::one(broken.is_empty());
    crate::run::build_for_tests(&root)?;
    for (name, topology) in TOURS {
        tally += tour(&root, name, topology)?;
    }
    tally += super::clients::run(&root)?;
    tally += super::api::run(&root)?;
    Ok(tally)
}

/// Relative links of every document that lead to no file.
fn broken_links(root: &Path) -> Result<Vec<String>> {
    let mut broken = Vec::new();
    for name in crate::check::documents(root)? {
        let text = fs::read_to_string(root.join(&name)).with_context(|| format!("read {name}"))?;
        let folder = Path::new(&name).parent().unwrap_or(Path::new("")).to_owned();
        for part in text.split("](").skip(1) {
            let link = part.split([')', ' ', '#']).next().unwrap_or_default();
            if link.is_empty() || link.contains(':') {
                continue;
            }
            if !root.join(&folder).join(link).exists() {
                broken.push(format!("{name}: {link}"));
            }
        }
    }
    Ok(broken)
}

fn tour(root: &Path, name: &str, topology: &str) -> Result<Tally> {
    let path = root.join(name);
    let text = fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
    let daemon = Daemon::start(root, &format!("sim:{topology}"))?;
    let mut written = Vec::new();
    let mut tally = Tally::default();
    let mut names = Names::default();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        written.push(line.to_owned());
        if line.trim() != "```console tour" {
            continue;
        }
        while let Some(line) = lines.next_if(|line| line.trim() != "```") {
            let Some(command) = line.strip_prefix("$ ") else {
                bail!("{name}: a tour block begins with `$ `, not with {line:?}");
            };
            let mut expected = Vec::new();
            while let Some(next) = lines.next_if(|l| !l.starts_with("$ ") && l.trim() != "```") {
                expected.push(next.to_owned());
            }
            let command = names.translate(command);
            let printed = run_command(root, &daemon, &command)?;
            let same = names.compare(&expected, &printed);
            println!("{name}: {command} ... {}", if same { "ok" } else { "FAILED" });
            if !same {
                println!(
                    "--- written\n{}\n--- printed\n{}",
                    expected.join("\n"),
                    printed.join("\n")
                );
            }
            names.learn(&printed);
            tally += Tally::one(same);
            written.push(format!("$ {command}"));
            written.extend(printed);
        }
    }
    if tally.passed + tally.failed == 0 {
        bail!("{name} has no tour");
    }
    if std::env::var_os("BERTH_BLESS").is_some() {
        fs::write(&path, written.join("\n") + "\n").with_context(|| format!("write {name}"))?;
    }
    Ok(tally)
}

fn run_command(root: &Path, daemon: &Daemon, command: &str) -> Result<Vec<String>> {
    let programs = root.join("target/debug");
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new("sh")
        .args(["-c", &format!("{command} 2>&1")])
        .env("PATH", format!("{}:{path}", programs.display()))
        .env("BERTH_ENDPOINT", daemon.endpoint())
        .env("COLUMNS", "132")
        .env("NO_COLOR", "1")
        .current_dir(root)
        .output()
        .with_context(|| format!("run {command}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Said before every answer of a simulated host; once in the document is enough.
    Ok(text
        .lines()
        .filter(|line| !line.starts_with("berth: simulated host "))
        .map(|line| line.trim_end().to_owned())
        .collect())
}

/// Ids as they are written and as they are now.
#[derive(Default)]
struct Names {
    now: BTreeMap<String, String>,
    latest: BTreeMap<String, String>,
}

impl Names {
    /// A command with the ids of now. An unknown id stands for the latest of its kind.
    fn translate(&self, command: &str) -> String {
        command
            .split(' ')
            .map(|word| {
                if !is_id(word) {
                    return word.to_owned();
                }
                let latest = || self.latest.get(kind(word));
                self.now.get(word).or_else(latest).cloned().unwrap_or_else(|| word.to_owned())
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn learn(&mut self, printed: &[String]) {
        for word in printed.iter().flat_map(|line| words(line)).filter(|word| is_id(word)) {
            self.latest.insert(kind(word).to_owned(), word.to_owned());
        }
    }

    /// Equal but for ids (which are noted), epochs and times.
    fn compare(&mut self, written: &[String], printed: &[String]) -> bool {
        written.len() == printed.len()
            && written.iter().zip(printed).all(|(old, new)| {
                let (old, new): (Vec<_>, Vec<_>) = (words(old).collect(), words(new).collect());
                old.len() == new.len()
                    && old.iter().zip(&new).all(|(old, new)| {
                        if is_id(old) && is_id(new) && kind(old) == kind(new) {
                            self.now.insert((*old).to_owned(), (*new).to_owned());
                            return true;
                        }
                        old == new || (varies(old) && varies(new))
                    })
            })
    }
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split([' ', ',', '"', '`']).filter(|word| !word.is_empty())
}

/// `r-`, `c-`, `d-` and 12 hexadecimal digits: made anew in every run.
fn is_id(word: &str) -> bool {
    ["r-", "c-", "d-"].iter().any(|prefix| {
        word.strip_prefix(prefix)
            .is_some_and(|rest| rest.len() == 12 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
    })
}

fn kind(word: &str) -> &str {
    word.get(..2).unwrap_or_default()
}

/// Epochs, times, pids, and the caller's own uid.
fn varies(word: &str) -> bool {
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    (digits == word.len() && digits >= 3)
        || (word.contains('T') && word.ends_with('Z'))
        || word.strip_prefix("uid:").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
}
