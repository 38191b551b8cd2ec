use std::fs;

use super::*;
use crate::linux::testing::{ConfigBytes, FakeDevice, FakeTree};

fn at(text: &str) -> PciAddress {
    text.parse().unwrap()
}

fn tree() -> (tempfile::TempDir, FakeTree) {
    let dir = tempfile::tempdir().unwrap();
    let tree = FakeTree::at(dir.path()).unwrap();
    (dir, tree)
}

fn uses(tree: &FakeTree, address: &str) -> Vec<(String, String)> {
    let found = find(&Root::new(tree.root()), at(address)).unwrap();
    found.into_iter().map(|found| (found.kind, found.detail)).collect()
}

/// What commands that end them name.
fn targets(tree: &FakeTree, address: &str) -> Vec<String> {
    let found = find(&Root::new(tree.root()), at(address)).unwrap();
    found.iter().map(|found| found.target().to_owned()).collect()
}

fn pair(kind: &str, detail: &str) -> (String, String) {
    (kind.to_owned(), detail.to_owned())
}

fn nvme(tree: &FakeTree, address: &str, driver: &str) {
    let config = ConfigBytes::endpoint(0x1b36, 0x0010, 0x01_08_02);
    tree.add(&FakeDevice::new(at(address), &config).group(1).driver(driver)).unwrap();
}

fn block(tree: &FakeTree, place: &str, name: &str, number: &str) {
    tree.file(&format!("sys/{place}/{name}/dev"), format!("{number}\n")).unwrap();
    tree.link(&format!("sys/class/block/{name}"), format!("../../{place}/{name}")).unwrap();
}

#[test]
fn a_mounted_partition_is_found_by_its_number() {
    let (_dir, tree) = tree();
    nvme(&tree, "0000:01:00.0", "nvme");
    let place = "devices/pci0000:00/0000:01:00.0/nvme/nvme0/nvme0n1";
    block(&tree, "devices/pci0000:00/0000:01:00.0/nvme/nvme0", "nvme0n1", "259:0");
    block(&tree, place, "nvme0n1p1", "259:1");
    let table = "36 35 259:1 / /srv/data rw - ext4 /dev/nvme0n1p1 rw\n\
                 37 35 8:1 / /other rw - ext4 /dev/sda1 rw\n";
    tree.file("proc/self/mountinfo", table).unwrap();
    assert_eq!(uses(&tree, "0000:01:00.0"), [pair("mount", "nvme0n1p1 on /srv/data")]);
    assert_eq!(targets(&tree, "0000:01:00.0"), ["/srv/data"]);
}

#[test]
fn volumes_are_followed_to_mounts_and_swap() {
    let (_dir, tree) = tree();
    nvme(&tree, "0000:01:00.0", "nvme");
    block(&tree, "devices/pci0000:00/0000:01:00.0/nvme/nvme0", "nvme0n1", "259:0");
    block(&tree, "devices/virtual/block", "dm-0", "253:0");
    block(&tree, "devices/virtual/block", "dm-1", "253:1");
    block(&tree, "devices/virtual/block", "md0", "9:0");
    let disk = "sys/devices/pci0000:00/0000:01:00.0/nvme/nvme0/nvme0n1";
    tree.file(&format!("{disk}/holders/md0/x"), "").unwrap();
    tree.file("sys/devices/virtual/block/md0/md/level", "raid1\n").unwrap();
    tree.file("sys/devices/virtual/block/md0/holders/dm-0/x", "").unwrap();
    tree.file("sys/devices/virtual/block/md0/holders/dm-1/x", "").unwrap();
    tree.file("sys/devices/virtual/block/dm-0/dm/uuid", "LVM-abc\n").unwrap();
    tree.file("sys/devices/virtual/block/dm-0/dm/name", "vg-root\n").unwrap();
    tree.file("sys/devices/virtual/block/dm-1/dm/uuid", "CRYPT-LUKS2-x\n").unwrap();
    tree.file("sys/devices/virtual/block/dm-1/dm/name", "swap_crypt\n").unwrap();
    tree.link("dev/mapper/swap_crypt", "../dm-1").unwrap();
    tree.file("proc/self/mountinfo", "1 0 253:0 / / rw - ext4 /dev/mapper/vg-root rw\n").unwrap();
    tree.file("proc/swaps", "Filename Type\n/dev/mapper/swap_crypt partition\n").unwrap();
    assert_eq!(
        uses(&tree, "0000:01:00.0"),
        [
            pair("dm", "swap_crypt on md0"),
            pair("lvm", "vg-root on md0"),
            pair("md", "md0 on nvme0n1"),
            pair("mount", "mapper/vg-root on /"),
            pair("swap", "/dev/mapper/swap_crypt"),
        ]
    );
    let named = ["swap_crypt on md0", "vg-root on md0", "/dev/md0", "/", "/dev/mapper/swap_crypt"];
    assert_eq!(targets(&tree, "0000:01:00.0"), named);
}

#[test]
fn an_nvme_disk_below_its_subsystem_is_found() {
    let (_dir, tree) = tree();
    nvme(&tree, "0000:01:00.0", "nvme");
    nvme(&tree, "0000:02:00.0", "nvme");
    tree.file("sys/devices/pci0000:00/0000:01:00.0/nvme/nvme0/state", "live\n").unwrap();
    tree.file("sys/devices/pci0000:00/0000:02:00.0/nvme/nvme1/state", "live\n").unwrap();
    let virtual_one = "devices/virtual/nvme-subsystem/nvme-subsys0";
    block(&tree, virtual_one, "nvme0n1", "259:0");
    tree.link(&format!("sys/{virtual_one}/nvme0"), "../../../pci0000:00/x").unwrap();
    tree.file("proc/self/mountinfo", "1 0 259:0 / /mnt rw - xfs /dev/nvme0n1 rw\n").unwrap();
    assert_eq!(uses(&tree, "0000:01:00.0"), [pair("mount", "nvme0n1 on /mnt")]);
    assert_eq!(uses(&tree, "0000:02:00.0"), []);
}

#[test]
fn every_member_of_a_btrfs_is_used() {
    let (_dir, tree) = tree();
    nvme(&tree, "0000:01:00.0", "nvme");
    block(&tree, "devices/pci0000:00/0000:01:00.0/nvme/nvme0", "nvme0n1", "259:0");
    tree.file("sys/fs/btrfs/uuid/devices/nvme0n1", "").unwrap();
    tree.file("sys/fs/btrfs/uuid/devices/sda", "").unwrap();
    tree.file("proc/self/mountinfo", "1 0 0:41 / /pool rw - btrfs /dev/sda rw\n").unwrap();
    assert_eq!(uses(&tree, "0000:01:00.0"), [pair("mount", "sda on /pool")]);
}

#[test]
fn routes_are_found_through_a_bond_and_a_vlan() {
    let (_dir, tree) = tree();
    let config = ConfigBytes::endpoint(0x8086, 0x10d3, 0x02_00_00);
    let nic = FakeDevice::new(at("0000:03:00.0"), &config).group(3).driver("e1000e");
    tree.add(&nic).unwrap();
    tree.file("sys/devices/pci0000:00/0000:03:00.0/net/eth0/mtu", "1500\n").unwrap();
    tree.link("sys/class/net/eth0", "../../devices/pci0000:00/0000:03:00.0/net/eth0").unwrap();
    tree.link("sys/devices/pci0000:00/0000:03:00.0/net/eth0/master", "../bond0").unwrap();
    tree.file("sys/class/net/bond0/bonding/mode", "active-backup 1\n").unwrap();
    tree.link("sys/class/net/bond0/upper_bond0.7", "../bond0.7").unwrap();
    tree.file("sys/class/net/bond0.7/mtu", "1500\n").unwrap();
    let header = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";
    let route = "bond0.7 00000000 0102A8C0 0003 0 0 0 00000000 0 0 0\n\
                 eth9 00000000 0102A8C0 0003 0 0 0 00000000 0 0 0\n";
    tree.file("proc/net/route", format!("{header}{route}")).unwrap();
    assert_eq!(
        uses(&tree, "0000:03:00.0"),
        [pair("bond", "bond0 has eth0"), pair("route", "default by bond0.7")]
    );
}

#[test]
fn the_boot_display_is_used_until_vfio_has_it() {
    let (_dir, tree) = tree();
    let config = ConfigBytes::endpoint(0x1234, 0x1111, 0x03_00_00);
    tree.add(&FakeDevice::new(at("0000:00:02.0"), &config)).unwrap();
    tree.add(&FakeDevice::new(at("0000:00:03.0"), &config).driver("vfio-pci")).unwrap();
    tree.file("sys/devices/pci0000:00/0000:00:02.0/boot_vga", "1\n").unwrap();
    tree.file("sys/devices/pci0000:00/0000:00:03.0/boot_vga", "1\n").unwrap();
    assert_eq!(uses(&tree, "0000:00:02.0"), [pair("boot-display", "the console's display")]);
    assert_eq!(uses(&tree, "0000:00:03.0"), []);
}

#[test]
fn a_device_that_is_gone_is_an_error() {
    let (_dir, tree) = tree();
    let gone = find(&Root::new(tree.root()), at("0000:09:00.0"));
    assert_eq!(gone, Err(HostError::NoDevice(at("0000:09:00.0"))));
}

/// What can't be read is not read as unused.
#[test]
fn a_table_that_fails_to_be_read_is_an_error() {
    for broken in
        ["sys/class/block", "sys/class/block/nvme0n1/holders", "proc/self/mountinfo", "proc/swaps"]
    {
        let (_dir, tree) = tree();
        nvme(&tree, "0000:01:00.0", "nvme");
        if broken != "sys/class/block" {
            block(&tree, "devices/pci0000:00/0000:01:00.0/nvme/nvme0", "nvme0n1", "259:0");
        }
        let path = tree.root().join(broken);
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        drop(removed);
        // A link to itself.
        tree.link(broken, path).unwrap();
        let error = find(&Root::new(tree.root()), at("0000:01:00.0")).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::LOOP.raw_os_error()), "{broken}: {error}");
    }
}
