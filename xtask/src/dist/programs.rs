//! The programs as they are shipped: without debug information, for a C library that is old enough;
//! and what they say of themselves.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::{
    cache,
    packages::{self, Tool},
};

const TOOLS: &[Tool] = &[Tool { package: "binutils", proof: "readelf" }];

/// What is in `.gnu.version_r` of one program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Glibc(pub(super) u32, pub(super) u32);

/// A stripped copy of a program, and the newest C library that it needs symbols of.
pub(super) fn stripped(program: &Path) -> Result<(Vec<u8>, Glibc)> {
    packages::ensure(TOOLS)?;
    let dir = tempfile::tempdir().context("make a directory to strip in")?;
    let copy = dir.path().join("stripped");
    let mut strip = Command::new("strip");
    strip.args(["--strip-unneeded", "--remove-section=.comment", "-o"]).arg(&copy).arg(program);
    cache::run(&mut strip)?;
    let mut readelf = Command::new("readelf");
    let versions = cache::run(readelf.arg("-V").arg(&copy).env("LC_ALL", "C"))?;
    let needs = newest(&versions).with_context(|| format!("what {} needs", program.display()))?;
    Ok((fs::read(&copy).context("read the stripped program")?, needs))
}

/// The newest `GLIBC_X.Y` that `readelf -V` names.
fn newest(versions: &str) -> Option<Glibc> {
    let names = versions.split("Name: GLIBC_").skip(1);
    let numbers = names.filter_map(|rest| {
        let name = rest.split_whitespace().next()?;
        let mut parts = name.split('.').map(str::parse);
        Some(Glibc(parts.next()?.ok()?, parts.next()?.ok()?))
    });
    numbers.max()
}

/// Texts that programs write of themselves, by file name: man pages and completions.
#[derive(Debug)]
pub(super) struct Texts {
    dir: tempfile::TempDir,
}

impl Texts {
    /// Asks the programs of a directory.
    pub(super) fn of(programs: &Path) -> Result<Self> {
        let dir = tempfile::tempdir().context("make a directory for man pages")?;
        let out = dir.path().display().to_string();
        for (program, arguments) in [
            ("berth", ["man", &out]),
            ("berthd", ["--man", &out]),
            ("berth-helper", ["--man", &out]),
            ("berth-kubelet-plugin", ["--man", &out]),
        ] {
            cache::run(Command::new(programs.join(program)).args(arguments))?;
        }
        for shell in ["bash", "zsh", "fish"] {
            let mut command = Command::new(programs.join("berth"));
            let script = cache::run(command.args(["completions", shell]))?;
            fs::write(dir.path().join(shell), script).context("write a completion")?;
        }
        Ok(Self { dir })
    }

    /// The completion for a shell.
    pub(super) fn completion(&self, shell: &str) -> Result<Vec<u8>> {
        fs::read(self.dir.path().join(shell))
            .with_context(|| format!("read what {shell} completes"))
    }

    /// The man pages whose names begin so, in the order of their names.
    pub(super) fn pages(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Vec<u8>)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let path: PathBuf = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_page = matches!(path.extension().and_then(|it| it.to_str()), Some("1" | "8"));
            if is_page && is_wanted(&name) {
                found.push((name, fs::read(&path)?));
            }
        }
        found.sort();
        if found.is_empty() { bail!("the programs wrote no man pages") } else { Ok(found) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Glibc, newest};

    #[test]
    fn the_newest_version_is_found_by_number() {
        let text = "  0x0010:   Name: GLIBC_2.9  Flags: none  Version: 5\n\
                    0x0020:   Name: GLIBC_2.34  Flags: none\n  0x0030:   Name: GCC_3.0  Flags\n\
                    0x0040:   Name: GLIBC_2.2.5  Flags: none\n";
        assert_eq!(newest(text), Some(Glibc(2, 34)));
        assert_eq!(newest("No version information found in this file."), None);
    }
}
