//! The copy of the tree that is changed, and the programs that are built from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::{
    outcome::Mutant,
    sources::{self, CRATES},
    switch::{self, Switched},
    tool,
};
use crate::check;

/// The tests of the crates, with mutants switched into them.
#[derive(Debug)]
pub(super) struct Built {
    /// By package.
    pub(super) programs: BTreeMap<String, PathBuf>,
    /// The numbers of the mutants that they don't have.
    pub(super) left: BTreeSet<u32>,
    /// Those of them that can't be built by themselves either: the compiler refuses the very value
    /// that a function would return.
    pub(super) unviable: BTreeSet<u32>,
}

/// What cargo is told by its environment: a directory of its own, and to compile again only what
/// changed.
pub(super) fn environment(build: &Path) -> [(&'static str, PathBuf); 2] {
    [("CARGO_TARGET_DIR", build.to_owned()), ("CARGO_INCREMENTAL", "1".into())]
}

/// Brings the copy to what the tree is; files that are the same already keep their age.
pub(super) fn copy(root: &Path, tree: &Path) -> Result<()> {
    for name in check::files(root)? {
        put(
            &tree.join(&name),
            &fs::read(root.join(&name)).with_context(|| format!("read {name}"))?,
        )?;
    }
    Ok(())
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}

/// Builds the tests with as many of the mutants as the compiler takes together.
pub(super) fn switched(
    root: &Path,
    (tree, build): (&Path, &Path),
    mutants: &[(u32, &Mutant)],
) -> Result<Built> {
    let values: BTreeSet<u32> =
        mutants.iter().filter(|(_, mutant)| mutant.genre == "FnValue").map(|(n, _)| *n).collect();
    let (mut left, mut unviable) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let files = put_switches(root, tree, mutants, &mut left)?;
        let (programs, errors) = compile(tree, build)?;
        if errors.is_empty() {
            return Ok(Built { programs, left, unviable });
        }
        let before = left.len();
        for error in &errors {
            let blamed = error.blamed(&files);
            if let [number] = blamed[..]
                && values.contains(&number)
                && error.lacks_a_trait()
            {
                unviable.insert(number);
            }
            left.extend(blamed);
        }
        println!("{} mutants are left out, as they can't be built with the others", left.len());
        if left.len() == before {
            let texts: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
            bail!("the tests can't be built:\n{}", texts.join("\n"));
        }
    }
}

/// Changes the files of the copy.
fn put_switches(
    root: &Path,
    tree: &Path,
    mutants: &[(u32, &Mutant)],
    left: &mut BTreeSet<u32>,
) -> Result<BTreeMap<String, Switched>> {
    let mut files = BTreeMap::new();
    for name in sources::product(root)?.into_keys() {
        let of_file = |(n, mutant): &&(u32, &Mutant)| mutant.file == name && !left.contains(n);
        let here: Vec<_> = mutants.iter().filter(of_file).copied().collect();
        let text = fs::read_to_string(root.join(&name)).with_context(|| format!("read {name}"))?;
        let (mut switched, not) =
            switch::switched(&text, &here).with_context(|| format!("change {name}"))?;
        left.extend(not);
        if name.ends_with("src/lib.rs") {
            switched.text.push_str("\nmod switch;\n");
        }
        put(&tree.join(&name), switched.text.as_bytes())?;
        files.insert(name, switched);
    }
    for (_, dir) in CRATES {
        put(&tree.join(dir).join("switch.rs"), switch::MODULE.as_bytes())?;
    }
    Ok(files)
}

/// What cargo tells, a line each.
#[derive(Debug, Deserialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
enum Line {
    CompilerMessage {
        message: Message,
    },
    CompilerArtifact {
        package_id: String,
        executable: Option<PathBuf>,
    },
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct Message {
    level: String,
    #[serde(rename = "rendered")]
    message: String,
    spans: Vec<Span>,
    code: Option<Code>,
}

#[derive(Debug, Deserialize)]
struct Code {
    code: String,
}

#[derive(Debug, Deserialize)]
struct Span {
    file_name: String,
    byte_start: usize,
    byte_end: usize,
    is_primary: bool,
}

impl Message {
    /// `Default`, nearly always: the trait bound is not satisfied.
    fn lacks_a_trait(&self) -> bool {
        self.code.as_ref().is_some_and(|code| code.code == "E0277")
    }

    /// The mutants that stand where the compiler points.
    fn blamed(&self, files: &BTreeMap<String, Switched>) -> Vec<u32> {
        let of = |span: &Span| {
            let part: Range<usize> = span.byte_start..span.byte_end;
            files.get(&span.file_name).map(|file| file.blamed(&part)).unwrap_or_default()
        };
        let (first, others): (Vec<&Span>, Vec<&Span>) =
            self.spans.iter().partition(|span| span.is_primary);
        let blamed: Vec<u32> = first.into_iter().flat_map(of).collect();
        if blamed.is_empty() { others.into_iter().flat_map(of).collect() } else { blamed }
    }
}

fn compile(tree: &Path, build: &Path) -> Result<(BTreeMap<String, PathBuf>, Vec<Message>)> {
    let (mut programs, mut errors) = (BTreeMap::new(), Vec::new());
    // One after another, as the first that fails would hide what is wrong with the next.
    for (package, dir) in CRATES {
        let output = tool::cargo()
            .args(["test", "--no-run", "--lib", "--profile=mutants", "--message-format=json"])
            .args(["--quiet", "--package", package])
            .current_dir(tree)
            .envs(environment(build))
            .output()
            .context("start cargo test")?;
        let before = errors.len();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            match serde_json::from_str(line).unwrap_or(Line::Other) {
                Line::CompilerMessage { message } if message.level == "error" => {
                    errors.push(message);
                }
                Line::CompilerArtifact { package_id, executable: Some(program) }
                    if package_id.contains(dir.trim_end_matches("/src/")) =>
                {
                    programs.insert(package.to_owned(), program);
                }
                _ => {}
            }
        }
        if !output.status.success() && errors.len() == before {
            bail!("cargo test in {}: {}", tree.display(), String::from_utf8_lossy(&output.stderr));
        }
    }
    Ok((programs, errors))
}
