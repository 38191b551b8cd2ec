//! Where the guest's kernel comes from.

mod modules;
mod own;
mod stock;

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result, bail};

/// A kernel that can be booted.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The provider.
    pub kind: Kind,
    /// The image.
    pub image: PathBuf,
    /// Modules to load, in this order: name and uncompressed file.
    pub modules: Vec<PathBuf>,
}

/// A provider of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Built here from the newest `linux-source-*` that apt offers: iommufd, cdev and type1.
    Own,
    /// Debian's own 6.12 image: type1 only, as a Debian host has it.
    Stock,
    /// The image that `BERTH_VM_KERNEL` names; everything it needs must be built in.
    Path,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own => "own",
            Self::Stock => "stock",
            Self::Path => "path",
        })
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "own" => Ok(Self::Own),
            "stock" => Ok(Self::Stock),
            "path" => Ok(Self::Path),
            _ => Err(format!("no such kernel: {text} (there are: own, stock, path, all)")),
        }
    }
}

impl Kind {
    /// The kernels that `all` means: the one of `BERTH_VM_KERNEL` if that is set, else both.
    #[must_use]
    pub fn all() -> Vec<Self> {
        if env::var_os("BERTH_VM_KERNEL").is_some() {
            vec![Self::Path]
        } else {
            vec![Self::Own, Self::Stock]
        }
    }

    /// Finds the kernel in the cache, or fetches or builds it.
    ///
    /// # Errors
    /// It isn't there and can't be made; the message says what is missing.
    pub fn provide(self) -> Result<Kernel> {
        match self {
            Self::Own => own::provide(),
            Self::Stock => stock::provide(),
            Self::Path => given(),
        }
        .with_context(|| format!("provide the {self} kernel"))
    }
}

fn given() -> Result<Kernel> {
    let image = env::var_os("BERTH_VM_KERNEL").context("BERTH_VM_KERNEL is not set")?;
    let image = PathBuf::from(image);
    if !image.is_file() {
        bail!("BERTH_VM_KERNEL names {}, which is not a file", image.display());
    }
    Ok(Kernel { kind: Kind::Path, image, modules: Vec::new() })
}

/// Makes a directory appear at once: built under a temporary name beside it, then renamed. `build`
/// is given a scratch directory and the directory for its results. The caller holds the provider's
/// lock, so scratch directories of the same kind are those of builds that were killed.
pub(super) fn publish(
    cache: &Path,
    kind: impl fmt::Display,
    name: &str,
    build: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let prefix = building(&kind);
    for entry in fs::read_dir(cache)?.flatten() {
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&prefix)) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("remove the abandoned {}", entry.path().display()))?;
        }
    }
    let done = cache.join(name);
    let scratch = tempfile::Builder::new().prefix(&prefix).tempdir_in(cache)?;
    let result = scratch.path().join("result");
    fs::create_dir(&result)?;
    build(scratch.path(), &result)?;
    fs::rename(&result, &done)
        .with_context(|| format!("rename {} to {}", result.display(), done.display()))?;
    Ok(done)
}

/// How the names of scratch directories begin.
pub(super) fn building(kind: impl fmt::Display) -> String {
    format!("building-{kind}-")
}

/// The newest cached directory of a kind, for machines that have lost the network.
pub(super) fn newest_cached(cache: &Path, prefix: &str, proof: &str) -> Option<PathBuf> {
    fs::read_dir(cache)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            name.starts_with(prefix) && path.join(proof).is_file()
        })
        .max_by_key(|path| fs::metadata(path).and_then(|m| m.modified()).ok())
}

/// Sorts package names that end in versions as versions, and takes the newest.
fn newest_name(names: Vec<String>) -> Option<String> {
    names.into_iter().max_by_key(|name| version_key(name))
}

fn version_key(name: &str) -> Vec<u64> {
    let name = name.trim_end_matches("-amd64");
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::newest_name;

    #[test]
    fn the_newest_name_is_found_by_number_not_by_letter() {
        let names = ["linux-source-6.12", "linux-source-7.10", "linux-source-7.3"];
        let newest = newest_name(names.map(str::to_owned).to_vec());
        assert_eq!(newest.as_deref(), Some("linux-source-7.10"));
        let names = ["linux-image-6.12.90+deb12.1-amd64", "linux-image-6.12.90+deb12-amd64"];
        let newest = newest_name(names.map(str::to_owned).to_vec());
        assert_eq!(newest.as_deref(), Some("linux-image-6.12.90+deb12.1-amd64"));
    }
}
