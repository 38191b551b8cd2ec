//! Tools that the machine must have, and how to get them.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{
    apt::{self, PrivateApt},
    cache,
};

/// A tool: the Debian package that has it, and a file or program that proves it is there.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    /// The Debian package.
    pub package: &'static str,
    /// A program on the path, or an absolute path of a file.
    pub proof: &'static str,
}

/// What building a kernel takes.
pub const BUILD: &[Tool] = &[
    Tool { package: "gcc", proof: "gcc" },
    Tool { package: "make", proof: "make" },
    Tool { package: "flex", proof: "flex" },
    Tool { package: "bison", proof: "bison" },
    Tool { package: "bc", proof: "bc" },
    Tool { package: "libelf-dev", proof: "/usr/include/gelf.h" },
    Tool { package: "libssl-dev", proof: "/usr/include/openssl/ssl.h" },
    Tool { package: "xz-utils", proof: "xz" },
];

/// What unpacking a distribution's kernel takes.
pub const UNPACK: &[Tool] =
    &[Tool { package: "xz-utils", proof: "xz" }, Tool { package: "kmod", proof: "depmod" }];

/// What making a root file system takes.
pub const ROOT: &[Tool] = &[
    Tool { package: "debootstrap", proof: "debootstrap" },
    Tool { package: "e2fsprogs", proof: "mke2fs" },
];

/// Where a program is on the path, `sbin` included.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|dir| PathBuf::from(dir).join(name))
        .find(|path| path.is_file())
}

fn is_there(tool: &Tool) -> bool {
    if tool.proof.starts_with('/') {
        PathBuf::from(tool.proof).exists()
    } else {
        find_program(tool.proof).is_some()
    }
}

/// Makes sure that all tools are there; installs what is missing where that is allowed.
///
/// # Errors
/// Something is missing and can't be installed: says what, and how.
pub fn ensure(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&str> = tools.iter().filter(|t| !is_there(t)).map(|t| t.package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let advice = format!("install by hand: apt-get install {}", missing.join(" "));
    apt::codename().with_context(|| format!("missing tools (Debian names): {missing:?}"))?;
    eprintln!("installing {}", missing.join(" "));
    let install = || {
        let mut command = Command::new("apt-get");
        command.args(["-y", "--no-install-recommends", "install"]).args(&missing);
        as_root(command)
    };
    // A fresh machine has no package lists, or old ones.
    if install().is_err() {
        let mut update = Command::new("apt-get");
        update.arg("update");
        as_root(update).and_then(|()| install()).context(advice.clone())?;
    }
    match tools.iter().find(|t| !is_there(t)) {
        Some(tool) => bail!("{} is still missing; {advice}", tool.proof),
        None => Ok(()),
    }
}

/// Runs a command as root: directly, or by `sudo -n`.
///
/// # Errors
/// That isn't allowed here, or the command fails.
pub fn as_root(command: Command) -> Result<()> {
    cache::run(&mut by_root(command)?).map(drop)
}

/// The same for a command that takes long and says how far it is.
///
/// # Errors
/// As of [`as_root`].
pub fn show_as_root(command: Command) -> Result<()> {
    let mut command = by_root(command)?;
    let name = command.get_program().to_owned();
    let status = command.status().with_context(|| format!("start {}", name.display()))?;
    if status.success() { Ok(()) } else { bail!("{} ended with {status}", name.display()) }
}

fn by_root(mut command: Command) -> Result<Command> {
    command.env("DEBIAN_FRONTEND", "noninteractive");
    if rustix::process::geteuid().is_root() {
        return Ok(command);
    }
    if find_program("sudo").is_none() {
        bail!("not root, and there is no sudo");
    }
    let mut sudo = Command::new("sudo");
    sudo.arg("-n").arg(command.get_program()).args(command.get_args());
    Ok(sudo)
}

/// A QEMU that has every device of the test machine (8.0 or newer, for `igb`).
///
/// # Errors
/// There is none and it can't be installed.
pub fn ensure_qemu() -> Result<PathBuf> {
    const PROGRAM: &str = "qemu-system-x86_64";
    let lacks = |program: &PathBuf| -> Result<Vec<&str>> {
        let help = cache::run(Command::new(program).args(["-device", "help"]))?;
        let has = |device: &str| help.contains(&format!("name \"{device}\""));
        let wanted = [
            "edu",
            "igb",
            "nvme",
            "e1000e",
            "pcie-pci-bridge",
            "intel-iommu",
            "virtio-9p-pci",
            "virtio-net-pci",
        ];
        Ok(wanted.into_iter().filter(|device| !has(device)).collect())
    };
    if let Some(program) = find_program(PROGRAM)
        && lacks(&program)?.is_empty()
    {
        return Ok(program);
    }
    let codename = apt::codename().context("QEMU 8.0 or newer for x86_64 is needed")?;
    if codename == "bookworm" {
        let apt = PrivateApt::open("bookworm-backports")?;
        let commands = apt.install_commands(&["qemu-system-x86"])?;
        commands.into_iter().try_for_each(as_root)
    } else {
        let mut command = Command::new("apt-get");
        command.args(["-y", "--no-install-recommends", "install", "qemu-system-x86"]);
        as_root(command)
    }
    .context(
        "install qemu-system-x86, 8.0 or newer, by hand (Debian 12: from bookworm-backports)",
    )?;
    let program = find_program(PROGRAM).context("qemu-system-x86 brought no qemu-system-x86_64")?;
    let lacks = lacks(&program)?;
    if !lacks.is_empty() {
        bail!("{} has no {}: QEMU 8.0 or newer is needed", program.display(), lacks.join(", "));
    }
    Ok(program)
}

/// Whether a QEMU takes a device's cdev and an iommufd that were opened for it (9.0 or newer).
/// Debian 13's does, and the one for Debian 12 that [`ensure_qemu`] installs.
///
/// # Errors
/// It can't be started.
pub fn takes_descriptors(qemu: &Path) -> Result<bool> {
    let help = |option: &str, what: &str| cache::run(Command::new(qemu).args([option, what]));
    let has = |help: &str, key: &str| help.lines().any(|line| line.trim_start().starts_with(key));
    // One without VFIO ends with an error.
    let device = help("-device", "vfio-pci,help").unwrap_or_default();
    Ok(has(&help("-object", "help")?, "iommufd") && has(&device, "fd=") && has(&device, "iommufd="))
}
