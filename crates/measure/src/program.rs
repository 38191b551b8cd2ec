//! What the programs that measure have in common: which benches run, and where the results go.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::Row;

/// A bench, and what it is called.
pub type Bench<P> = (&'static str, fn(&P) -> Result<Vec<Row>>);

/// The kernel's interface that both sides stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// A cdev, an iommufd.
    Iommufd,
    /// A group, a container.
    Type1,
}

impl Backend {
    /// As it is called, also for the peers in C.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Iommufd => "iommufd",
            Self::Type1 => "type1",
        }
    }
}

/// Runs those of the benches that are named, all without names, and writes their rows as JSON, also
/// where others failed.
///
/// # Errors
/// A name that none has; benches that failed, by their names; the file can't be written.
pub fn run<P>(benches: &[Bench<P>], names: &[String], places: &P, json: &Path) -> Result<()> {
    if let Some(unknown) = names.iter().find(|name| benches.iter().all(|(known, _)| known != name))
    {
        let known: Vec<&str> = benches.iter().map(|(name, _)| *name).collect();
        bail!("no bench is called {unknown} here; there are {}", known.join(", "));
    }
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for (name, bench) in benches {
        if !names.is_empty() && names.iter().all(|wanted| wanted != name) {
            continue;
        }
        match bench(places) {
            Ok(more) => rows.extend(more),
            Err(error) => {
                eprintln!("{name}: {error:#}");
                failed.push(*name);
            }
        }
    }
    let text = serde_json::to_string_pretty(&rows)?;
    fs::write(json, text).with_context(|| format!("write {}", json.display()))?;
    if failed.is_empty() { Ok(()) } else { bail!("not measured: {}", failed.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BENCHES: &[Bench<()>] = &[("one", |()| Ok(Vec::new())), ("two", |()| bail!("no device"))];

    #[test]
    fn what_failed_is_named_and_what_was_measured_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let json = dir.path().join("rows.json");
        let run = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            run(BENCHES, &names, &(), &json).map_err(|error| error.to_string())
        };
        assert!(run(&["three"]).unwrap_err().ends_with("there are one, two"));
        assert!(!json.exists());
        assert_eq!(run(&["one"]), Ok(()));
        fs::remove_file(&json).unwrap();
        assert_eq!(run(&[]).unwrap_err(), "not measured: two");
        assert_eq!(fs::read_to_string(&json).unwrap(), "[]");
    }
}
