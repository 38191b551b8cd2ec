//! The programs, built in a Debian 12 by the toolchain that the workspace names.
//!
//! Rust's own programs run on any C library of the last years; what they link with is that Debian's. The
//! sources, the toolchain and the crates are seen there at places that are the same everywhere, so
//! that what is built doesn't tell where the checkout is.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use berth_testvm::host::{build_root, cache, packages::show_as_root};

use crate::workspace;

/// Crates and their programs.
const PACKAGES: [&str; 4] = ["berthd", "berth", "berth-helper", "berth-kubelet-plugin"];

/// In a mount namespace of its own: the root and what is seen in it. `$1` is the root, `$2` sources,
/// `$3` toolchain, `$4` crates, `$5` what is built, `$6` uid:gid; the rest is the command.
const INSIDE: &str = r#"set -e
root=$1
mount --bind "$2" "$root/src"
mount -o remount,bind,ro "$root/src"
mount --bind "$3" "$root/rust"
mount -o remount,bind,ro "$root/rust"
mount --bind "$4" "$root/cargo"
mount --bind "$5" "$root/build"
mount -t proc proc "$root/proc"
owner=$6
shift 6
exec chroot --userspec="$owner" "$root" "$@""#;

/// Builds them, and says in which directory they are.
pub(super) fn programs(root: &Path, profile: &str) -> Result<PathBuf> {
    let fetched = Command::new(cargo()).args(["fetch", "--locked"]).current_dir(root).status();
    if !fetched.context("start cargo fetch")?.success() {
        bail!("cargo fetch --locked failed: the build itself has no network");
    }
    let chroot = build_root::provide()?;
    let build = workspace::target().join("dist/build");
    fs::create_dir_all(&build).with_context(|| format!("create {}", build.display()))?;
    println!("building the programs in {} (profile {profile})", chroot.display());
    show_as_root(command(root, &chroot, &build, profile)?).context(
        "build in a Debian 12: that takes root (or sudo without a password), for chroot and mounts; \
         or build on a Debian 12 and name the directory: --programs DIR",
    )?;
    let dir = if profile == "dev" { "debug" } else { profile };
    Ok(build.join(dir))
}

fn cargo() -> String {
    env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

fn command(root: &Path, chroot: &Path, build: &Path, profile: &str) -> Result<Command> {
    // The one that this cargo would take: rustup may have others.
    let beside = Path::new(&cargo()).with_file_name("rustc");
    let mut rustc = Command::new(if beside.is_file() { beside } else { "rustc".into() });
    let sysroot = cache::run(rustc.args(["--print", "sysroot"]).current_dir(root))?;
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let home = home.context("neither CARGO_HOME nor HOME is set: where are the crates?")?;
    let owner =
        format!("{}:{}", rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", INSIDE, "sh"]);
    command.arg(chroot).arg(root).arg(sysroot.trim()).arg(home).arg(build).arg(owner);
    command.args(["/usr/bin/env", "-i", "PATH=/rust/bin:/usr/bin:/bin", "HOME=/build"]);
    command.args(["CARGO_HOME=/cargo", "CARGO_TARGET_DIR=/build", "CARGO_INCREMENTAL=0"]);
    command.args(["LC_ALL=C.UTF-8", "SQLX_OFFLINE=true"]);
    command.args(["sh", "-c", r#"cd /src && exec cargo build "$@""#, "sh"]);
    command.args(["--locked", "--offline", "--bins", "--profile", profile]);
    for package in PACKAGES {
        command.args(["-p", package]);
    }
    Ok(command)
}
