//! What this guest has, found by asking the kernel.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    path::Path,
};

use crate::{
    topology::{EDU_SPARE, MIXED_BRIDGE},
    wire::{Capability, GuestConfig},
};

use super::{injector, probe, sysfs, vdpa};

/// Asks for everything.
///
/// # Kernel
/// Whether interrupts are remapped, and whether there are cdevs, shows only on a device that is on
/// vfio-pci: [`EDU_SPARE`] is bound for a moment, and unbound again.
#[must_use]
pub fn probe_all(config: &GuestConfig) -> BTreeSet<Capability> {
    use Capability as C;
    let opens = |path: &str| OpenOptions::new().read(true).write(true).open(path).is_ok();
    let mut found = BTreeSet::new();
    let mut add = |capability: Capability, there: bool| {
        if there {
            found.insert(capability);
        }
    };
    let iommufd = opens("/dev/iommu");
    add(C::Iommufd, iommufd);
    add(C::MapFile, iommufd && probe::knows_map_file());
    add(C::IommufdTest, Path::new("/sys/kernel/debug/fail_iommufd").exists());
    add(C::Type1, opens("/dev/vfio/vfio") && probe::has_type1());
    add(C::Strace, Path::new("/usr/bin/strace").exists());
    add(C::FailNth, config.bin_dir.join(injector::PROGRAM).exists());
    add(C::Daemon, ["berthd", "berth"].iter().all(|name| config.bin_dir.join(name).exists()));
    let kubelet = ["berthd", "berth", "berth-kubelet-plugin", "berth-kubelet-double"];
    add(C::Kubelet, kubelet.iter().all(|name| config.bin_dir.join(name).exists()));
    add(C::Qemu, config.qemu.as_ref().is_some_and(|qemu| qemu.exists()));
    add(C::Vdpa, vdpa::is_there());
    add(C::Systemd, Path::new("/run/systemd/system").exists());
    add(C::Shpchp, sysfs::driver(MIXED_BRIDGE).as_deref() == Some("shpchp"));
    if let Err(error) = sysfs::to_vfio(EDU_SPARE) {
        eprintln!("nothing is known about interrupts and cdevs: {error:#}");
    } else {
        add(C::Cdev, fs::read_dir("/dev/vfio/devices").is_ok_and(|dir| dir.count() > 0));
        match probe::interrupts_are_isolated(EDU_SPARE) {
            Some(true) => add(C::Intremap, true),
            Some(false) => add(C::NoIntremap, true),
            None => {}
        }
        if let Err(error) = sysfs::to_host(EDU_SPARE, None) {
            eprintln!("{EDU_SPARE} could not be given back after probing: {error:#}");
        }
    }
    found
}
