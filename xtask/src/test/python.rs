//! Python with what the tests of the API take: `xtask/python/requirements.txt`, by hashes, in a virtual
//! environment below `target`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::packages::{self, Tool};
use sha2::{Digest as _, Sha256};

/// What `venv` takes is a package of its own on Debian.
const VENV: &[Tool] =
    &[Tool { package: "python3-venv", proof: "/var/lib/dpkg/info/python3-venv.list" }];

fn has_venv() -> Result<bool> {
    let mut python = Command::new("python3");
    let found = python.args(["-c", "import ensurepip"]).stderr(Stdio::null()).status();
    Ok(found.context("start python3")?.success())
}

/// The interpreter; what it takes is installed once for each list. `None` where no package index can be
/// reached, which is said.
pub(super) fn ensure(root: &Path) -> Result<Option<PathBuf>> {
    packages::ensure(&[Tool { package: "python3", proof: "python3" }])?;
    let list = root.join("xtask/python/requirements.txt");
    let bytes = fs::read(&list).with_context(|| format!("read {}", list.display()))?;
    let stamp = format!("{:x}", Sha256::digest(&bytes));
    let tools = crate::workspace::target().join("python-tools");
    let (python, note) = (tools.join("bin/python"), tools.join("installed"));
    if fs::read_to_string(&note).is_ok_and(|installed| installed == stamp) {
        return Ok(Some(python));
    }
    if !has_venv()? {
        packages::ensure(VENV)?;
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
        if !reaches_index(&python)? {
            println!(
                "python: skipped: pip reaches no package index; set PIP_INDEX_URL to one that it does"
            );
            return Ok(None);
        }
        bail!("pip install -r {} ended with {installed}", list.display());
    }
    fs::write(&note, stamp).context("note what is installed")?;
    Ok(Some(python))
}

fn reaches_index(python: &Path) -> Result<bool> {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"]);
    let dest = tempfile::tempdir().context("make a directory")?;
    let found = pip.arg(dest.path()).arg("certifi").stderr(Stdio::null()).status();
    Ok(found.context("start pip")?.success())
}
