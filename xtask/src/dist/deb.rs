//! A package for Debian, by `dpkg-deb`.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use berth_testvm::host::{
    cache,
    packages::{self, Tool},
};

use super::{
    Options, architectures,
    files::{File, Package},
};

const TOOLS: &[Tool] =
    &[Tool { package: "dpkg", proof: "dpkg-deb" }, Tool { package: "coreutils", proof: "md5sum" }];
const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// Who looks after the packages: `DEBFULLNAME` and `DEBEMAIL`, as other tools have it.
pub(super) fn maintainer() -> String {
    let of = |name: &str, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let name = of("DEBFULLNAME", "The Berth authors");
    format!("{name} <{}>", of("DEBEMAIL", "packages@berth.invalid"))
}

pub(super) fn write(options: &Options, package: &Package, when: u32) -> Result<PathBuf> {
    packages::ensure(TOOLS)?;
    let dir = tempfile::tempdir().context("make a directory to pack in")?;
    let tree = dir.path().join("tree");
    directory(&tree)?;
    let mut sums = Command::new("md5sum");
    for file in &package.files {
        put(&tree, file.path.trim_start_matches('/'), &file.bytes, file.mode)?;
        sums.arg(file.path.trim_start_matches('/'));
    }
    let sums = cache::run(sums.arg("--").current_dir(&tree))?;
    let arch = architectures()?.0;
    let control = control(options, package, arch);
    let mut meta: Vec<(&str, String, u32)> =
        vec![("control", control, 0o644), ("md5sums", sums, 0o644)];
    let conffiles = package.files.iter().filter(|file| file.is_config);
    meta.push(("conffiles", conffiles.map(|file| format!("{}\n", file.path)).collect(), 0o644));
    for script in SCRIPTS {
        let from = options.root.join(format!("deploy/debian/{}.{script}", package.name));
        let text = fs::read_to_string(&from).with_context(|| format!("read {}", from.display()))?;
        meta.push((script, text, 0o755));
    }
    for (name, text, mode) in meta {
        put(&tree, &format!("DEBIAN/{name}"), text.as_bytes(), mode)?;
    }
    let file = options.out.join(format!("{}_{}_{arch}.deb", package.name, options.version));
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--root-owner-group", if options.small { "-Zxz" } else { "-Znone" }]);
    pack.arg("--build").arg(&tree).arg(&file).env("SOURCE_DATE_EPOCH", when.to_string());
    cache::run(&mut pack)?;
    Ok(file)
}

/// Modes don't follow the caller's umask.
fn directory(path: &Path) -> Result<()> {
    fs::create_dir(path).with_context(|| format!("create {}", path.display()))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

fn put(tree: &Path, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let path = tree.join(name);
    let above: Vec<&Path> = path.ancestors().skip(1).take_while(|above| !above.exists()).collect();
    above.into_iter().rev().try_for_each(directory)?;
    fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
    Ok(fs::set_permissions(&path, fs::Permissions::from_mode(mode))?)
}

fn control(options: &Options, package: &Package, arch: &str) -> String {
    let size: usize = package.files.iter().map(|file: &File| file.bytes.len().div_ceil(1024)).sum();
    let mut depends = vec![
        format!("libc6 (>= {}.{})", package.glibc.0, package.glibc.1),
        "libgcc-s1 (>= 4.2)".to_owned(),
    ];
    depends.extend(package.deb_depends.iter().map(|it| (*it).to_owned()));
    let mut text = format!(
        "Package: {}\nVersion: {}\nArchitecture: {arch}\nMaintainer: {}\nInstalled-Size: {size}\n\
         Depends: {}\n",
        package.name,
        options.version,
        maintainer(),
        depends.join(", "),
    );
    if !package.deb_recommends.is_empty() {
        text.push_str(&format!("Recommends: {}\n", package.deb_recommends.join(", ")));
    }
    text.push_str("Section: admin\nPriority: optional\n");
    text.push_str(&format!("Description: {}\n", package.summary));
    for line in package.description {
        text.push_str(&format!(" {}\n", if line.is_empty() { "." } else { line }));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::programs::Glibc;

    fn package() -> Package {
        let file = |path: &str, size| File {
            path: path.to_owned(),
            mode: 0o644,
            bytes: vec![0; size],
            is_config: path.starts_with("/etc/"),
        };
        Package {
            name: "berth-test",
            summary: "is for a test",
            description: &["A line.", "", "Another."],
            deb_depends: &["systemd (>= 252)"],
            deb_recommends: &["berth"],
            rpm_requires: &[],
            rpm_recommends: &[],
            files: vec![file("/etc/a", 1), file("/usr/b", 1025)],
            glibc: Glibc(2, 34),
        }
    }

    fn options() -> Options {
        Options {
            root: "/".into(),
            programs: "/".into(),
            berthd: None,
            out: "/".into(),
            version: "1.2.3".to_owned(),
            small: true,
        }
    }

    #[test]
    fn the_control_file_asks_for_the_c_library_that_is_needed() {
        let text = control(&options(), &package(), "amd64");
        for line in [
            "Package: berth-test",
            "Version: 1.2.3",
            "Architecture: amd64",
            "Installed-Size: 3",
            "Depends: libc6 (>= 2.34), libgcc-s1 (>= 4.2), systemd (>= 252)",
            "Recommends: berth",
            "Description: is for a test",
            " A line.",
            " .",
            " Another.",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line:?} in\n{text}");
        }
        assert!(text.ends_with(" Another.\n"));
    }

    #[test]
    fn modes_are_those_of_the_package_also_in_new_directories() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        directory(&tree).unwrap();
        put(&tree, "usr/share/a", b"a", 0o644).unwrap();
        put(&tree, "usr/share/b/c", b"c", 0o755).unwrap();
        let mode =
            |name: &str| fs::metadata(tree.join(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!(["", "usr", "usr/share", "usr/share/b"].map(mode), [0o755; 4]);
        assert_eq!(["usr/share/a", "usr/share/b/c"].map(mode), [0o644, 0o755]);
    }
}
