//! A Debian with systemd: the root file system of guests that don't take the host's.
//!
//! Made once by debootstrap from the machine's own archive, and kept as an image, so that owners and
//! modes are what they are whoever runs the guest. Nothing of Berth is in it. With one kernel it is of the
//! machine's own release, with the other of the release after it, whose libraries take programs that
//! were built here: so both releases are seen, and each takes one boot.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result};

use super::{
    apt::{self, Archive, PrivateApt},
    cache,
    kernel::{Kind, building, newest_cached, publish},
    packages::{self, as_root},
};

/// What is in it beside the required packages.
const PACKAGES: &[&str] = &["systemd", "systemd-sysv", "udev", "kmod", "e2fsprogs"];
/// Packages whose versions stand for all: their archive changes all at once.
const WITNESSES: &[&str] = &["systemd", "libc6", "base-files"];
/// Part of the cache key: raise it when this file builds differently.
const BUILDER: &str = "1";
/// What its lock and directories are named after.
const KIND: &str = "debian";
const IMAGE: &str = "root.ext4";
/// The release after another one.
const NEXT: &[(&str, &str)] = &[("bookworm", "trixie")];
/// What the image may grow to; it is sparse.
const IMAGE_SIZE: &str = "1536M";

/// Finds the image for a kernel in the cache, or makes it.
///
/// # Errors
/// It isn't there and can't be made; the message says what is missing.
pub(super) fn provide(kernel: Kind) -> Result<PathBuf> {
    let suite = suite(kernel, env::var("BERTH_VM_DEBIAN").ok(), apt::codename)?;
    find_or_make(&suite).with_context(|| format!("provide a Debian {suite} with systemd"))
}

fn find_or_make(suite: &str) -> Result<PathBuf> {
    let cache = cache::dir()?;
    let prefix = format!("debian-{suite}-");
    let (archive, versions) = match offered(suite, WITNESSES) {
        Ok(offered) => offered,
        Err(error) => {
            let dir = newest_cached(&cache, &prefix, IMAGE)
                .ok_or_else(|| error.context(format!("no {prefix}* in {}", cache.display())))?;
            eprintln!("using the Debian in {}: {suite} is not offered now", dir.display());
            return Ok(dir.join(IMAGE));
        }
    };
    let packages = PACKAGES.join(",");
    let key = cache::key(&[
        ("suite", &archive.suite),
        ("packages", &packages),
        ("versions", &versions),
        ("size", IMAGE_SIZE),
        ("builder", BUILDER),
    ]);
    let name = format!("{prefix}{key}");
    let _lock = cache::lock(&cache, KIND)?;
    let image = cache.join(&name).join(IMAGE);
    if image.is_file() {
        return Ok(image);
    }
    packages::ensure(packages::ROOT)?;
    remove_abandoned(&cache, KIND)?;
    let dir = publish(&cache, KIND, &name, |scratch, result| {
        fs::write(result.join("inputs"), format!("{suite} {packages}\n{versions}\n"))?;
        make(&archive, &packages, scratch, &result.join(IMAGE))
    })?;
    Ok(dir.join(IMAGE))
}

/// The one that was asked for, or else the machine's own, or with Debian's kernel the one after it.
fn suite(
    kernel: Kind,
    asked: Option<String>,
    own: impl FnOnce() -> Result<String>,
) -> Result<String> {
    if let Some(suite) = asked.filter(|suite| !suite.is_empty()) {
        return Ok(suite);
    }
    let own = own()?;
    let next = NEXT.iter().find(|(before, _)| kernel == Kind::Stock && *before == own);
    Ok(next.map_or(own, |(_, next)| (*next).to_owned()))
}

/// Where a release comes from now, and the versions of packages that stand for all.
pub(super) fn offered(suite: &str, witnesses: &[&str]) -> Result<(Archive, String)> {
    let archive = Archive { suite: suite.to_owned(), ..apt::archive()? };
    let apt = PrivateApt::open(suite)?;
    let version = |package: &&str| Ok(format!("{package}={}", apt.version(package)?));
    let versions: Result<Vec<String>> = witnesses.iter().map(version).collect();
    Ok((archive, versions?.join(" ")))
}

/// What a build that was killed left holds root's files, which not everybody may remove.
pub(super) fn remove_abandoned(cache: &Path, kind: &str) -> Result<()> {
    for entry in fs::read_dir(cache)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&building(kind)) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a tree of root's files.
pub(super) fn remove(tree: &Path) -> Result<()> {
    let mut command = Command::new("rm");
    command.args(["-rf", "--one-file-system", "--"]).arg(tree);
    as_root(command)
}

fn make(archive: &Archive, packages: &str, scratch: &Path, image: &Path) -> Result<()> {
    eprintln!("making a Debian {} with systemd: a minute or two, once", archive.suite);
    let started = Instant::now();
    let tree = scratch.join("root");
    let made = bootstrap(archive, packages, &tree).and_then(|()| pack(&tree, image));
    let removed = remove(&tree);
    made.and(removed)?;
    eprintln!("made it in {} s", started.elapsed().as_secs());
    Ok(())
}

/// Makes a Debian of required packages and some more.
pub(super) fn bootstrap(archive: &Archive, packages: &str, tree: &Path) -> Result<()> {
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", &format!("--include={packages}")]);
    command.arg(format!("--keyring={}", archive.keyring));
    command.arg(&archive.suite).arg(tree).arg(&archive.uri).env("LC_ALL", "C");
    as_root(command)?;
    // Tens of megabytes that nobody reads again.
    let mut clean = Command::new("chroot");
    clean.arg(tree).args(["apt-get", "clean"]);
    as_root(clean)
}

fn pack(tree: &Path, image: &Path) -> Result<()> {
    let mke2fs = packages::find_program("mke2fs").context("mke2fs is missing")?;
    let mut command = Command::new(mke2fs);
    command.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(tree);
    command.arg(image).arg(IMAGE_SIZE);
    as_root(command)?;
    let owner = rustix::process::geteuid().as_raw();
    let mut give = Command::new("chown");
    give.arg(owner.to_string()).arg(image);
    as_root(give)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_releases_are_seen_where_programs_run_on_both() {
        let of = |kernel, asked: Option<&str>, own: &str| {
            suite(kernel, asked.map(str::to_owned), || Ok(own.to_owned())).expect("a release")
        };
        assert_eq!(of(Kind::Own, None, "bookworm"), "bookworm");
        assert_eq!(of(Kind::Stock, None, "bookworm"), "trixie");
        assert_eq!(of(Kind::Stock, Some(""), "bookworm"), "trixie");
        assert_eq!(of(Kind::Stock, Some("bookworm"), "bookworm"), "bookworm");
        assert_eq!(of(Kind::Stock, None, "trixie"), "trixie");
        assert_eq!(of(Kind::Own, Some("trixie"), "bookworm"), "trixie");
    }
}
