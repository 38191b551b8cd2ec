//! Where kernels and package lists are kept, outside the checkout.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// The cache of the test machines: `$BERTH_CACHE_DIR/vm`, else `~/.cache/berth/vm`.
///
/// # Errors
/// No home directory, or the directory cannot be made.
pub fn dir() -> Result<PathBuf> {
    let base = match (env::var_os("BERTH_CACHE_DIR"), env::var_os("XDG_CACHE_HOME")) {
        (Some(dir), _) => PathBuf::from(dir),
        (None, Some(dir)) => PathBuf::from(dir).join("berth"),
        (None, None) => {
            let home = env::var_os("HOME").context(
                "neither BERTH_CACHE_DIR nor HOME is set: no place for the kernel cache",
            )?;
            PathBuf::from(home).join(".cache/berth")
        }
    };
    let dir = base.join("vm");
    fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}

/// Holds `<cache>/<name>.lock` until the returned file is dropped, so that two builds of the same
/// thing don't collide.
///
/// # Errors
/// The lock file cannot be opened or locked.
pub fn lock(cache: &Path, name: &str) -> Result<File> {
    let path = cache.join(format!("{name}.lock"));
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    if file.try_lock().is_err() {
        eprintln!("waiting for another process that holds {}", path.display());
        file.lock().with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
}

/// The first 16 hex digits of the hash over labelled inputs.
#[must_use]
pub fn key(inputs: &[(&str, &str)]) -> String {
    let mut hash = Sha256::new();
    for (label, value) in inputs {
        hash.update(format!("{label}={}:{value}\n", value.len()));
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    hex[..16].to_owned()
}

/// Runs a program to its end; its output is part of the error when it fails.
///
/// # Errors
/// It cannot be started, or its exit status is not 0.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("start {shown}"))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{shown} failed ({}):\n{stdout}{stderr}", output.status);
    }
    Ok(stdout)
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn the_key_depends_on_every_input_and_on_its_label() {
        let base = key(&[("a", "1"), ("b", "2")]);
        assert_eq!(base.len(), 16);
        assert_eq!(base, key(&[("a", "1"), ("b", "2")]));
        assert_ne!(base, key(&[("a", "1"), ("b", "3")]));
        assert_ne!(base, key(&[("a", "1"), ("c", "2")]));
        assert_ne!(key(&[("a", "1\nb=1:2")]), key(&[("a", "1"), ("b", "2")]));
    }
}
