//! `cargo xtask dist`: packages for Debian (12 and newer) and for RPM systems, with what is in them.
//!
//! Programs are built in a Debian 12, whose C library is the oldest that they have to run on. The same
//! sources and the same `SOURCE_DATE_EPOCH` give the same bytes.

mod build;
mod deb;
mod files;
mod licenses;
mod programs;
mod rpm;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::run::NEXT_RELEASE;
use sha2::{Digest as _, Sha256};

use crate::workspace;

/// Arguments of `cargo xtask dist`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Take the programs from this directory instead of building them in a Debian 12. The packages ask
    /// for the C library that these need.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Where the packages are written.
    #[arg(long, value_name = "DIR", default_value = "target/dist")]
    out: PathBuf,
    /// The packages' version, such as 0.1.0+site2 [default: the workspace's].
    #[arg(long, value_name = "VERSION")]
    package_version: Option<String>,
    /// Cargo's profile.
    #[arg(long, value_name = "NAME", default_value = "release", conflicts_with = "programs")]
    profile: String,
}

/// What packages are made of.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// The workspace.
    pub(crate) root: PathBuf,
    /// Where the programs are.
    pub(crate) programs: PathBuf,
    /// Another `berthd` than the one there.
    pub(crate) berthd: Option<PathBuf>,
    /// Where packages are written.
    pub(crate) out: PathBuf,
    /// Their version.
    pub(crate) version: String,
    /// What they are written for: a guest that unpacks them once, or everybody.
    pub(crate) small: bool,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    let root = workspace::root();
    let programs = match &arguments.programs {
        Some(dir) => dir.clone(),
        None => build::programs(&root, &arguments.profile)?,
    };
    let version = match &arguments.package_version {
        Some(version) => version.clone(),
        None => workspace_version(&root)?,
    };
    let out = root.join(&arguments.out);
    let options = Options { root, programs, berthd: None, out, version, small: true };
    let mut made = debs(&options)?;
    made.extend(rpms(&options)?);
    made.sort();
    let mut sums = String::new();
    for file in &made {
        let bytes = fs::read(file).with_context(|| format!("read {}", file.display()))?;
        let name = file.file_name().unwrap_or_default().display();
        println!("{:>6.1} MB  {}", bytes.len() as f64 / 1e6, file.display());
        sums.push_str(&format!("{:x}  {name}\n", Sha256::digest(&bytes)));
    }
    let list = options.out.join("SHA256SUMS");
    fs::write(&list, sums).with_context(|| format!("write {}", list.display()))
}

/// Writes the packages for Debian.
pub(crate) fn debs(options: &Options) -> Result<Vec<PathBuf>> {
    let contents = files::packages(options)?;
    let when = source_date(&options.root)?;
    fs::create_dir_all(&options.out)
        .with_context(|| format!("create {}", options.out.display()))?;
    contents.iter().map(|package| deb::write(options, package, when)).collect()
}

/// Writes the packages for RPM systems.
pub(crate) fn rpms(options: &Options) -> Result<Vec<PathBuf>> {
    let contents = files::packages(options)?;
    let when = source_date(&options.root)?;
    fs::create_dir_all(&options.out)
        .with_context(|| format!("create {}", options.out.display()))?;
    contents.iter().map(|package| rpm::write(options, package, when)).collect()
}

/// The files in an RPM package.
pub(crate) fn files_of_rpm(package: &Path) -> Result<Vec<String>> {
    rpm::files_of(package)
}

/// Where a file of a package for Debian is on an RPM system.
pub(crate) fn path_in_rpm(path: &str) -> String {
    rpm::path_of(path)
}

/// The version that all crates have.
pub(crate) fn workspace_version(root: &Path) -> Result<String> {
    let text = fs::read_to_string(root.join("Cargo.toml")).context("read Cargo.toml")?;
    let manifest: toml::Table = toml::from_str(&text).context("Cargo.toml")?;
    let version = manifest["workspace"]["package"]["version"].as_str();
    Ok(version.context("Cargo.toml has no workspace.package.version")?.to_owned())
}

/// When the sources were changed last, in seconds since 1970: what all files in packages are dated.
fn source_date(root: &Path) -> Result<u32> {
    let text = match env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => {
            let mut git = Command::new("git");
            let output = git.args(["log", "-1", "--format=%ct"]).current_dir(root).output();
            match output {
                Ok(output) if output.status.success() => {
                    String::from_utf8_lossy(&output.stdout).into_owned()
                }
                _ => bail!("no git history here to take a date from: set SOURCE_DATE_EPOCH"),
            }
        }
    };
    let seconds = text.trim().parse();
    seconds.with_context(|| format!("SOURCE_DATE_EPOCH: {text:?} is no number of seconds"))
}

/// What Debian and RPM call this machine's processor.
fn architectures() -> Result<(&'static str, &'static str)> {
    match env::consts::ARCH {
        "x86_64" => Ok(("amd64", "x86_64")),
        "aarch64" => Ok(("arm64", "aarch64")),
        other => bail!("no packages are made for {other}"),
    }
}

/// What the next release is called where an upgrade to it is tested.
const NEXT: &str = "+next";

/// Packages of the programs in a directory, and of the release after them, as guests install them.
///
/// The next release is `daemon/examples/next_release.rs`: the same program with one migration more.
pub(crate) fn guests(programs: &Path, out: &Path) -> Result<()> {
    let root = workspace::root();
    let next = programs.join("examples").join(NEXT_RELEASE);
    let version = workspace_version(&root)?;
    let options = |version: String, berthd: Option<PathBuf>, out: PathBuf| Options {
        root: root.clone(),
        programs: programs.to_owned(),
        berthd,
        out,
        version,
        small: false,
    };
    debs(&options(version.clone(), None, out.join("now")))?;
    debs(&options(format!("{version}{NEXT}"), Some(next), out.join("next")))?;
    Ok(())
}
