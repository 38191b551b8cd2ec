//! A domain of libvirt as its hook sees it: prepared, its QEMU started by somebody else, over. Decided
//! by what the disk read and wrote, and by sysfs.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Output, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{
    berthd_handed::with_operator,
    berthd_run::{DISK, GUEST, GUESTS, HOSTS, LENGTH, Vm, becomes, offset},
    berthd_tools::{Before, is_free, opens_no_node},
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::Daemon,
        disk,
        edu::pattern,
        holder::Holder,
        nvme::Nvme,
        unpriv::{HOLDER_UID, STRANGER_UID},
    },
    wire::Capability::{self, Intremap, Qemu, Type1},
};

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario::new("berthd_libvirt_type1", TYPE1, type1).within(400)];

const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap, Qemu];

/// What libvirt lets a QEMU with host devices lock: its guest's memory, and 1 GiB.
const MEMLOCK: u64 = GUEST + (1 << 30);
const NAME: &str = "vm1";

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    let daemon = Daemon::start_with(ctx, with_operator(ctx, 0)?)?;
    let hook = Hook::new(ctx, &daemon)?;
    let before = Before::of(DISK);
    let (hosts, guests) = (pattern(83, LENGTH), pattern(84, LENGTH));
    disk::write(ctx, DISK, offset(HOSTS), &hosts)?;
    disk::write(ctx, DISK, offset(GUESTS), &[0; LENGTH])?;

    hook.done("prepare", "begin")?;
    let id = hook.reservation()?;
    let mut stranger = Holder::start(ctx, STRANGER_UID, daemon.handover())?;
    opens_no_node(&mut stranger)?;
    hook.done("start", "begin")?;
    let device = ["-device", "vfio-pci,host=08:00.0,addr=0x7"];
    let mut vm = Vm::start_directly(ctx, MEMLOCK, &device)?;
    let qtest = vm.connected(ctx)?;
    hook.qemu_is(&vm)?;
    hook.done("started", "begin")?;
    let shown = becomes(ctx, &daemon, &id, "HELD")?;
    ensure!(shown["claims"][0]["processes"][0]["pid"] == vm.pid(), "{shown}");
    let mut nvme = Nvme::start(qtest, ctx.patience())?;
    ensure!(nvme.read(HOSTS, LENGTH)? == hosts, "the VM read what the host didn't write");

    // libvirt comes back and says so; and a second start of the same domain takes nothing from it.
    hook.done("reconnect", "begin")?;
    let again = hook.call("prepare", "begin")?;
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(again.status.code() == Some(3), "prepared while it runs: {said}");
    ensure!(said.contains(&format!("{}", vm.pid())), "it doesn't name QEMU: {said}");
    nvme.write(GUESTS, &guests)?;

    vm.kill()?;
    hook.done("stopped", "end")?;
    hook.done("release", "end")?;
    before.is_back()?;
    let found = disk::read(ctx, DISK, offset(GUESTS), LENGTH)?;
    ensure!(found == guests, "the host found {:?} and not what the VM wrote", &found[..8]);
    is_free(DISK)?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

/// The hook, as libvirt would call it.
#[derive(Debug)]
struct Hook<'a> {
    daemon: &'a Daemon,
    run_dir: PathBuf,
}

impl<'a> Hook<'a> {
    fn new(ctx: &Ctx, daemon: &'a Daemon) -> Result<Self> {
        let run_dir = ctx.dir().join("libvirt");
        fs::create_dir_all(&run_dir)?;
        fs::set_permissions(&run_dir, fs::Permissions::from_mode(0o755))?;
        Ok(Self { daemon, run_dir })
    }

    fn call(&self, operation: &str, suboperation: &str) -> Result<Output> {
        let words = ["libvirt-hook", "--", NAME, operation, suboperation, "-"];
        let mut command = self.daemon.cli_command(&words);
        command.env("BERTH_LIBVIRT_RUN_DIR", &self.run_dir);
        command.env("BERTH_HANDOVER", self.daemon.handover());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start the hook")?;
        child.stdin.take().context("no pipe")?.write_all(xml().as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        println!("$ hook {operation} {suboperation} -> {:?}\n{said}", output.status.code());
        Ok(output)
    }

    fn done(&self, operation: &str, suboperation: &str) -> Result<()> {
        let output = self.call(operation, suboperation)?;
        ensure!(output.status.success(), "{operation}: {:?}", output.status);
        Ok(())
    }

    fn qemu_is(&self, vm: &Vm) -> Result<()> {
        fs::write(self.run_dir.join(format!("{NAME}.pid")), format!("{}\n", vm.pid()))?;
        Ok(())
    }

    /// The domain's reservation.
    fn reservation(&self) -> Result<String> {
        let list = self.daemon.cli(&["reservation", "list"])?.ok()?;
        let all = list["reservations"].as_array().context("no reservations")?;
        let ours = all.iter().find(|it| it["holder"]["name"] == format!("libvirt/{NAME}"));
        Ok(ours.and_then(|it| it["id"].as_str()).context("none of the domain")?.to_owned())
    }
}

fn xml() -> String {
    let (bus, slot) = (&DISK[5..7], &DISK[8..10]);
    format!(
        "<domain type='kvm'><name>{NAME}</name><uuid>6a1f0c1e-0d8b-4a37-8a55-2b1f6b7f0c33</uuid>\
         <memory unit='MiB'>{}</memory><devices>\
         <hostdev mode='subsystem' type='pci' managed='no'><driver name='vfio'/><source>\
         <address domain='0x0000' bus='0x{bus}' slot='0x{slot}' function='0x0'/></source>\
         </hostdev></devices><seclabel type='dynamic' model='dac' relabel='yes'>\
         <label>+{HOLDER_UID}:+{HOLDER_UID}</label></seclabel></domain>",
        GUEST >> 20
    )
}
