//! A package for RPM systems.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rpm::{
    BuildConfig, CompressionWithLevel, Dependency, FileOptions, FileType, PackageBuilder, Scriptlet,
};

use super::{
    Options, architectures, deb,
    files::{File, Package},
};

/// Directories that belong to the package as a whole: what is above isn't Berth's.
const OURS: &[&str] =
    &["/etc/berth", "/usr/libexec/berth", "/usr/share/doc/", "/usr/share/licenses/"];

pub(super) fn write(options: &Options, package: &Package, when: u32) -> Result<PathBuf> {
    let arch = architectures()?.1;
    let (name, version) = (package.name, options.version.replace('-', "~"));
    let mut builder = PackageBuilder::new(name, &version, "Apache-2.0", arch, package.summary);
    let level = if options.small { 9 } else { 1 };
    let config = BuildConfig::v4().compression(CompressionWithLevel::Gzip(level)).source_date(when);
    // A build's host is a fact of its own, which two builds need not have in common.
    builder.using_config(config).release("1").build_host("localhost").packager(deb::maintainer());
    builder.description(package.description.join("\n"));
    let (major, minor) = (package.glibc.0, package.glibc.1);
    builder.requires(Dependency::any(format!("libc.so.6(GLIBC_{major}.{minor})(64bit)")));
    for needed in package.rpm_requires {
        builder.requires(Dependency::any(*needed));
    }
    for wanted in package.rpm_recommends {
        builder.recommends(Dependency::any(*wanted));
    }
    for dir in directories(&package.files) {
        builder.with_dir_entry(FileOptions::dir(dir).permissions(0o755))?;
    }
    for file in &package.files {
        let mode = u16::try_from(file.mode).context("a mode")?;
        let mut one = FileOptions::new(path_of(&file.path)).permissions(mode);
        if file.is_config {
            one = one.config().noreplace();
        } else if file.path.starts_with("/usr/share/doc/") {
            one = one.doc();
        }
        builder.with_file_contents(file.bytes.clone(), one)?;
    }
    scripts(options, name, &mut builder)?;
    let built = builder.build().with_context(|| format!("build {name}"))?;
    let file = options.out.join(format!("{name}-{version}-1.{arch}.rpm"));
    built.write_file(&file).with_context(|| format!("write {}", file.display()))?;
    Ok(file)
}

/// Debian has a place of its own for what its packages complete in zsh, and overrides of lintian's.
pub(super) fn path_of(path: &str) -> String {
    path.replace("/zsh/vendor-completions/", "/zsh/site-functions/")
}

/// Lists the files of a package that was written, directories left out.
pub(super) fn files_of(package: &Path) -> Result<Vec<String>> {
    let package =
        rpm::Package::open(package).with_context(|| format!("read {}", package.display()))?;
    let entries = package.metadata.get_file_entries().context("list its files")?;
    let files = entries.into_iter().filter(|entry| entry.file_type() == FileType::Regular);
    Ok(files.map(|entry| entry.path().to_string_lossy().into_owned()).collect())
}

fn directories(files: &[File]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in files {
        let mut rest = file.path.as_str();
        while let Some((above, _)) = rest.rsplit_once('/') {
            if OURS.iter().any(|ours| above.starts_with(ours)) {
                found.insert(above.to_owned());
            }
            rest = above;
        }
    }
    found
}

fn scripts(options: &Options, name: &str, builder: &mut PackageBuilder) -> Result<()> {
    let read = |file: &str| {
        let path = options.root.join("deploy").join(file);
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    builder.post_install_script(Scriptlet::new(read(&format!("rpm/{name}.post"))?));
    builder.post_uninstall_script(Scriptlet::new(read(&format!("rpm/{name}.postun"))?));
    // Whether devices are in use is asked by the same script as on Debian, where a word says what here
    // is the number of versions that stay.
    let before = format!(
        "[ \"$1\" -eq 0 ] || exit 0\nset -- remove\n{}{}",
        read(&format!("debian/{name}.prerm"))?.replace("deb-systemd-invoke", "systemctl"),
        read(&format!("rpm/{name}.preun"))?
    );
    builder.pre_uninstall_script(Scriptlet::new(before));
    Ok(())
}
