//! QEMU's command line for the test machine of [`crate::topology`].

use std::{
    env, fs,
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;
use crate::{
    topology::HOTPLUG_BUS,
    wire::{HOST_TAG, Profile, QMP_PORT, RESULTS_PORT},
};

/// How the guest's processors are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// By the host's processors.
    Kvm,
    /// By emulation: works everywhere, many times slower.
    Tcg,
}

impl Accel {
    /// KVM where `/dev/kvm` opens and hardware is behind it, else TCG; `BERTH_VM_ACCEL=kvm|tcg`
    /// decides otherwise.
    ///
    /// A host that is itself a guest may have a `/dev/kvm` that works by software and runs only
    /// kernels made for it; others crawl through instruction emulation and never come up.
    ///
    /// # Errors
    /// `BERTH_VM_ACCEL` has another value.
    pub fn choose() -> Result<Self> {
        match env::var("BERTH_VM_ACCEL").as_deref() {
            Ok("kvm") => Ok(Self::Kvm),
            Ok("tcg") => Ok(Self::Tcg),
            Ok(other) => bail!("BERTH_VM_ACCEL={other}: kvm or tcg"),
            Err(_) => {
                let opens = OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
                let hardware = ["kvm_intel", "kvm_amd"]
                    .iter()
                    .any(|module| Path::new("/sys/module").join(module).exists());
                Ok(if opens && hardware { Self::Kvm } else { Self::Tcg })
            }
        }
    }
}

/// How the guest's console is wired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// To a file in the run's directory.
    Log,
    /// To the terminal.
    Terminal,
}

/// The files of one run, in a directory of its own, and how much memory it has.
#[derive(Debug, Clone)]
pub struct RunFiles {
    /// The directory.
    pub dir: PathBuf,
    /// The image of the guest's own root file system, where it doesn't take the host's.
    pub root: Option<PathBuf>,
    /// Whether it has memory to measure with, huge pages among it.
    pub roomy: bool,
}

impl RunFiles {
    /// The initramfs.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs")
    }
    /// The guest's console.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }
    /// QEMU's own messages.
    #[must_use]
    pub fn qemu_log(&self) -> PathBuf {
        self.dir.join("qemu.log")
    }
    /// The socket on which the host listens for results.
    #[must_use]
    pub fn results(&self) -> PathBuf {
        self.dir.join("results.sock")
    }
    /// The socket on which the host listens for the guest's QMP requests.
    #[must_use]
    pub fn guest_qmp(&self) -> PathBuf {
        self.dir.join("guest-qmp.sock")
    }
    /// QEMU's QMP socket.
    #[must_use]
    pub fn qmp(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }
    fn disk(&self, index: u32) -> PathBuf {
        self.dir.join(format!("nvme{index}.img"))
    }

    /// Makes the empty disks of the two nvme devices.
    ///
    /// # Errors
    /// They cannot be created.
    pub fn make_disks(&self) -> Result<()> {
        for index in 0..2 {
            let path = self.disk(index);
            fs::File::create(&path)
                .and_then(|file| file.set_len(64 << 20))
                .with_context(|| format!("create {}", path.display()))?;
        }
        Ok(())
    }
}

/// The kernel's command line. Without `no_timer_check` a kernel on a busy machine may find its
/// emulated timer too slow and panics.
const KERNEL_LINE: &str = "console=ttyS0 rdinit=/init panic=-1 intel_iommu=on no_timer_check \
                           loglevel=4 printk.devkmsg=on";

/// Memory of a machine, and of one to measure with: a GiB in pages of 1 GiB, one in pages of 2 MiB, and
/// more than one in small ones.
const MEMORY: &str = "2G";
const ROOMY: &str = "5G";
const HUGE_PAGES: &str = "hugepagesz=1G hugepages=1 hugepagesz=2M hugepages=512";

/// The command that starts the machine.
#[must_use]
pub fn command(
    qemu: &Path,
    kernel: &Kernel,
    profile: Profile,
    accel: Accel,
    console: Console,
    files: &RunFiles,
) -> Command {
    let mut command = Command::new(qemu);
    // A reboot, which a panic asks for at once, ends QEMU.
    command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
    let mut arg = |name: &str, value: &str| {
        command.arg(name).arg(value);
    };
    arg("-display", "none");
    match accel {
        Accel::Kvm => {
            arg("-machine", "q35,accel=kvm,kernel-irqchip=split");
            arg("-cpu", "host");
        }
        Accel::Tcg => {
            arg("-machine", "q35");
            // One thread for all processors: with one each, guests hang in grace periods now and then,
            // and QEMU 10.0 has aborted in its TLB.
            arg("-accel", "tcg,thread=single");
            arg("-cpu", "max");
        }
    }
    // Hot-plug by the ports themselves (pciehp, and shpchp for the bridges where the kernel has it),
    // as on a server; with ACPI's, shpchp finds its slots taken and gives up.
    arg("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off");
    arg("-smp", "2");
    arg("-m", if files.roomy { ROOMY } else { MEMORY });
    let intremap = if profile == Profile::NoIntremap { "off" } else { "on" };
    // Caching mode makes the kernel flush an entry that becomes valid. Without it, Linux 6.11 and later
    // leave a stale one: `intel_context_flush_present` flushes the context entry of the device, not
    // of the alias that a bridge gives it, and DMA goes on in the domain before.
    arg(
        "-device",
        &format!("intel-iommu,intremap={intremap},device-iotlb=on,aw-bits=48,caching-mode=on"),
    );
    for device in devices(files) {
        arg(device.0, &device.1);
    }
    match console {
        Console::Log => {
            arg("-chardev", &format!("file,id=console,path={}", escaped(&files.console())));
        }
        Console::Terminal => arg("-chardev", "stdio,id=console,signal=off"),
    }
    arg("-serial", "chardev:console");
    arg("-qmp", &format!("unix:{},server=on,wait=off", escaped(&files.qmp())));
    arg("-kernel", &kernel.image.to_string_lossy());
    arg("-initrd", &files.initramfs().to_string_lossy());
    let line =
        if files.roomy { format!("{KERNEL_LINE} {HUGE_PAGES}") } else { KERNEL_LINE.to_owned() };
    arg("-append", &line);
    command
}

/// QEMU reads a comma as the end of an option, and two as one.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

fn devices(files: &RunFiles) -> Vec<(&'static str, String)> {
    let mut list = Vec::new();
    let mut device = |text: String| list.push(("-device", text));
    let edu = |bus: &str, slot: &str| format!("edu,dma_mask=0xffffffff,bus={bus},addr={slot}");
    device(edu("pcie.0", "0x3"));
    device("virtio-serial-pci,id=vser,bus=pcie.0,addr=0x4,disable-legacy=on".to_owned());
    device(format!("virtserialport,bus=vser.0,chardev=results,name={RESULTS_PORT}"));
    device(format!("virtserialport,bus=vser.0,chardev=guestqmp,name={QMP_PORT}"));
    device(format!(
        "virtio-9p-pci,fsdev=root,mount_tag={HOST_TAG},bus=pcie.0,addr=0x5,disable-legacy=on"
    ));
    // Chassis and slot numbers must be unique among root ports: the kernel names hot-plug slots so.
    let ports = [
        "rp-spare",
        "rp-pair",
        "rp-mixed",
        "rp-igb",
        "rp-nvme0",
        "rp-nvme1",
        "rp-e1000e",
        HOTPLUG_BUS,
        "rp-virtio-net",
    ];
    for (id, number) in ports.iter().zip(1..) {
        let address = 0x0f + number;
        device(format!(
            "pcie-root-port,id={id},bus=pcie.0,addr={address:#x},chassis={number},slot={number}"
        ));
    }
    device(edu("rp-spare", "0x0"));
    device("pcie-pci-bridge,id=pair,bus=rp-pair,addr=0x0".to_owned());
    device(edu("pair", "0x1"));
    device(edu("pair", "0x2"));
    device("pcie-pci-bridge,id=mixed,bus=rp-mixed,addr=0x0".to_owned());
    device(edu("mixed", "0x1"));
    device("e1000,bus=mixed,addr=0x2,romfile=,mac=52:54:00:be:00:01".to_owned());
    device("igb,bus=rp-igb,addr=0x0,romfile=,mac=52:54:00:be:00:02".to_owned());
    for index in 0..2 {
        device(format!(
            "nvme,drive=disk{index},serial=berth-nvme{index},bus=rp-nvme{index},addr=0x0"
        ));
    }
    device("e1000e,bus=rp-e1000e,addr=0x0,romfile=,mac=52:54:00:be:00:03".to_owned());
    device(
        "virtio-net-pci,id=virtio-net,aer=on,bus=rp-virtio-net,addr=0x0,disable-legacy=on,\
         iommu_platform=on,romfile=,mac=52:54:00:be:00:04"
            .to_owned(),
    );

    for twin in twins() {
        device(twin);
    }

    if let Some(root) = &files.root {
        device("virtio-blk-pci,drive=root,bus=pcie.0,addr=0x6,disable-legacy=on".to_owned());
        let file = escaped(root);
        list.push(("-drive", format!("if=none,id=root,format=raw,readonly=on,file={file}")));
    }
    for index in 0..2 {
        let file = escaped(&files.disk(index));
        list.push(("-drive", format!("if=none,id=disk{index},format=raw,file={file}")));
    }
    for (id, socket) in [("results", files.results()), ("guestqmp", files.guest_qmp())] {
        list.push(("-chardev", format!("socket,id={id},path={}", escaped(&socket))));
    }
    let share = "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap";
    list.push(("-fsdev", share.to_owned()));
    list
}

/// Two slots of root ports that differ in their Access Control Services only.
fn twins() -> Vec<String> {
    let mut list = Vec::new();
    for (name, slot, chassis, disable_acs) in
        [("merged", 0x19, 20, "on"), ("twin", 0x1a, 30, "off")]
    {
        for (function, multifunction) in [(0, "on"), (1, "off")] {
            let number = chassis + function;
            list.push(format!(
                "pcie-root-port,id=rp-{name}{function},bus=pcie.0,addr={slot:#x}.{function},\
                 multifunction={multifunction},chassis={number},slot={number},\
                 disable-acs={disable_acs}"
            ));
        }
        list.push(format!("pci-testdev,bus=rp-{name}0,addr=0x0"));
        list.push(format!("pcie-pci-bridge,id={name},bus=rp-{name}1,addr=0x0"));
        list.extend([1, 2].map(|slot| format!("pci-testdev,bus={name},addr={slot:#x}")));
    }
    list
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{Accel, Console, RunFiles, command};
    use crate::{
        host::kernel::{Kernel, Kind},
        wire::Profile,
    };

    fn line(profile: Profile, accel: Accel) -> String {
        let kernel = Kernel { kind: Kind::Own, image: "/k".into(), modules: Vec::new() };
        let root = (profile == Profile::Systemd).then(|| PathBuf::from("/root.ext4"));
        let files = RunFiles { dir: PathBuf::from("/run,1"), root, roomy: false };
        let qemu = PathBuf::from("qemu");
        let command = command(&qemu, &kernel, profile, accel, Console::Log, &files);
        command.get_args().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn interrupt_remapping_follows_the_profile() {
        assert!(line(Profile::Default, Accel::Kvm).contains("intel-iommu,intremap=on,"));
        assert!(line(Profile::NoIntremap, Accel::Kvm).contains("intel-iommu,intremap=off,"));
    }

    #[test]
    fn a_root_of_its_own_is_a_disk_that_nobody_writes_to() {
        let own = line(Profile::Systemd, Accel::Tcg);
        assert!(own.contains("id=root,format=raw,readonly=on,file=/root.ext4"), "{own}");
        assert!(own.contains("intremap=on"), "{own}");
        assert!(!line(Profile::Default, Accel::Tcg).contains("virtio-blk"));
    }

    #[test]
    fn the_split_irqchip_goes_with_kvm_only() {
        assert!(line(Profile::Default, Accel::Kvm).contains("kernel-irqchip=split"));
        assert!(!line(Profile::Default, Accel::Tcg).contains("irqchip"));
    }

    #[test]
    fn a_comma_in_a_path_does_not_end_an_option() {
        assert!(line(Profile::Default, Accel::Tcg).contains("path=/run,,1/console.log"));
    }
}
