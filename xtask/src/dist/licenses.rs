//! The licence texts of the crates that are linked into the programs.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// How the files are called that crates have their licences in.
const NAMES: &[&str] = &["license", "licence", "copying", "copyright", "notice", "unlicense"];

/// One text: each licence once, under the names of the crates that have it.
pub(super) fn text(crates: &[(String, PathBuf)]) -> Result<String> {
    let mut by_text: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, dir) in crates {
        for file in files(dir)? {
            let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
            let text = String::from_utf8_lossy(&bytes).trim().replace("\r\n", "\n");
            by_text.entry(text).or_default().push(name.clone());
        }
    }
    let mut whole = String::new();
    for (text, names) in by_text {
        whole.push_str(&format!("==== {}\n\n{text}\n\n\n", names.join(", ")));
    }
    Ok(whole)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let is_license = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        path.is_file() && NAMES.iter().any(|start| name.starts_with(start))
    };
    let mut found: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(is_license).collect();
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    #[test]
    fn a_licence_that_two_have_stands_there_once() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, file: &str, text: &str| {
            fs::create_dir_all(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join(file), text).unwrap();
            (name.to_owned(), dir.path().join(name))
        };
        let crates = [
            at("a 1.0", "LICENSE-MIT", "Be kind.\r\n"),
            at("b 2.0", "license.txt", "Be kind."),
            at("c 3.0", "COPYING", "Be fair."),
            at("c 3.0", "lib.rs", "nothing"),
        ];
        let text = super::text(&crates[..3]).unwrap();
        assert_eq!(text, "==== c 3.0\n\nBe fair.\n\n\n==== a 1.0, b 2.0\n\nBe kind.\n\n\n");
    }
}
