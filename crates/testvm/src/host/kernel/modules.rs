//! Kernel modules: what a module needs, in load order, uncompressed.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// The files of `wanted` and of everything they need, each after what it needs itself. Modules that
/// are built into the kernel are left out.
pub(super) fn closure(release: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>> {
    let read = |name: &str| {
        let path = release.join(name);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let order = resolve(&read("modules.dep")?, &read("modules.builtin")?, wanted)?;
    Ok(order.into_iter().map(|path| release.join(path)).collect())
}

fn resolve(dep: &str, builtin: &str, wanted: &[&str]) -> Result<Vec<String>> {
    let mut needs: HashMap<&str, Vec<&str>> = HashMap::new();
    let mut by_name: HashMap<String, &str> = HashMap::new();
    for line in dep.lines() {
        let Some((file, rest)) = line.split_once(':') else { continue };
        by_name.insert(name_of(file), file);
        needs.insert(file, rest.split_whitespace().collect());
    }
    let builtin: HashSet<String> = builtin.lines().map(name_of).collect();
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let name = name.replace('-', "_");
        let Some(file) = by_name.get(&name) else {
            if builtin.contains(&name) {
                continue;
            }
            bail!("this kernel has no module {name}");
        };
        visit(file, &needs, &mut order);
    }
    Ok(order)
}

fn visit(file: &str, needs: &HashMap<&str, Vec<&str>>, order: &mut Vec<String>) {
    if order.iter().any(|known| known == file) {
        return;
    }
    for need in needs.get(file).into_iter().flatten() {
        visit(need, needs, order);
    }
    order.push(file.to_owned());
}

/// `kernel/fs/9p/9p.ko.xz` is `9p`; dashes and underscores are the same to the kernel.
fn name_of(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split(".ko").next().unwrap_or(base).replace('-', "_")
}

/// Writes the uncompressed module into `target` and gives its file name.
pub(super) fn unpack(module: &Path, target: &Path) -> Result<String> {
    let name = format!("{}.ko", name_of(&module.to_string_lossy()));
    let path = target.join(&name);
    let program = match module.extension().and_then(|e| e.to_str()) {
        Some("ko") => {
            fs::copy(module, &path)?;
            return Ok(name);
        }
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => bail!("{}: unknown compression", module.display()),
    };
    let mut command = Command::new(program);
    command.arg("-dc").arg(module).stdout(File::create(&path)?);
    let status = command.status().with_context(|| format!("start {program}"))?;
    if !status.success() {
        bail!("{program} could not unpack {}: {status}", module.display());
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::resolve;

    const DEP: &str = "kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs/netfs.ko.xz\n\
                       kernel/net/9p/9pnet.ko.xz:\n\
                       kernel/fs/netfs/netfs.ko.xz:\n\
                       kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz\n";

    #[test]
    fn what_a_module_needs_comes_before_it_and_once() {
        let order = resolve(DEP, "kernel/a/virtio-pci.ko\n", &["9pnet-virtio", "9p", "virtio_pci"]);
        let order = order.expect("all are known");
        assert_eq!(
            order,
            [
                "kernel/net/9p/9pnet.ko.xz",
                "kernel/net/9p/9pnet_virtio.ko.xz",
                "kernel/fs/netfs/netfs.ko.xz",
                "kernel/fs/9p/9p.ko.xz",
            ]
        );
    }

    #[test]
    fn an_unknown_module_is_an_error() {
        assert!(resolve(DEP, "", &["nosuch"]).is_err());
    }
}
