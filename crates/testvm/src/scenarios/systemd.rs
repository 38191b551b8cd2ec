//! Berth under a real systemd: `berthd` without rights on sockets that systemd opened, and devices
//! that it gives away by helpers that systemd starts. Decided by systemd, the kernel and the device.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use berth_uapi::Errno;

use super::{
    berthd_host_use::{taken, words},
    berthd_tools::{Before, is_blocked_for, is_free, is_refused, moves, reserve},
    systemd_helper,
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario, disk,
        holder::Holder,
        probe, sysfs,
        systemd::{BERTHD, Installed, RUN_DIR, cgroup_of, run, show, status, systemctl},
        unpriv::{self, HOLDER_UID, STRANGER_UID},
    },
    topology::{EDU_ROOT, NVME1},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Systemd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("systemd_rights", BASE, rights),
    Scenario::new("systemd_sockets", BASE, sockets),
    Scenario::new("systemd_page", BASE, page),
    Scenario::new("systemd_device_iommufd", IOMMUFD, device_iommufd),
    Scenario::new("systemd_device_type1", TYPE1, device_type1),
    Scenario::new("systemd_udev_rule_missing", TYPE1, udev_rule_missing),
    Scenario::new("systemd_host_use", BASE, host_use),
];

pub(super) const BASE: &[Capability] = &[Capability::Daemon, Systemd];
const TYPE1: &[Capability] = &[Capability::Daemon, Systemd, Type1, Intremap];
const IOMMUFD: &[Capability] = &[Capability::Daemon, Systemd, Iommufd, Cdev, Type1, Intremap];
const IOVA: u64 = 0x40_0000;
const DRIVERS_PROBE: &str = "/sys/bus/pci/drivers_probe";

/// What `systemd-analyze security` may say at most, in tenths.
const BERTHD_EXPOSURE: u32 = 15;
/// The helper has rights, and is as exposed as its capabilities make it.
const HELPER_EXPOSURE: u32 = 32;

/// `berthd` is ready with a uid of its own, no capability, and a /sys that not even root could write
/// to from where it is.
fn rights(ctx: &mut Ctx) -> Result<Outcome> {
    let berth = Installed::started(ctx, "")?;
    for (unit, most) in [(BERTHD, BERTHD_EXPOSURE), ("berth-helper@.service", HELPER_EXPOSURE)] {
        let file = Path::new("/usr/lib/systemd/system").join(unit);
        let mut analyze = Command::new("systemd-analyze");
        analyze.args(["security", "--no-pager", "--offline=true"]);
        let analyzed = run(analyze.arg(format!("--threshold={most}")).arg(&file))?;
        let said = String::from_utf8_lossy(&analyzed.stdout).into_owned();
        ctx.say(said.trim_end().lines().last().unwrap_or_default());
    }
    ensure!(show(BERTHD, "SubState")? == "running", "{}", show(BERTHD, "SubState")?);
    ensure!(show(BERTHD, "Type")? == "notify", "systemd would not wait for READY=1");
    let pid = berth.pid()?;
    let program = fs::read_link(format!("/proc/{pid}/exe"))?;
    ensure!(program == Path::new("/usr/sbin/berthd"), "{}", program.display());
    unpriv::ensure_powerless(pid)?;
    let uid = uid_of("berth")?;
    ensure!(uid != 0, "the user berth is root");
    let uids = status(pid, "Uid")?;
    ensure!(uids.split_whitespace().all(|one| one == uid.to_string()), "uids {uids}, not {uid}");
    ensure!(status(pid, "Seccomp")? == "2", "it has no filter of system calls");
    let found = berth.cli(&["doctor"])?.stdout;
    ensure!(!found.contains("NOT_CONFINED"), "this kernel has all that is asked of it: {found}");
    let cgroup = cgroup_of(pid)?;
    ensure!(cgroup == "/system.slice/berthd.service", "{cgroup}");
    // The whole of the service is this one process: nothing was forked.
    let procs = fs::read_to_string(format!("/sys/fs/cgroup{cgroup}/cgroup.procs"))?;
    ensure!(procs.trim() == pid.to_string(), "processes {procs:?}, not {pid} alone");
    // Otherwise it would take network cards that the host routes by.
    let net = |of: &str| fs::read_link(format!("/proc/{of}/ns/net"));
    ensure!(net(&pid.to_string())? == net("1")?, "it sees another network than the host");

    let device = sysfs::device_dir(EDU_ROOT).join("driver_override");
    for (file, text) in [(device.as_path(), "vfio-pci"), (DRIVERS_PROBE.as_ref(), EDU_ROOT)] {
        let write = format!("echo {text} > {}", file.display());
        let mut inside = Command::new("nsenter");
        // Its root, too: that of its namespace may be another.
        inside.args(["--target", &pid.to_string(), "--mount", "--root", "sh", "-c", &write]);
        let file = file.display();
        let refused = run(&mut inside).err().with_context(|| format!("{file} can be written"))?;
        let refused = refused.to_string();
        ensure!(refused.contains("Read-only file system"), "{refused}");
        ctx.say(format!("root where berthd is: {refused}"));
    }
    ctx.say(format!("berthd is process {pid} of uid {uid}"));
    Ok(Outcome::Pass)
}

pub(super) fn uid_of(user: &str) -> Result<u32> {
    id(&["-u", user])
}

fn id(words: &[&str]) -> Result<u32> {
    let output = run(Command::new("id").args(words))?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// The inode of the socket that listens at a path, as the kernel lists it.
fn listening(path: &Path) -> Result<u64> {
    const LISTENS: &str = "00010000";
    let text = fs::read_to_string("/proc/net/unix")?;
    let line = text.lines().find(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(3) == Some(&LISTENS) && fields.get(7) == path.to_str().as_ref()
    });
    let inode = line.and_then(|line| line.split_whitespace().nth(6)?.parse().ok());
    inode.with_context(|| format!("nobody listens at {}", path.display()))
}

/// The inodes of the sockets that a process has.
fn sockets_of(pid: u32) -> Result<BTreeSet<u64>> {
    let inode = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().filter_map(inode).collect())
}

/// systemd listens before there is a daemon; who connects starts it, and it serves on systemd's own
/// sockets, also after a restart.
fn sockets(ctx: &mut Ctx) -> Result<Outcome> {
    let berth = Installed::fresh(ctx, "")?;
    let units = ["berthd.socket", "berthd-http.socket", "berthd-handover.socket"];
    let paths = ["berthd.sock", "http.sock", "handover.sock"].map(|it| Path::new(RUN_DIR).join(it));
    for unit in units {
        systemctl(&["start", unit])?;
    }
    let inodes: Vec<u64> = paths.iter().map(|path| listening(path)).collect::<Result<_>>()?;
    let of_systemd = sockets_of(1)?;
    ensure!(inodes.iter().all(|inode| of_systemd.contains(inode)), "not all are systemd's");
    ensure!(show(BERTHD, "ActiveState")? == "inactive", "it runs though nobody asked");

    berth.cli(&["capabilities"])?.ok()?;
    ensure!(show(BERTHD, "SubState")? == "running", "the connection did not start it");
    let first = berth.pid()?;
    let has = |pid: u32| -> Result<bool> {
        let own = sockets_of(pid)?;
        Ok(inodes.iter().all(|inode| own.contains(inode)))
    };
    ensure!(has(first)?, "berthd {first} does not serve on systemd's sockets");

    systemctl(&["stop", BERTHD])?;
    // They wait in the sockets until there is a daemon again.
    let waiting: Vec<_> = (0..4)
        .map(|_| berth.cli_command(&["capabilities"]).stdout(Stdio::null()).spawn())
        .collect::<Result<_, _>>()?;
    for mut client in waiting {
        let ended = client.wait()?;
        ensure!(ended.success(), "a client that waited for a start ended with {ended}");
    }
    let second = berth.wait_for_another(first)?;
    ensure!(has(second)?, "berthd {second} does not serve on systemd's sockets");
    let now: Vec<u64> = paths.iter().map(|path| listening(path)).collect::<Result<_>>()?;
    ensure!(now == inodes, "the sockets are others now: {inodes:?}, {now:?}");
    let group = id(&["-g", "berth"])?;
    let as_stranger = |gid: u32| -> Result<bool> {
        let mut client = berth.cli_command(&["capabilities"]);
        let ended = client.uid(STRANGER_UID).gid(gid).stdout(Stdio::null()).status()?;
        Ok(ended.success())
    };
    ensure!(as_stranger(group)?, "a member of the group berth does not get in");
    ensure!(!as_stranger(STRANGER_UID)?, "somebody who is not in the group gets in");
    Ok(Outcome::Pass)
}

/// The page over TCP: by systemd's socket, with a service that may use unix sockets only.
fn page(ctx: &mut Ctx) -> Result<Outcome> {
    let berth = Installed::fresh(ctx, "")?;
    systemctl(&["start", "berthd-page.socket"])?;
    systemctl(&["start", BERTHD])?;
    let get = "exec 3<>/dev/tcp/127.0.0.1/7711; \
               printf 'GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3; \
               head -n 1 <&3";
    let output = run(Command::new("bash").args(["-c", get]))?;
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(line.starts_with("HTTP/1.1 200"), "{line:?}");
    unpriv::ensure_powerless(berth.pid()?)?;
    Ok(Outcome::Pass)
}

fn device_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    device(ctx, "iommufd")
}

fn device_type1(ctx: &mut Ctx) -> Result<Outcome> {
    device(ctx, "type1")
}

/// A device's whole life, with a `berthd` that has no right to do any of it.
fn device(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let berth = Installed::started(ctx, "")?;
    let pid = berth.pid()?;
    let accepted = accepted()?;
    let id =
        reserve(&berth, &["--device", EDU_ROOT, "--policy", "exclusive", "--backend", backend])?;
    ensure!(sysfs::driver(EDU_ROOT).as_deref() == Some("vfio-pci"), "{EDU_ROOT} is elsewhere");
    let node = group_node()?;
    let (owner, uid) = (fs::metadata(&node)?.uid(), uid_of("berth")?);
    ensure!(owner == uid, "{} belongs to uid {owner}, not {uid}", node.display());
    ensure!(probe::stranger(EDU_ROOT).is_kept_out(), "{:?}", probe::stranger(EDU_ROOT));

    berth.cli(&["attach", &id])?.ok()?;
    let mut holder = Holder::start(ctx, HOLDER_UID, berth.handover())?;
    let opened = holder.opens(vec![node.clone()])?;
    ensure!(opened[&node] == Errno::ACCESS.raw_os_error(), "the holder opens {opened:?}");
    holder.fetch(&id)?;
    let memory = holder.memory(1)?;
    holder.map(memory, IOVA)?;
    moves(&mut holder, EDU_ROOT, memory, IOVA, 17)?;
    holder.unmap(IOVA, 4096)?;
    is_blocked_for(ctx, &mut holder, (EDU_ROOT, EDU_ROOT), memory, IOVA)?;
    holder.close()?;
    berth.cli(&["release", &id])?.ok()?;
    before.is_back()?;
    is_free(EDU_ROOT)?;
    before.is_back()?;

    let acts = self::accepted()? - accepted;
    ensure!(acts >= 3, "systemd started {acts} helpers for a bind, a restore and what is between");
    ensure!(berth.pid()? == pid, "it was restarted on the way");
    unpriv::ensure_powerless(pid)?;
    systemd_helper::one_helper(ctx)?;
    ctx.say(format!("{acts} acts, each in a unit of its own"));
    Ok(Outcome::Pass)
}

fn group_node() -> Result<PathBuf> {
    let group = sysfs::group(EDU_ROOT).context("no group")?;
    Ok(Path::new("/dev/vfio").join(group))
}

/// How many helpers systemd has started.
fn accepted() -> Result<u32> {
    Ok(show("berth-helper.socket", "NAccepted")?.parse()?)
}

/// Without the udev rule the node stays root's: that is refused, with the way out, and undone.
fn udev_rule_missing(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let berth = Installed::fresh(ctx, "")?;
    berth.mask_udev_rule()?;
    systemctl(&["start", BERTHD])?;
    let mut words = words(EDU_ROOT);
    words.extend(["--backend", "type1"]);
    let node = group_node()?.display().to_string();
    is_refused(&berth.cli(&words)?, "KERNEL_REFUSED", &[&node, "EACCES", "70-berth.rules"])?;
    before.is_back()?;
    is_free(EDU_ROOT)?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

/// The walls around `berthd` don't keep it from seeing what the host does with a device: a disk that
/// is mounted, before it started or after, also where it must not look or has a place of its own.
fn host_use(ctx: &mut Ctx) -> Result<Outcome> {
    const EARLY: [&str; 4] = ["/mnt", "/home", "/tmp", "/media"];
    const LATE: [&str; 4] = ["/srv", "/root", "/var/tmp", "/opt"];
    let before = Before::of(NVME1);
    let disk = disk::block_device(ctx, NVME1)?;
    run(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(&disk))?;
    let berth = Installed::fresh(ctx, "")?;
    let mut mounted = Mounted::default();
    for place in EARLY {
        mounted.mount(&disk, place)?;
    }
    systemctl(&["start", BERTHD])?;
    for place in LATE {
        mounted.mount(&disk, place)?;
    }
    let answer = berth.cli(&taken(NVME1))?;
    drop(mounted);
    let places: Vec<String> =
        EARLY.iter().chain(&LATE).map(|place| format!(" on {place}")).collect();
    let mut says: Vec<&str> = places.iter().map(String::as_str).collect();
    says.push(NVME1);
    is_refused(&answer, "HOST_USES_DEVICE", &says)?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

/// What was mounted, unmounted when dropped, in the opposite order.
#[derive(Default)]
struct Mounted(Vec<&'static str>);

impl Mounted {
    fn mount(&mut self, disk: &Path, place: &'static str) -> Result<()> {
        run(Command::new("mount").arg(disk).arg(place))?;
        self.0.push(place);
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for place in self.0.iter().rev() {
            if let Err(error) = run(Command::new("umount").arg(place)) {
                println!("{error:#}");
            }
        }
    }
}
