//! Compiling the peers in C: against the SQLite that berthd is built with, from the same source
//! and with the options that matter.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::run::cargo;
use serde_json::Value;

use crate::{sbom::PLATFORM, workspace};

/// As libsqlite3-sys builds it, without the extensions that nothing here uses.
const SQLITE: [&str; 9] = [
    "-O3",
    "-DHAVE_FDATASYNC=1",
    "-DSQLITE_DEFAULT_MEMSTATUS=0",
    "-DSQLITE_CORE",
    "-DSQLITE_DEFAULT_FOREIGN_KEYS=1",
    "-DSQLITE_THREADSAFE=1",
    "-DSQLITE_USE_URI",
    "-DSQLITE_ENABLE_API_ARMOR",
    "-DSQLITE_ENABLE_STAT4",
];

/// The peers that need the C library alone, and what counts calls.
const PLAIN: [&str; 5] = ["scan", "pass", "hold", "map", "count"];

/// Puts the peers into a directory; the one with SQLite, which takes long, only where it is needed.
pub(super) fn build(dir: &Path, with_sqlite: bool) -> Result<()> {
    let source = workspace::root().join("crates/bench/peers");
    if with_sqlite {
        build_commit(dir, &source)?;
    }
    PLAIN.iter().try_for_each(|name| {
        cc(Command::new("cc")
            .args(["-O2", "-Wall", "-Wextra", "-o"])
            .arg(dir.join(name))
            .arg(source.join(name).with_extension("c")))
    })
}

fn build_commit(dir: &Path, source: &Path) -> Result<()> {
    let sqlite = sqlite()?;
    let version = sqlite
        .parent()
        .and_then(Path::file_name)
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let object = dir.join(format!("{version}-fdatasync.o"));
    if !object.exists() {
        println!("compiling SQLite for the peers");
        let made = dir.join("sqlite3.o.part");
        cc(Command::new("cc")
            .args(SQLITE)
            .arg("-c")
            .arg(sqlite.join("sqlite3.c"))
            .arg("-o")
            .arg(&made))?;
        fs::rename(&made, &object).context("keep the object")?;
    }
    cc(Command::new("cc")
        .args(["-O2", "-Wall", "-Wextra", "-o"])
        .arg(dir.join("commit"))
        .arg("-I")
        .arg(&sqlite)
        .arg(source.join("commit.c"))
        .arg(&object)
        .args(["-lpthread", "-lm", "-ldl"]))
}

fn cc(command: &mut Command) -> Result<()> {
    let status = command.status().context("start cc: a C compiler is needed for the peers")?;
    if status.success() { Ok(()) } else { bail!("cc ended with {status}") }
}

/// The directory of the `sqlite3.c` that cargo has.
fn sqlite() -> Result<PathBuf> {
    let output = cargo(&workspace::root())
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform", PLATFORM])
        .output()
        .context("start cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let manifest = metadata
        .get("packages")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|package| package.get("name").is_some_and(|name| name == "libsqlite3-sys"))
        .and_then(|package| package.get("manifest_path")?.as_str())
        .context("cargo knows no libsqlite3-sys")?;
    let dir = Path::new(manifest).parent().context("a manifest without a directory")?;
    Ok(dir.join("sqlite3"))
}
