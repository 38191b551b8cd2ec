//! What became of mutants, also of those of a run that was interrupted.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What became of a mutant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Outcome {
    #[serde(alias = "CaughtMutant")]
    Caught,
    #[serde(alias = "MissedMutant")]
    Missed,
    Timeout,
    Unviable,
    /// It can't be built together with the others, and wasn't built by itself.
    Left,
}

/// A mutant as cargo-mutants tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Mutant {
    /// `file:line:column: change`
    pub(super) name: String,
    pub(super) file: String,
    /// What kind of change it is.
    pub(super) genre: String,
    pub(super) replacement: String,
    /// What is replaced.
    pub(super) span: Span,
    function: Option<Function>,
}

/// Of a file, from the first line and column, which are 1, to behind the last character.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Span {
    pub(super) start: Position,
    pub(super) end: Position,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Position {
    pub(super) line: usize,
    pub(super) column: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Function {
    return_type: String,
}

impl Mutant {
    /// It stands in a function of `impl Trait`, which returns one type only.
    pub(super) fn returns_something_unnamed(&self) -> bool {
        self.function.as_ref().is_some_and(|function| function.return_type.contains("impl "))
    }
}

/// Names that stay when lines move: without positions, those that are alike numbered.
pub(super) fn keys(mutants: &[Mutant]) -> Vec<String> {
    let mut times: BTreeMap<String, u32> = BTreeMap::new();
    let keys = mutants.iter().map(|mutant| {
        let change = mutant.name.splitn(4, ':').nth(3).unwrap_or_default();
        let key = format!("{}:{change}", mutant.file);
        let time = times.entry(key.clone()).or_default();
        *time += 1;
        if *time == 1 { key } else { format!("{key} [{time}]") }
    });
    keys.collect()
}

/// Of which versions something was found.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Versions {
    /// Hashes of the files as they are.
    pub(super) files: BTreeMap<String, String>,
    /// Of all tests.
    pub(super) tests: String,
}

/// What was found with one set of tests: for each file its version, and outcomes by name.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Known(BTreeMap<String, OfFile>);

#[derive(Debug, Default, Serialize, Deserialize)]
struct OfFile {
    content: String,
    tests: String,
    outcomes: BTreeMap<String, Outcome>,
}

impl Known {
    /// What became of a mutant, as far as it is known.
    pub(super) fn of(&self, mutant: &Mutant) -> Option<Outcome> {
        self.0.get(&mutant.file)?.outcomes.get(&mutant.name).copied()
    }

    /// Forgets what doesn't stand any more: everything of a file that changed, and that a mutant was
    /// missed, where tests changed.
    pub(super) fn retain(&mut self, now: &Versions) {
        for (file, known) in &mut self.0 {
            if now.files.get(file) != Some(&known.content) {
                known.outcomes.clear();
            }
            if now.tests != known.tests {
                known.outcomes.retain(|_, outcome| *outcome != Outcome::Missed);
            }
        }
    }

    /// Takes what was found of these versions.
    pub(super) fn take(&mut self, of: &Versions, found: Vec<(Mutant, Outcome)>) {
        self.retain(of);
        for (mutant, outcome) in found {
            let Some(content) = of.files.get(&mutant.file) else { continue };
            let known = self.0.entry(mutant.file).or_default();
            (known.content, known.tests) = (content.clone(), of.tests.clone());
            known.outcomes.insert(mutant.name, outcome);
        }
    }
}

/// What cargo-mutants writes after each mutant.
#[derive(Debug, Deserialize)]
struct Report {
    outcomes: Vec<Told>,
}

#[derive(Debug, Deserialize)]
struct Told {
    scenario: serde_json::Value,
    summary: serde_json::Value,
}

fn told(report: Report) -> Vec<(Mutant, Outcome)> {
    let mutants = report.outcomes.into_iter().filter_map(|mut told| {
        // The other scenario is a word: the baseline.
        let mutant = told.scenario.get_mut("Mutant")?.take();
        let outcome = serde_json::from_value(told.summary).ok()?;
        Some((serde_json::from_value(mutant).ok()?, outcome))
    });
    mutants.collect()
}

/// The directory of one set of tests: what is known, and what a run left there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Store<'a>(pub(super) &'a Path);

impl Store<'_> {
    /// Everything known, what the last run found included.
    pub(super) fn load(&self) -> Result<Known> {
        let mut known: Known = self.json("known.json")?.unwrap_or_default();
        let of: Option<Versions> = self.json("versions.json")?;
        let report: Option<Report> = self.json("mutants.out/outcomes.json")?;
        if let (Some(of), Some(report)) = (of, report) {
            known.take(&of, told(report));
            self.save(&known)?;
            // Taken once: what is found later may be of newer tests.
            fs::remove_file(self.0.join("versions.json")).context("forget the last run")?;
        }
        Ok(known)
    }

    pub(super) fn save(&self, known: &Known) -> Result<()> {
        self.write("known.json", known)
    }

    /// Before a run: of what it will be.
    pub(super) fn begin(&self, now: &Versions) -> Result<()> {
        for name in ["mutants.out", "mutants.out.old"] {
            let path = self.0.join(name);
            if path.exists() {
                fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        self.write("versions.json", now)
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.0.join(name);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).map(Some).with_context(|| {
            format!("{} can't be read; remove it, and what it knew is found again", path.display())
        })
    }

    fn write<T: Serialize>(&self, name: &str, what: &T) -> Result<()> {
        fs::create_dir_all(self.0).with_context(|| format!("create {}", self.0.display()))?;
        let path = self.0.join(name);
        let text = serde_json::to_vec(what).context("write what is known")?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(name: &str) -> Mutant {
        serde_json::from_str(&told_of(name)).unwrap()
    }

    fn told_of(name: &str) -> String {
        format!(
            r#"{{"name": "{name}", "file": "a.rs", "genre": "FnValue", "replacement": "()", "function": null,
                "span": {{"start": {{"line": 1, "column": 1}}, "end": {{"line": 1, "column": 2}}}}}}"#
        )
    }

    fn versions(content: &str, tests: &str) -> Versions {
        let files = BTreeMap::from([("a.rs".to_owned(), content.to_owned())]);
        Versions { files, tests: tests.to_owned() }
    }

    #[test]
    fn what_an_interrupted_run_found_stands_until_something_changes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store(dir.path());
        store.begin(&versions("1", "1")).unwrap();
        fs::create_dir(dir.path().join("mutants.out")).unwrap();
        let report = format!(
            r#"{{"outcomes": [
                {{"scenario": "Baseline", "summary": "Success"}},
                {{"scenario": {{"Mutant": {}}}, "summary": "CaughtMutant"}},
                {{"scenario": {{"Mutant": {}}}, "summary": "MissedMutant"}}]}}"#,
            told_of("a"),
            told_of("b")
        );
        fs::write(dir.path().join("mutants.out/outcomes.json"), report).unwrap();
        let now = |content, tests| {
            let mut known = store.load().unwrap();
            known.retain(&versions(content, tests));
            [known.of(&mutant("a")), known.of(&mutant("b")), known.of(&mutant("c"))]
        };
        assert_eq!(now("1", "1"), [Some(Outcome::Caught), Some(Outcome::Missed), None]);
        assert_eq!(now("1", "2"), [Some(Outcome::Caught), None, None], "tests were added");
        assert_eq!(now("2", "1"), [None, None, None], "the file changed");
        store.begin(&versions("1", "1")).unwrap();
        assert_eq!(now("1", "1"), [Some(Outcome::Caught), Some(Outcome::Missed), None]);
    }

    #[test]
    fn mutants_keep_their_names_when_lines_move() {
        let named = |lines: [u32; 3]| {
            let of = |line| mutant(&format!("a.rs:{line}:5: replace <impl A for b::C>::f with ()"));
            keys(&lines.map(of))
        };
        let key = "a.rs: replace <impl A for b::C>::f with ()";
        assert_eq!(named([1, 2, 3]), [key.to_owned(), format!("{key} [2]"), format!("{key} [3]")]);
        assert_eq!(named([1, 2, 3]), named([7, 8, 9]));
    }
}
