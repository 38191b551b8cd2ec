//! Debian's own kernel image: what a Debian host runs, with the modules the guest needs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{Kernel, Kind, modules, newest_cached, newest_name, publish};
use crate::host::{
    apt::{self, PrivateApt},
    cache, packages,
};

/// The series that Debian 13 has as stock and Debian 12 as a backport.
const SERIES: &str = "6.12";
/// Part of the cache key: raise it when this file unpacks differently.
const BUILDER: &str = "1";
const IMAGE: &str = "vmlinuz";
/// Modules that the guest loads where they aren't built in; what they need comes with them.
/// File systems first, since the root depends on them; drivers of the test machine's devices, as
/// udev would load them; VFIO last.
const WANTED: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "9pnet_virtio",
    "9p",
    "overlay",
    "ext4",
    // ext4 asks for this by name when it mounts; no dependency says so.
    "crc32c_generic",
    "nvme",
    "e1000",
    "e1000e",
    "igb",
    "igbvf",
    "vfio",
    "vfio_iommu_type1",
    "vfio-pci",
    "pci-stub",
];

pub(super) fn provide() -> Result<Kernel> {
    let cache = cache::dir()?;
    let (apt, package, version) = match offered() {
        Ok(offered) => offered,
        Err(error) => {
            let dir = newest_cached(&cache, "stock-", IMAGE).ok_or_else(|| {
                anyhow::anyhow!("no stock kernel in {}, and {error:#}", cache.display())
            })?;
            eprintln!("using the kernel in {} ({error:#})", dir.display());
            return kernel(&dir);
        }
    };
    let wanted = WANTED.join(" ");
    let inputs =
        [("package", &*package), ("version", &version), ("modules", &wanted), ("builder", BUILDER)];
    let name = format!("stock-{}", cache::key(&inputs));
    let _lock = cache::lock(&cache, "stock")?;
    let dir = cache.join(&name);
    if dir.join(IMAGE).is_file() {
        return kernel(&dir);
    }
    packages::ensure(packages::UNPACK)?;
    let dir = publish(&cache, Kind::Stock, &name, |scratch, result| {
        fs::write(result.join("inputs"), format!("{package} {version}\n"))?;
        unpack(&apt, &package, &version, scratch, result)
    })?;
    kernel(&dir)
}

fn kernel(dir: &Path) -> Result<Kernel> {
    let order = fs::read_to_string(dir.join("modules.order"))
        .with_context(|| format!("read the module order in {}", dir.display()))?;
    let modules = order.lines().map(|name| dir.join("modules").join(name)).collect();
    Ok(Kernel { kind: Kind::Stock, image: dir.join(IMAGE), modules })
}

fn offered() -> Result<(PrivateApt, String, String)> {
    let suite = match apt::codename()?.as_str() {
        "bookworm" => "bookworm-backports",
        _ => "trixie",
    };
    let apt = PrivateApt::open(suite)?;
    let mut names = apt.names(&format!("^linux-image-{}\\.[0-9.+a-z]+-amd64$", SERIES))?;
    names.retain(|name| !["cloud", "rt-", "unsigned", "dbg"].iter().any(|w| name.contains(w)));
    let package =
        newest_name(names).with_context(|| format!("{suite} has no linux-image-{SERIES}.*"))?;
    let version = apt.version(&package)?;
    Ok((apt, package, version))
}

fn unpack(
    apt: &PrivateApt,
    package: &str,
    version: &str,
    tree: &Path,
    result: &Path,
) -> Result<()> {
    eprintln!("fetching {package} {version}");
    let deb = apt.download(package, version, tree)?;
    let root = tree.join("deb");
    cache::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))?;
    // Newer packages put modules under /usr/lib; depmod looks under /lib.
    if !root.join("lib/modules").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib"))?;
    }
    let release = only_entry(&root.join("lib/modules"))?;
    let name = release.file_name().and_then(|n| n.to_str()).context("odd module directory")?;
    let depmod = packages::find_program("depmod").context("depmod (package kmod) is missing")?;
    cache::run(Command::new(depmod).arg("-b").arg(&root).arg(name))?;

    fs::copy(root.join("boot").join(format!("vmlinuz-{name}")), result.join(IMAGE))?;
    fs::copy(root.join("boot").join(format!("config-{name}")), result.join("config"))?;
    let target = result.join("modules");
    fs::create_dir(&target)?;
    let mut order = String::new();
    for module in modules::closure(&release, WANTED)? {
        order.push_str(&modules::unpack(&module, &target)?);
        order.push('\n');
    }
    fs::write(result.join("modules.order"), order)?;
    Ok(())
}

fn only_entry(dir: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let entry = entries.next().with_context(|| format!("{} is empty", dir.display()))??;
    Ok(entry.path())
}
