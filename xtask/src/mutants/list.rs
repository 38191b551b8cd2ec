//! `mutants.toml`: of which version of which file the mutants were run, how many there were, and
//! those that no test catches, each with the reason why that is right.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::{outcome::Outcome, sources};

pub(super) const NAME: &str = "mutants.toml";
/// Of a hundred mutants that can be built, so many have to be caught.
const CAUGHT: u32 = 90;

const HEADER: &str = "\
# Mutants of the ownership state machine and of the table of roles, and what became of them.
# `cargo xtask mutants --write` writes everything but the reasons: each mutant that survives has one,
# or a test that catches it.

";

#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct List {
    #[serde(default, rename = "file")]
    pub(super) files: Vec<File>,
    #[serde(default, rename = "survivor")]
    pub(super) survivors: Vec<Survivor>,
}

/// What was found of one file.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) path: String,
    /// The hash of its tokens, in hex (SHA-256).
    pub(super) tokens: String,
    /// A test failed.
    pub(super) caught: u32,
    /// The tests never came to an end.
    pub(super) timeout: u32,
    /// The compiler refused it.
    pub(super) unviable: u32,
    pub(super) survived: u32,
    /// It can't be built together with the others, and wasn't built by itself: counted as one that
    /// is not caught.
    pub(super) left: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Survivor {
    /// File and change, as cargo-mutants names it, without the position.
    pub(super) mutant: String,
    pub(super) why: String,
}

impl File {
    pub(super) fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Caught => self.caught += 1,
            Outcome::Timeout => self.timeout += 1,
            Outcome::Unviable => self.unviable += 1,
            Outcome::Missed => self.survived += 1,
            Outcome::Left => self.left += 1,
        }
    }
}

impl List {
    pub(super) fn read(root: &Path) -> Result<Self> {
        let path = root.join(NAME);
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(&path).with_context(|| format!("read {NAME}"))?;
        toml::from_str(&text).with_context(|| format!("read {NAME}"))
    }

    pub(super) fn write(&self, root: &Path) -> Result<()> {
        let body = toml::to_string(self).context("write the list")?;
        fs::write(root.join(NAME), format!("{HEADER}{body}"))
            .with_context(|| format!("write {NAME}"))
    }

    /// The files that are not there in the version that the list is of.
    pub(super) fn outdated(&self, product: &BTreeMap<String, String>) -> Vec<String> {
        let is_of = |path: &String, tokens: &String| {
            self.files.iter().any(|file| file.path == *path && file.tokens == *tokens)
        };
        let changed = product.iter().filter(|(path, tokens)| !is_of(path, tokens));
        changed.map(|(path, _)| path.clone()).collect()
    }

    /// What is wrong with the list by itself.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for survivor in self.survivors.iter().filter(|it| it.why.trim().is_empty()) {
            faults.push(format!("no reason: {}", survivor.mutant));
        }
        for file in &self.files {
            let listed = self.survivors.iter().filter(|it| it.is_of(&file.path)).count();
            if u32::try_from(listed) != Ok(file.survived) {
                faults.push(format!("{}: {} survived, {listed} listed", file.path, file.survived));
            }
        }
        for survivor in &self.survivors {
            if !self.files.iter().any(|file| survivor.is_of(&file.path)) {
                faults.push(format!("of no file: {}", survivor.mutant));
            }
        }
        let total = self.total();
        if (total.caught + total.timeout) * 100 < total.viable() * CAUGHT {
            faults.push(format!("fewer than {CAUGHT}% are caught: {}", total.line()));
        }
        faults
    }

    pub(super) fn total(&self) -> File {
        let mut total = File::default();
        for file in &self.files {
            total.caught += file.caught;
            total.timeout += file.timeout;
            total.unviable += file.unviable;
            total.survived += file.survived;
            total.left += file.left;
        }
        total
    }
}

impl File {
    fn viable(&self) -> u32 {
        self.caught + self.timeout + self.survived + self.left
    }

    /// In one line, for people.
    pub(super) fn line(&self) -> String {
        let (viable, caught) = (self.viable(), self.caught + self.timeout);
        let tenths = (caught * 1000).checked_div(viable).unwrap_or(1000);
        format!(
            "{caught} of {viable} caught ({}.{}%, {} of them by the time limit), {} survive, {} were not run, {} more can't be built",
            tenths / 10,
            tenths % 10,
            self.timeout,
            self.survived,
            self.left,
            self.unviable
        )
    }
}

impl Survivor {
    pub(super) fn is_of(&self, path: &str) -> bool {
        self.mutant.strip_prefix(path).is_some_and(|rest| rest.starts_with(':'))
    }
}

/// A step of `cargo xtask check`: the list is of the files as they are.
pub(crate) fn check(root: &Path) -> Result<()> {
    let product = sources::product(root)?;
    let list = List::read(root)?;
    let mut wrong = list.faults();
    let changed = list.outdated(&product).into_iter();
    wrong.extend(changed.map(|path| format!("{path} is another version than {NAME} is of")));
    let gone = list.files.iter().filter(|file| !product.contains_key(&file.path));
    wrong.extend(gone.map(|file| format!("{} is in {NAME}, and no more in the tree", file.path)));
    if wrong.is_empty() {
        return Ok(());
    }
    let mut text = wrong.join("\n");
    let _ =
        write!(text, "\nrun `cargo xtask mutants --write`: it runs the mutants of what changed");
    bail!(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> List {
        let file = File {
            path: "a.rs".to_owned(),
            tokens: "1".to_owned(),
            caught: 9,
            survived: 1,
            ..File::default()
        };
        let why = "nothing else can be there".to_owned();
        let survivor = Survivor { mutant: "a.rs: replace == with != in f".to_owned(), why };
        List { files: vec![file], survivors: vec![survivor] }
    }

    #[test]
    fn a_list_is_of_one_version_of_each_file() {
        let product = |tokens: &str| BTreeMap::from([("a.rs".to_owned(), tokens.to_owned())]);
        assert!(list().outdated(&product("1")).is_empty());
        assert_eq!(list().outdated(&product("2")), ["a.rs"]);
        let another = BTreeMap::from([("b.rs".to_owned(), "1".to_owned())]);
        assert_eq!(list().outdated(&another), ["b.rs"]);
    }

    #[test]
    fn a_list_without_reasons_or_with_too_few_caught_is_at_fault() {
        assert!(list().faults().is_empty(), "{:?}", list().faults());
        let fault = |change: fn(&mut List)| {
            let mut list = list();
            change(&mut list);
            list.faults().join("\n")
        };
        assert!(fault(|list| list.survivors[0].why.clear()).contains("no reason"));
        assert!(fault(|list| list.survivors.clear()).contains("1 survived, 0 listed"));
        assert!(fault(|list| list.files[0].caught = 8).contains("fewer than 90%"));
        assert!(fault(|list| list.files[0].left = 1).contains("fewer than 90%"));
        assert!(fault(|list| list.survivors[0].mutant.insert(0, 'b')).contains("of no file"));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(List::read(dir.path()).unwrap(), List::default());
        list().write(dir.path()).unwrap();
        assert_eq!(List::read(dir.path()).unwrap(), list());
    }
}
