//! The kernel built here: `allnoconfig` and a fragment, from Debian's `linux-source-*`.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail};

use super::{Kernel, Kind, newest_cached, newest_name, publish};
use crate::host::{apt::PrivateApt, cache, packages};

/// What is set on top of `allnoconfig`.
const FRAGMENT: &str = include_str!("../../../kernel/fragment.config");
/// Part of the cache key: raise it when this file builds differently.
const BUILDER: &str = "1";
/// The suite that carries the newest `linux-source-*`, on Debian 12 and 13 alike.
const SUITE: &str = "trixie-backports";
const IMAGE: &str = "bzImage";

pub(super) fn provide() -> Result<Kernel> {
    let cache = cache::dir()?;
    let (apt, package, version) = match offered() {
        Ok(offered) => offered,
        Err(error) => {
            let dir = newest_cached(&cache, "own-", IMAGE).ok_or_else(|| {
                anyhow::anyhow!("no own kernel in {}, and {error:#}", cache.display())
            })?;
            eprintln!("using the kernel in {} ({error:#})", dir.display());
            return Ok(kernel(&dir));
        }
    };
    packages::ensure(packages::BUILD)?;
    let gcc = cache::run(Command::new("gcc").arg("-dumpfullversion"))?;
    let key = cache::key(&[
        ("package", &package),
        ("version", &version),
        ("fragment", FRAGMENT),
        ("gcc", gcc.trim()),
        ("builder", BUILDER),
    ]);
    let name = format!("own-{key}");
    let _lock = cache::lock(&cache, "own")?;
    let dir = cache.join(&name);
    if dir.join(IMAGE).is_file() {
        return Ok(kernel(&dir));
    }
    let dir = publish(&cache, Kind::Own, &name, |scratch, result| {
        fs::write(result.join("inputs"), format!("{package} {version}\ngcc {gcc}"))?;
        build(&apt, &package, &version, scratch, result, &cache.join("own-build.log"))
    })?;
    Ok(kernel(&dir))
}

fn kernel(dir: &Path) -> Kernel {
    Kernel { kind: Kind::Own, image: dir.join(IMAGE), modules: Vec::new() }
}

fn offered() -> Result<(PrivateApt, String, String)> {
    let apt = PrivateApt::open(SUITE)?;
    let names = apt.names(r"^linux-source-[0-9]+\.[0-9]+$")?;
    let package = newest_name(names).with_context(|| format!("{SUITE} has no linux-source-*"))?;
    let version = apt.version(&package)?;
    Ok((apt, package, version))
}

fn build(
    apt: &PrivateApt,
    package: &str,
    version: &str,
    tree: &Path,
    result: &Path,
    log: &Path,
) -> Result<()> {
    eprintln!("building a kernel from {package} {version}: about 15 CPU-minutes, once");
    eprintln!("its output goes to {}", log.display());
    let started = Instant::now();
    let deb = apt.download(package, version, tree)?;
    cache::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(tree.join("deb")))?;
    fs::remove_file(&deb)?;
    let tar = tree.join("deb/usr/src").join(format!("{package}.tar.xz"));
    cache::run(Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(tree))?;
    fs::remove_file(&tar)?;
    let source = tree.join(package);

    configure(&source, tree)?;
    compile(&source, log)?;

    fs::copy(source.join("arch/x86/boot").join(IMAGE), result.join(IMAGE))?;
    fs::copy(source.join(".config"), result.join("config"))?;
    fs::copy(source.join("System.map"), result.join("System.map"))?;
    eprintln!("built {package} in {} s", started.elapsed().as_secs());
    Ok(())
}

fn configure(source: &Path, scratch: &Path) -> Result<()> {
    let fragment = scratch.join("fragment.config");
    fs::write(&fragment, FRAGMENT)?;
    let mut allnoconfig = make(source);
    allnoconfig.arg("allnoconfig").env("KCONFIG_ALLCONFIG", &fragment);
    cache::run(&mut allnoconfig)?;
    cache::run(make(source).arg("olddefconfig"))?;
    let config = fs::read_to_string(source.join(".config"))?;
    let lost = lost_symbols(FRAGMENT, &config);
    if !lost.is_empty() {
        bail!("this kernel's configuration dropped {}", lost.join(", "));
    }
    Ok(())
}

/// The lines of the fragment that the final configuration does not have.
fn lost_symbols<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let kept: std::collections::HashSet<&str> = config.lines().collect();
    fragment.lines().filter(|l| l.starts_with("CONFIG_") && !kept.contains(l)).collect()
}

fn make(source: &Path) -> Command {
    let mut command = Command::new("make");
    command.arg("-s").current_dir(source).env("KBUILD_BUILD_TIMESTAMP", "1970-01-01");
    command.env("KBUILD_BUILD_USER", "berth").env("KBUILD_BUILD_HOST", "testvm");
    // What cargo or a developer's shell exports must not leak into the kernel's build.
    for name in ["CFLAGS", "LDFLAGS", "ARCH", "CROSS_COMPILE", "MAKEFLAGS", "CC", "LD"] {
        command.env_remove(name);
    }
    command
}

fn compile(source: &Path, log: &Path) -> Result<()> {
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let output = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let status = make(source)
        .arg(format!("-j{jobs}"))
        .arg(IMAGE)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .context("start make")?;
    if !status.success() {
        bail!("make {IMAGE} failed ({status}): see {}", log.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{FRAGMENT, lost_symbols};

    #[test]
    fn a_symbol_that_the_configuration_lost_is_named() {
        let fragment = "# why\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=m\n";
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\n";
        assert_eq!(lost_symbols(fragment, config), ["CONFIG_B=y", "CONFIG_C=m"]);
        assert!(lost_symbols(fragment, fragment).is_empty());
    }

    #[test]
    fn the_fragment_names_no_symbol_twice() {
        let mut names: Vec<_> =
            FRAGMENT.lines().filter_map(|l| l.strip_prefix("CONFIG_")?.split('=').next()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
