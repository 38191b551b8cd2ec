//! What is in which package, and where.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};

use super::{
    Options, deb, licenses,
    programs::{self, Glibc, Texts},
};
use crate::sbom;

/// A file of a package.
#[derive(Debug, Clone)]
pub(super) struct File {
    /// Where it is installed.
    pub(super) path: String,
    /// Its permissions.
    pub(super) mode: u32,
    /// What is in it.
    pub(super) bytes: Vec<u8>,
    /// What an administrator changed in it stays.
    pub(super) is_config: bool,
}

/// A package.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) summary: &'static str,
    pub(super) description: &'static [&'static str],
    pub(super) deb_depends: &'static [&'static str],
    pub(super) deb_recommends: &'static [&'static str],
    pub(super) rpm_requires: &'static [&'static str],
    pub(super) rpm_recommends: &'static [&'static str],
    /// In the order of their paths.
    pub(super) files: Vec<File>,
    /// The oldest C library that its programs run on.
    pub(super) glibc: Glibc,
}

const UNITS: &str = "/usr/lib/systemd/system";

/// Both packages.
pub(super) fn packages(options: &Options) -> Result<Vec<Package>> {
    let texts = Texts::of(&options.programs)?;
    Ok(vec![host(options, &texts)?, plugin(options, &texts)?])
}

/// Files of a package as they are collected.
struct Files<'a> {
    options: &'a Options,
    name: &'static str,
    all: Vec<File>,
    glibc: Glibc,
}

impl<'a> Files<'a> {
    fn new(options: &'a Options, name: &'static str) -> Self {
        Self { options, name, all: Vec::new(), glibc: Glibc(2, 0) }
    }

    fn add(&mut self, path: String, mode: u32, bytes: Vec<u8>) {
        let is_config = path.starts_with("/etc/");
        self.all.push(File { path, mode, bytes, is_config });
    }

    fn program(&mut self, from: &Path, to: &str) -> Result<()> {
        let (bytes, glibc) = programs::stripped(from)?;
        self.glibc = self.glibc.max(glibc);
        self.add(to.to_owned(), 0o755, bytes);
        Ok(())
    }

    /// A file of the tree.
    fn copy(&mut self, from: &str, to: &str) -> Result<()> {
        let path = self.options.root.join(from);
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        self.add(to.to_owned(), 0o644, bytes);
        Ok(())
    }

    /// All files of a directory of the tree that are of a kind, and below it.
    fn copy_all(&mut self, from: &str, to: &str, is_wanted: fn(&Path) -> bool) -> Result<()> {
        let dir = self.options.root.join(from);
        let entries = fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
        let mut names: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        names.sort();
        for path in names {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let (from, to) = (format!("{from}/{name}"), format!("{to}/{name}"));
            if path.is_dir() {
                self.copy_all(&from, &to, is_wanted)?;
            } else if is_wanted(&path) {
                self.copy(&from, &to)?;
            }
        }
        Ok(())
    }

    fn manuals(&mut self, texts: &Texts, is_wanted: impl Fn(&str) -> bool) -> Result<()> {
        for (name, bytes) in texts.pages(is_wanted)? {
            let section = name.rsplit('.').next().unwrap_or("1");
            let path = format!("/usr/share/man/man{section}/{name}.gz");
            self.add(path, 0o644, gzip(&bytes)?);
        }
        Ok(())
    }

    /// What every package says of itself: licences, changes, what it is made of.
    fn documents(&mut self, crates: &[&str]) -> Result<()> {
        let doc = format!("/usr/share/doc/{}", self.name);
        let root = &self.options.root;
        let made_of = sbom::of(root, crates)?;
        self.add(format!("{doc}/berth.cdx.json"), 0o644, made_of.document.into_bytes());
        let licenses = gzip(licenses::text(&made_of.sources)?.as_bytes())?;
        self.add(format!("{doc}/third-party-licenses.gz"), 0o644, licenses);
        let changes = fs::read(root.join("CHANGELOG.md")).context("read CHANGELOG.md")?;
        self.add(format!("{doc}/CHANGELOG.md.gz"), 0o644, gzip(&changes)?);
        let when = date(super::source_date(root)?);
        let entry = format!(
            "{} ({}) unstable; urgency=medium\n\n  * See CHANGELOG.md.gz.\n\n -- {}  {when}\n",
            self.name,
            self.options.version,
            deb::maintainer()
        );
        self.add(format!("{doc}/changelog.gz"), 0o644, gzip(entry.as_bytes())?);
        self.copy("deploy/debian/copyright", &format!("{doc}/copyright"))
    }

    fn done(mut self) -> (Vec<File>, Glibc) {
        self.all.sort_by(|a, b| a.path.cmp(&b.path));
        (self.all, self.glibc)
    }
}

fn host(options: &Options, texts: &Texts) -> Result<Package> {
    let mut files = Files::new(options, "berth");
    let program = |name: &str| options.programs.join(name);
    let berthd = options.berthd.clone().unwrap_or_else(|| program("berthd"));
    files.program(&berthd, "/usr/sbin/berthd")?;
    files.program(&program("berth"), "/usr/bin/berth")?;
    files.program(&program("berth-helper"), "/usr/libexec/berth/berth-helper")?;
    let is_unit =
        |path: &Path| path.extension().is_some_and(|kind| kind == "service" || kind == "socket");
    files.copy_all("deploy/systemd", UNITS, is_unit)?;
    for (from, to) in [
        ("systemd/sysusers.conf", "/usr/lib/sysusers.d/berth.conf"),
        ("systemd/tmpfiles.conf", "/usr/lib/tmpfiles.d/berth.conf"),
        ("systemd/modules-load.conf", "/usr/lib/modules-load.d/berth.conf"),
        ("systemd/udev.rules", "/usr/lib/udev/rules.d/70-berth.rules"),
        ("berthd.toml", "/etc/berth/berthd.toml"),
        ("debian/berth.lintian-overrides", "/usr/share/lintian/overrides/berth"),
    ] {
        files.copy(&format!("deploy/{from}"), to)?;
    }
    for (shell, to) in [
        ("bash", "/usr/share/bash-completion/completions/berth"),
        ("zsh", "/usr/share/zsh/vendor-completions/_berth"),
        ("fish", "/usr/share/fish/vendor_completions.d/berth.fish"),
    ] {
        files.add(to.to_owned(), 0o644, texts.completion(shell)?);
    }
    files.manuals(texts, |name| !name.starts_with("berth-kubelet-plugin"))?;
    let examples = "/usr/share/doc/berth/examples";
    for from in ["libvirt", "grafana", "prometheus"] {
        let all = |_: &Path| true;
        files.copy_all(&format!("deploy/{from}"), &format!("{examples}/{from}"), all)?;
    }
    let is_text = |path: &Path| path.extension().is_some_and(|kind| kind == "md");
    files.copy_all("docs", "/usr/share/doc/berth/docs", is_text)?;
    files.documents(&["berthd", "berth", "berth-helper"])?;
    let (files, glibc) = files.done();
    Ok(Package {
        name: "berth",
        summary: "decides who may do DMA through each IOMMU group",
        description: &[
            "One daemon per hypervisor host that decides, records and explains which VM",
            "may have which devices by VFIO or iommufd: durable reservations over gRPC and",
            "REST, opened descriptors for processes without rights, and refusals that name",
            "the owner and the way out.",
            "",
            "Nothing runs after the installation until berthd is enabled.",
        ],
        deb_depends: &["systemd (>= 252)", "udev", "kmod"],
        deb_recommends: &[],
        rpm_requires: &["systemd", "systemd-udev", "kmod"],
        rpm_recommends: &[],
        files,
        glibc,
    })
}

fn plugin(options: &Options, texts: &Texts) -> Result<Package> {
    let name = "berth-kubelet-plugin";
    let mut files = Files::new(options, name);
    files.program(&options.programs.join(name), &format!("/usr/sbin/{name}"))?;
    let unit = format!("{name}.service");
    files.copy(&format!("deploy/kubernetes/{unit}"), &format!("{UNITS}/{unit}"))?;
    files.copy("deploy/kubernetes/kubelet-plugin.toml", "/etc/berth/kubelet-plugin.toml")?;
    files.manuals(texts, |page| page.starts_with(name))?;
    let is_manifest = |path: &Path| path.extension().is_some_and(|kind| kind == "yaml");
    let manifests = format!("/usr/share/doc/{name}/kubernetes");
    files.copy_all("deploy/kubernetes", &manifests, is_manifest)?;
    files.documents(&[name])?;
    let (files, glibc) = files.done();
    Ok(Package {
        name,
        summary: "offers a host's IOMMU groups to Kubernetes by way of berthd",
        description: &[
            "A device plugin of the kubelet, and a client of berthd: pods get devices that",
            "berthd reserved for them, as opened descriptors or as device nodes, by CDI.",
            "",
            "Nothing runs after the installation until berth-kubelet-plugin is enabled.",
        ],
        deb_depends: &[],
        deb_recommends: &["berth"],
        rpm_requires: &["systemd"],
        rpm_recommends: &["berth"],
        files,
        glibc,
    })
}

/// Compressed as far as it goes, without a date or a name.
fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut out = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    out.write_all(bytes).and_then(|()| out.finish()).context("compress")
}

/// As in a Debian changelog, in UTC.
fn date(seconds: u32) -> String {
    chrono::DateTime::from_timestamp(seconds.into(), 0)
        .unwrap_or_default()
        .format("%a, %d %b %Y %H:%M:%S +0000")
        .to_string()
}
