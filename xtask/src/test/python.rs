//! Python with what the tests of the API take: `xtask/python/requirements.txt`, by hashes, in a virtual
//! environment below `target`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::packages::{self, Tool};
use sha2::{Digest as _, Sha256};

/// The interpreter; what it takes is installed once for each list.
pub(super) fn ensure(root: &Path) -> Result<PathBuf> {
    packages::ensure(&[Tool { package: "python3", proof: "python3" }])?;
    let list = root.join("xtask/python/requirements.txt");
    let bytes = fs::read(&list).with_context(|| format!("read {}", list.display()))?;
    let stamp = format!("{:x}", Sha256::digest(&bytes));
    let tools = crate::workspace::target().join("python-tools");
    let (python, note) = (tools.join("bin/python"), tools.join("installed"));
    if fs::read_to_string(&note).is_ok_and(|installed| installed == stamp) {
        return Ok(python);
    }
    println!("python: installing what {} lists", list.display());
    let made = Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(&tools)
        .status()
        .context("start python3")?;
    if !made.success() {
        bail!("python3 -m venv ended with {made}; on Debian: apt-get install python3-venv");
    }
    let installed = Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(["--only-binary", ":all:", "--require-hashes", "-r"])
        .arg(&list)
        .status()
        .context("start pip")?;
    if !installed.success() {
        bail!("pip install -r {} ended with {installed}", list.display());
    }
    fs::write(&note, stamp).context("note what is installed")?;
    Ok(python)
}
