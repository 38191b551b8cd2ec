//! A VM's whole life: QEMU without any right, started by `berth run`, has a disk of the host, and the
//! host has it again. Decided by what the disk itself read and wrote, by limits, errnos and sysfs.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use berth_uapi::Errno;
use serde_json::Value;

use super::berthd_tools::{Before, is_free, opens_no_node, reserve};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::Daemon,
        disk,
        edu::pattern,
        holder::Holder,
        nvme::{BLOCK, Nvme},
        probe,
        qtest::Qtest,
        unpriv::{self, HOLDER_UID},
        wait_for,
    },
    topology::NVME1,
    wire::Capability::{self, Cdev, Intremap, Iommufd, Qemu, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_run_qemu_iommufd", IOMMUFD, iommufd).within(400),
    Scenario::new("berthd_run_qemu_iommufd_node", IOMMUFD, iommufd_node).within(300),
    Scenario::new("berthd_run_qemu_type1", TYPE1, type1).within(400),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap, Qemu];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap, Qemu];

/// What processes may lock by default.
const MEMLOCK: u64 = 8 << 20;
/// The disk that the VM is given.
pub(super) const DISK: &str = NVME1;
/// The memory of the VM, and what is added to it for what else QEMU maps.
pub(super) const GUEST: u64 = 64 << 20;
const SLACK: u64 = 256 << 20;
/// Where on the disk the host's pattern is, and where the VM's goes.
pub(super) const HOSTS: u32 = 16;
pub(super) const GUESTS: u32 = 64;
pub(super) const LENGTH: usize = 4096;

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    let daemon = Daemon::start(ctx)?;
    let delivery = Delivery::UNBOUND;
    needs_memory(ctx, &daemon, delivery)?;
    life(ctx, &daemon, delivery, "exclusive", &["-device", "vfio-pci,host=08:00.0,addr=0x7"], 11)?;
    life(ctx, &daemon, delivery, "group", &[], 23)?;
    Ok(Outcome::Pass)
}

fn iommufd_node(ctx: &mut Ctx) -> Result<Outcome> {
    let daemon = Daemon::start(ctx)?;
    let delivery = Delivery { backend: "iommufd", word: "node", fds: false };
    life(ctx, &daemon, delivery, "exclusive", &[], 37)?;
    Ok(Outcome::Pass)
}

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    let daemon = Daemon::start(ctx)?;
    let delivery = Delivery::NODE;
    needs_memory(ctx, &daemon, delivery)?;
    life(ctx, &daemon, delivery, "exclusive", &["-device", "vfio-pci,host=08:00.0,addr=0x7"], 53)?;
    life(ctx, &daemon, delivery, "group", &[], 71)?;
    Ok(Outcome::Pass)
}

/// How the VM gets the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery {
    pub(super) backend: &'static str,
    pub(super) word: &'static str,
    /// By descriptors: nothing opens for the holder, ever.
    pub(super) fds: bool,
}

impl Delivery {
    /// By descriptors.
    pub(super) const UNBOUND: Self = Self { backend: "iommufd", word: "unbound", fds: true };
    /// By the group's node.
    pub(super) const NODE: Self = Self { backend: "type1", word: "node", fds: false };

    pub(super) fn reserve(
        self,
        daemon: &Daemon,
        policy: &str,
        memory: Option<u64>,
    ) -> Result<String> {
        let memory = memory.map(|bytes| bytes.to_string());
        let mut words = vec!["--device", NVME1, "--policy", policy, "--take-from-host"];
        words.extend(["--backend", self.backend, "--delivery", self.word]);
        words.extend(memory.iter().flat_map(|bytes| ["--memory", bytes.as_str()]));
        reserve(daemon, &words)
    }
}

/// A QEMU that `berth run` became. Dropping it kills it.
pub(super) struct Vm {
    child: Child,
    listener: UnixListener,
    log: PathBuf,
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        println!("--- what QEMU said ---\n{}---", self.said());
    }
}

impl Vm {
    /// Starts it as the holder's user, without capabilities, by the hand-over socket alone.
    pub(super) fn start(
        ctx: &Ctx,
        daemon: &Daemon,
        reservation: &str,
        more: &[&str],
    ) -> Result<Self> {
        let mut command = unpriv::command(HOLDER_UID, Some(MEMLOCK), &ctx.program("berth"))?;
        command.arg("--endpoint").arg(format!("unix:{}", daemon.grpc().display()));
        command.args(["run", "--reservation", reservation, "--handover"]).arg(daemon.handover());
        command.arg("--").arg(qemu(ctx)?);
        Self::start_by(ctx, command, more)
    }

    /// Starts it as the holder's user, without capabilities, as a manager of VMs does that has seen to
    /// its devices and its limits before.
    pub(super) fn start_directly(ctx: &Ctx, memlock: u64, more: &[&str]) -> Result<Self> {
        Self::start_by(ctx, unpriv::command(HOLDER_UID, Some(memlock), qemu(ctx)?)?, more)
    }

    fn start_by(ctx: &Ctx, mut command: Command, more: &[&str]) -> Result<Self> {
        let socket = ctx.dir().join("qtest.sock");
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket)?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777))?;
        let log = ctx.dir().join("qemu.log");
        command.args(["-machine", "q35", "-m", &format!("{}M", GUEST >> 20)]);
        // Its processor stands still: what one would do comes by the test protocol.
        command.args(["-accel", "tcg", "-S"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"]);
        command.args(["-qtest-log", "none", "-qtest"]).arg(format!("unix:{}", socket.display()));
        command.args(more).current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(fs::File::create(&log)?);
        let child = command.spawn().context("start QEMU")?;
        Ok(Self { child, listener, log })
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until QEMU has its devices and asks for what to do.
    pub(super) fn connected(&mut self, ctx: &Ctx) -> Result<Qtest> {
        let (child, listener) = (&mut self.child, &self.listener);
        let ended = |child: &mut Child| child.try_wait().ok().flatten();
        let found = wait_for("QEMU to connect", ctx.patience(), || match listener.accept() {
            Ok((socket, _)) => Some(Ok(socket)),
            Err(_) => ended(child).map(Err),
        })?;
        let socket = match found {
            Ok(socket) => socket,
            Err(status) => bail!("it ended with {status}: {}", self.said()),
        };
        socket.set_nonblocking(false)?;
        socket.set_read_timeout(Some(ctx.patience()))?;
        let mut qtest = Qtest::new(socket);
        // It connects before it has devices, and answers when it has them.
        let answer = qtest.config_read(0, 0);
        answer.with_context(|| format!("QEMU doesn't answer: {}", self.said()))?;
        Ok(qtest)
    }

    /// Waits until the process that was started has ended, as it should.
    pub(super) fn ends(&mut self, ctx: &Ctx) -> Result<()> {
        let child = &mut self.child;
        let status =
            wait_for("berth run's process to end", ctx.patience(), || child.try_wait().ok()?)?;
        ensure!(status.success(), "it ended with {status}: {}", self.said());
        Ok(())
    }

    pub(super) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

fn qemu(ctx: &Ctx) -> Result<&Path> {
    ctx.config.qemu.as_deref().context("no QEMU")
}

/// A VM whose reservation says nothing of memory may lock what its user may, which is too little.
fn needs_memory(ctx: &Ctx, daemon: &Daemon, delivery: Delivery) -> Result<()> {
    let before = Before::of(NVME1);
    let id = delivery.reserve(daemon, "exclusive", None)?;
    let mut vm = Vm::start(ctx, daemon, &id, &[])?;
    let failed = vm.connected(ctx).map(drop);
    ensure!(failed.is_err(), "QEMU pins {GUEST} bytes though it may lock {MEMLOCK}");
    let said = vm.said();
    ensure!(said.contains("Cannot allocate memory") || said.contains("-12"), "{said}");
    drop(vm);
    becomes(ctx, daemon, &id, "RESERVED")?;
    daemon.cli(&["release", &id])?.ok()?;
    before.is_back()
}

/// From the host's disk to the VM's and back.
fn life(
    ctx: &Ctx,
    daemon: &Daemon,
    delivery: Delivery,
    policy: &str,
    more: &[&str],
    seed: u8,
) -> Result<()> {
    println!("--- {policy}, {delivery:?} ---");
    let before = Before::of(NVME1);
    ensure!(before.driver() == Some("nvme"), "{before:?}");
    let (hosts, guests) = (pattern(seed, LENGTH), pattern(seed + 1, LENGTH));
    disk::write(ctx, NVME1, offset(HOSTS), &hosts)?;
    disk::write(ctx, NVME1, offset(GUESTS), &[0; LENGTH])?;
    let id = delivery.reserve(daemon, policy, Some(GUEST))?;
    is_kept()?;
    let mut peer = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    opens_no_node(&mut peer)?;

    let mut vm = Vm::start(ctx, daemon, &id, more)?;
    let qtest = vm.connected(ctx)?;
    is_qemu(&vm)?;
    if delivery.fds {
        opens_no_node(&mut peer)?;
    }
    ensure!(probe::stranger(NVME1).is_kept_out(), "{:?}", probe::stranger(NVME1));
    let shown = becomes(ctx, daemon, &id, "HELD")?;
    ensure!(shown["claims"][0]["processes"][0]["pid"] == vm.pid(), "{shown}");
    let mut nvme = Nvme::start(qtest, ctx.patience())?;
    let read = nvme.read(HOSTS, LENGTH)?;
    ensure!(read == hosts, "the VM read {:?} and not what the host wrote", &read[..8]);
    nvme.write(GUESTS, &guests)?;
    println!("the VM read what the host wrote, and wrote");

    vm.kill()?;
    becomes(ctx, daemon, &id, "RESERVED")?;
    is_kept()?;
    opens_no_node(&mut peer)?;
    let released = daemon.cli(&["release", &id])?.ok()?;
    ensure!(released["givenBack"][0]["reset"] == "VERIFIED", "it was not reset: {released}");
    before.is_back()?;
    let found = disk::read(ctx, NVME1, offset(GUESTS), LENGTH)?;
    ensure!(found == guests, "the host found {:?} and not what the VM wrote", &found[..8]);
    is_free(NVME1)?;
    before.is_back()
}

pub(super) fn offset(block: u32) -> u64 {
    u64::from(block) * BLOCK as u64
}

/// The very process that was started is QEMU by now, has no rights, and may lock what it needs.
fn is_qemu(vm: &Vm) -> Result<()> {
    let exe = fs::read_link(format!("/proc/{}/exe", vm.pid()))?;
    ensure!(exe.to_string_lossy().contains("qemu-system-"), "it is {}", exe.display());
    unpriv::ensure_powerless(vm.pid())?;
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid()))?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    let is_holder = |uid: &str| uid.parse() == Ok(HOLDER_UID);
    ensure!(uids.split_whitespace().all(is_holder), "its uids are {uids}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", vm.pid()))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"));
    let found: Vec<&str> = line.unwrap_or_default().split_whitespace().take(2).collect();
    let wanted = (GUEST + SLACK).to_string();
    ensure!(found == [wanted.as_str(), wanted.as_str()], "it may lock {found:?}, not {wanted}");
    Ok(())
}

/// Nobody has the device, and the kernel refuses everybody but the daemon.
fn is_kept() -> Result<()> {
    let stranger = probe::stranger(NVME1);
    let busy = Err(Errno::BUSY);
    ensure!(stranger.open_group == busy, "{stranger:?}");
    ensure!(stranger.bind_cdev.is_none_or(|answer| answer == busy), "{stranger:?}");
    Ok(())
}

/// Waits for a state of the reservation, and gives the reservation.
pub(super) fn becomes(ctx: &Ctx, daemon: &Daemon, id: &str, state: &str) -> Result<Value> {
    wait_for(&format!("{id} to be {state}"), ctx.patience(), || {
        let shown = daemon.cli(&["reservation", "show", id]).ok()?.ok().ok()?;
        (shown["state"] == state).then_some(shown)
    })
}
