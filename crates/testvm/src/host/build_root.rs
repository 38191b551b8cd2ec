//! A Debian 12 with a C compiler: what programs are built in that have to run on it and on what came
//! after it. Made once by debootstrap from the machine's own archive, and kept as a directory.

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result};

use super::{
    apt::{self, Archive},
    cache,
    kernel::{newest_cached, publish},
    packages, root,
};

/// The oldest Debian that Berth runs on.
const SUITE: &str = "bookworm";
const PACKAGES: &[&str] = &["gcc", "libc6-dev", "make"];
const WITNESSES: &[&str] = &["gcc-12", "libc6", "binutils"];
/// Part of the cache key: raise it when this file builds differently.
const BUILDER: &str = "1";
const KIND: &str = "build";
const ROOT: &str = "root";
/// Directories that a build binds its own onto.
const PLACES: &[&str] = &["src", "rust", "cargo", "build"];
/// There once it is whole.
const PROOF: &str = "inputs";

/// Finds the directory in the cache, or makes it.
///
/// # Errors
/// It isn't there and can't be made; the message says what is missing.
pub fn provide() -> Result<PathBuf> {
    find_or_make().context("provide a Debian 12 to build in")
}

fn find_or_make() -> Result<PathBuf> {
    let cache = cache::dir()?;
    let prefix = format!("{KIND}-{SUITE}-");
    let (archive, versions) = match root::offered(SUITE, WITNESSES) {
        Ok(offered) => offered,
        Err(error) => {
            let dir = newest_cached(&cache, &prefix, PROOF)
                .ok_or_else(|| error.context(format!("no {prefix}* in {}", cache.display())))?;
            eprintln!("using the Debian in {}: {SUITE} is not offered now", dir.display());
            return Ok(dir.join(ROOT));
        }
    };
    let packages = PACKAGES.join(",");
    let key = cache::key(&[
        ("packages", &packages),
        ("versions", &versions),
        ("machine", &apt::codename()?),
        ("builder", BUILDER),
    ]);
    let name = format!("{prefix}{key}");
    let _lock = cache::lock(&cache, KIND)?;
    let dir = cache.join(&name);
    if dir.join(PROOF).is_file() {
        return Ok(dir.join(ROOT));
    }
    packages::ensure(packages::ROOT)?;
    root::remove_abandoned(&cache, KIND)?;
    let dir = publish(&cache, KIND, &name, |_, result| {
        make(&archive, &packages, result)?;
        Ok(fs::write(result.join(PROOF), format!("{SUITE} {packages}\n{versions}\n"))?)
    })?;
    Ok(dir.join(ROOT))
}

fn make(archive: &Archive, packages: &str, result: &std::path::Path) -> Result<()> {
    eprintln!("making a Debian {} with a C compiler: a minute or two, once", archive.suite);
    let started = Instant::now();
    let tree = result.join(ROOT);
    let made = root::bootstrap(archive, packages, &tree).and_then(|()| {
        let mut places = std::process::Command::new("mkdir");
        places.arg("-p").args(PLACES.iter().map(|place| tree.join(place)));
        packages::as_root(places)
    });
    if made.is_err() {
        root::remove(&tree)?;
    }
    made?;
    eprintln!("made it in {} s", started.elapsed().as_secs());
    Ok(())
}
