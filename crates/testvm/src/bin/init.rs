//! Process 1 of the test guest: modules, a root with a writable overlay, the runner.
//!
//! Linked statically, since it runs before any library can be read. When the runner ends, or
//! anything fails, the guest powers off; the host sees from the results whether all went well.
//! Where the root is a Debian of its own, its systemd takes over and starts the runner.
#![forbid(unsafe_code)]

use std::{
    ffi::CStr,
    fs::{self, File},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    process::{Command, exit},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use berth_testvm::wire::{
    CONFIG_IN_GUEST, CONFIG_IN_INITRAMFS, GuestConfig, HOST_TAG, Profile, ROOT_DISK,
};
use rustix::{
    mount::{MountFlags, mount, mount_bind, mount_move},
    process::{Pid, WaitOptions},
};

const READ_ONLY: &CStr = c"trans=virtio,version=9p2000.L,msize=512000,cache=loose";
const OVER_HOST: &CStr = c"lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work";
const OVER_DEBIAN: &CStr = c"lowerdir=/debian,upperdir=/rw/upper,workdir=/rw/work";
const RUNNER: &str = "/run/berth-vm/bin/berth-testvm-guest";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The runner under systemd. Its end is the machine's. It has cgroups below its own.
const UNIT: &str = "[Unit]\nDescription=Berth's scenarios\nSuccessAction=poweroff-immediate\n\
                    FailureAction=poweroff-immediate\n\
                    [Service]\nType=exec\nDelegate=yes\nStandardOutput=journal+console\n";

fn main() {
    if rustix::process::getpid().as_raw_nonzero().get() != 1 {
        eprintln!("berth-testvm-init is the first process of a test guest and nothing else");
        exit(2);
    }
    if let Err(error) = guest() {
        eprintln!("berth-testvm-init: {error:#}");
        // The console is a serial line: let it drain before the machine goes.
        thread::sleep(Duration::from_millis(200));
    }
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    exit(1);
}

fn guest() -> Result<()> {
    let text = fs::read(CONFIG_IN_INITRAMFS).context("read the guest's configuration")?;
    let config: GuestConfig = serde_json::from_slice(&text).context("parse the configuration")?;
    mounted("devtmpfs", "/dev", "devtmpfs", None)?;
    mounted("proc", "/proc", "proc", None)?;
    mounted("sysfs", "/sys", "sysfs", None)?;
    for module in &config.modules {
        let path = Path::new("/modules").join(module);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        rustix::system::finit_module(file, c"", 0).with_context(|| format!("load {module}"))?;
    }
    root(config.profile)?;
    fs::write(Path::new("/newroot").join(CONFIG_IN_GUEST.trim_start_matches('/')), &text)?;
    // Bound to a short path that any uid may enter, wherever the checkout is.
    let bin = "/newroot/run/berth-vm/bin";
    fs::create_dir_all(bin)?;
    mount_bind(Path::new("/host").join(config.bin_dir.strip_prefix("/")?), bin)
        .with_context(|| format!("bind {}", config.bin_dir.display()))?;
    switch_root()?;
    if let Err(error) = loopback_up() {
        eprintln!("berth-testvm-init: the loopback interface stays down: {error:#}");
    }
    rustix::system::sethostname(b"berth-vm").context("set the host name")?;
    if config.profile == Profile::Systemd { systemd(&config) } else { runner(&config) }
}

/// A file system mounted with the flags of its kind.
fn mounted(source: &str, target: &str, kind: &str, options: Option<&CStr>) -> Result<()> {
    let read_only = matches!(kind, "9p" | "ext4");
    let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    mount(source, target, kind, flags, options).with_context(|| format!("mount {kind} on {target}"))
}

/// The host's root, read-only by 9p, or the machine's own, with a tmpfs over it; the kernel's file
/// systems inside.
fn root(profile: Profile) -> Result<()> {
    mounted(HOST_TAG, "/host", "9p", Some(READ_ONLY))?;
    let overlay = if profile == Profile::Systemd {
        mounted(ROOT_DISK, "/debian", "ext4", None)?;
        OVER_DEBIAN
    } else {
        OVER_HOST
    };
    mounted("tmpfs", "/rw", "tmpfs", Some(c"mode=0755,size=75%"))?;
    fs::create_dir_all("/rw/upper")?;
    fs::create_dir_all("/rw/work")?;
    mounted("overlay", "/newroot", "overlay", Some(overlay))?;
    for name in ["dev", "proc", "sys"] {
        let target = format!("/newroot/{name}");
        fs::create_dir_all(&target)?;
        mount_move(format!("/{name}"), &target).with_context(|| format!("move {name}"))?;
    }
    // What the host's /run says is not true here.
    mounted("tmpfs", "/newroot/run", "tmpfs", Some(c"mode=0755"))?;
    for dir in ["/newroot/dev/pts", "/newroot/dev/shm"] {
        fs::create_dir_all(dir)?;
    }
    mounted("devpts", "/newroot/dev/pts", "devpts", Some(c"mode=0620,ptmxmode=0666"))?;
    mounted("tmpfs", "/newroot/dev/shm", "tmpfs", Some(c"mode=1777"))?;
    mounted("cgroup2", "/newroot/sys/fs/cgroup", "cgroup2", None)?;
    mounted("debugfs", "/newroot/sys/kernel/debug", "debugfs", None)?;
    for (link, target) in
        [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")]
    {
        let path = Path::new("/newroot/dev").join(link);
        if !path.exists() {
            std::os::unix::fs::symlink(target, path)?;
        }
    }
    Ok(())
}

fn switch_root() -> Result<()> {
    rustix::process::chdir("/newroot")?;
    mount_move(".", "/").context("move the new root to /")?;
    rustix::process::chroot(".").context("chroot to the new root")?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Sets the loopback interface up by rtnetlink, without any program of the host.
fn loopback_up() -> Result<()> {
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, send, socket};
    // NETLINK_ROUTE is protocol 0, the one that is meant when none is named.
    let socket: OwnedFd = socket(AddressFamily::NETLINK, SocketType::RAW, None)?;
    // struct nlmsghdr: RTM_NEWLINK (16), NLM_F_REQUEST | NLM_F_ACK (5).
    let mut request = Vec::new();
    request.extend(32_u32.to_ne_bytes());
    request.extend(16_u16.to_ne_bytes());
    request.extend(5_u16.to_ne_bytes());
    request.extend([0; 8]);
    // struct ifinfomsg: the interface of index 1, IFF_UP set, IFF_UP changed.
    request.extend([0; 4]);
    request.extend(1_i32.to_ne_bytes());
    request.extend(1_u32.to_ne_bytes());
    request.extend(1_u32.to_ne_bytes());
    send(&socket, &request, SendFlags::empty())?;
    let mut answer = [0_u8; 256];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    // struct nlmsgerr follows the header; its error is 0 for an acknowledgement.
    let error = answer[..length].get(16..20).context("short answer from rtnetlink")?;
    if error != [0; 4] {
        anyhow::bail!("rtnetlink refused: {error:?}");
    }
    Ok(())
}

/// Becomes systemd, which starts the runner as a service. Returns only if that fails.
fn systemd(config: &GuestConfig) -> Result<()> {
    let units = Path::new("/etc/systemd/system");
    let (name, wants) = ("berth-vm.service", units.join("multi-user.target.wants"));
    let mut unit =
        format!("{UNIT}ExecStart={RUNNER}\nEnvironment=PATH={PATH} HOME=/root LANG=C.UTF-8\n");
    for (variable, value) in &config.env {
        let quoted = value.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
        unit.push_str(&format!("Environment=\"{variable}={quoted}\"\n"));
    }
    fs::create_dir_all(&wants)?;
    fs::write(units.join(name), unit).context("write the runner's unit")?;
    std::os::unix::fs::symlink(units.join(name), wants.join(name))?;
    // Without one systemd takes it for the first boot and asks questions.
    fs::write("/etc/machine-id", "00000000000040008000be0000000001\n")?;
    let error = Command::new("/sbin/init").arg("--unit=multi-user.target").env_clear().exec();
    Err(error).context("become systemd")
}

fn runner(config: &GuestConfig) -> Result<()> {
    let mut command = Command::new(RUNNER);
    command.env_clear().env("PATH", PATH);
    command.env("HOME", "/root").env("LANG", "C.UTF-8").envs(&config.env);
    let child = command.spawn().with_context(|| format!("start {RUNNER}"))?;
    let runner = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("odd pid")?;
    // Orphans become children of process 1: they are waited for here too.
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == runner => {
                if !status.exited() || status.exit_status() != Some(0) {
                    eprintln!("berth-testvm-init: the runner ended with {status:?}");
                }
                return Ok(());
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for the runner"),
        }
    }
}
