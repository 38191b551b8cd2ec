use super::*;
use crate::{
    PciAddress, ResetOutcome,
    linux::testing::{ConfigBytes, FakeDevice, FakeTree},
};

const DEVICE: &str = "0000:00:05.0";

fn device() -> PciAddress {
    DEVICE.parse().unwrap()
}

fn tree(change: impl FnOnce(&mut FakeDevice)) -> (tempfile::TempDir, FakeTree) {
    let dir = tempfile::tempdir().unwrap();
    let tree = FakeTree::at(dir.path()).unwrap();
    let config = ConfigBytes::conventional(0x1234, 0x11e8, 0x00_ff_00);
    let mut device = FakeDevice::new(device(), &config).group(8);
    change(&mut device);
    tree.add(&device).unwrap();
    (dir, tree)
}

fn attribute(tree: &FakeTree, name: &str) -> String {
    let path = tree.root().join("sys/devices/pci0000:00").join(DEVICE).join(name);
    std::fs::read_to_string(path).unwrap()
}

fn errno(answer: Result<ActOutcome, HostError>) -> Option<i32> {
    answer.unwrap_err().errno()
}

#[test]
fn an_override_is_set_and_cleared_with_a_newline() {
    let (_dir, tree) = tree(|_| {});
    let set = Act::Override { device: device(), driver: Some("vfio-pci".into()) };
    assert!(matches!(perform(tree.root(), &set), Ok(ActOutcome::Done)));
    assert_eq!(attribute(&tree, "driver_override"), "vfio-pci");
    let clear = Act::Override { device: device(), driver: None };
    assert!(matches!(perform(tree.root(), &clear), Ok(ActOutcome::Done)));
    assert_eq!(attribute(&tree, "driver_override"), "\n");
}

#[test]
fn a_name_that_is_no_driver_touches_nothing() {
    let (_dir, tree) = tree(|_| {});
    let invalid = Some(rustix::io::Errno::INVAL.raw_os_error());
    for name in ["../../../../etc", "a/b", "-x", ""] {
        let bind = Act::Bind { device: device(), driver: name.into() };
        assert_eq!(errno(perform(tree.root(), &bind)), invalid);
        let set = Act::Override { device: device(), driver: Some(name.into()) };
        assert_eq!(errno(perform(tree.root(), &set)), invalid);
    }
    assert_eq!(attribute(&tree, "driver_override"), "(null)\n");
}

#[test]
fn a_driver_that_is_not_registered_is_named() {
    let (_dir, tree) = tree(|_| {});
    let bind = Act::Bind { device: device(), driver: "vfio-pci".into() };
    let error = perform(tree.root(), &bind).unwrap_err();
    assert!(error.to_string().contains("drivers/vfio-pci"), "{error}");
    assert_eq!(attribute(&tree, "driver_override"), "(null)\n");
}

#[test]
fn a_bind_that_the_kernel_took_without_effect_is_found_out() {
    let (_dir, tree) = tree(|_| {});
    tree.file("sys/bus/pci/drivers/vfio-pci/bind", "").unwrap();
    tree.file("sys/bus/pci/drivers_probe", "").unwrap();
    let bind = Act::Bind { device: device(), driver: "vfio-pci".into() };
    let error = perform(tree.root(), &bind).unwrap_err();
    let wanted = "vfio-pci".to_owned();
    let expected = HostError::DriverMismatch { device: device(), wanted, found: "none".into() };
    assert_eq!(error, expected);
    assert_eq!(attribute(&tree, "driver_override"), "vfio-pci");
    let probed = std::fs::read_to_string(tree.root().join("sys/bus/pci/drivers_probe")).unwrap();
    assert_eq!(probed, DEVICE);
}

#[test]
fn binding_what_is_bound_sets_the_override_only() {
    let (_dir, tree) = tree(|device| device.driver = Some("vfio-pci".into()));
    let bind = Act::Bind { device: device(), driver: "vfio_pci".into() };
    let done = perform(tree.root(), &bind).unwrap();
    assert!(matches!(done, ActOutcome::Driver(Some(name)) if name == "vfio-pci"));
    assert_eq!(attribute(&tree, "driver_override"), "vfio-pci");
}

#[test]
fn an_unbind_without_effect_is_found_out() {
    let (_dir, tree) = tree(|device| device.driver = Some("e1000e".into()));
    tree.file("sys/bus/pci/drivers/e1000e/unbind", "").unwrap();
    let error = perform(tree.root(), &Act::Unbind { device: device() }).unwrap_err();
    assert!(matches!(error, HostError::DriverMismatch { found, .. } if found == "e1000e"));
}

#[test]
fn restore_puts_the_baseline_back() {
    let (_dir, tree) = tree(|device| {
        device.driver = Some("e1000e".into());
        device.driver_override = Some("vfio-pci".into());
    });
    let restore =
        Act::Restore { device: device(), driver: Some("e1000e".into()), driver_override: None };
    let done = perform(tree.root(), &restore).unwrap();
    assert!(matches!(done, ActOutcome::Driver(Some(name)) if name == "e1000e"));
    assert_eq!(attribute(&tree, "driver_override"), "\n");
}

#[test]
fn virtual_functions_are_made_without_host_drivers() {
    let (_dir, tree) = tree(|device| device.sriov_total = 7);
    let set = |count, autoprobe| {
        perform(tree.root(), &Act::Sriov { device: device(), count, autoprobe }).unwrap();
        (attribute(&tree, "sriov_numvfs"), attribute(&tree, "sriov_drivers_autoprobe"))
    };
    assert_eq!(set(4, false), ("4".to_owned(), "0".to_owned()));
    assert_eq!(set(0, true), ("0".to_owned(), "1".to_owned()));
}

#[test]
fn a_reset_is_verified_not_possible_or_failed() {
    let reset = |tree: &FakeTree| match perform(tree.root(), &Act::Reset { device: device() }) {
        Ok(ActOutcome::Reset(outcome)) => outcome,
        other => panic!("{other:?}"),
    };
    let (_dir, tree_without) = tree(|_| {});
    assert!(matches!(reset(&tree_without), ResetOutcome::NotPossible { .. }));
    let (_dir, good) = tree(|device| device.reset_method = Some("flr bus".into()));
    assert_eq!(reset(&good), ResetOutcome::Verified { method: "flr".into() });
    let (_dir, dead) = tree(|device| {
        device.reset_method = Some("bus".into());
        device.config = vec![0xff; 256];
    });
    assert!(matches!(reset(&dead), ResetOutcome::Failed { .. }));
}

#[test]
fn the_configuration_space_is_read_whole() {
    let (_dir, tree) = tree(|_| {});
    let read = perform(tree.root(), &Act::ReadConfig { device: device() }).unwrap();
    assert!(matches!(read, ActOutcome::Config(bytes) if bytes.len() == 256));
}

#[test]
fn a_device_that_is_gone_is_named() {
    let (_dir, tree) = tree(|_| {});
    let gone: PciAddress = "0000:0f:00.0".parse().unwrap();
    for act in [
        Act::Unbind { device: gone },
        Act::Reset { device: gone },
        Act::ReadConfig { device: gone },
        Act::Sriov { device: gone, count: 1, autoprobe: false },
    ] {
        assert_eq!(perform(tree.root(), &act).unwrap_err(), HostError::NoDevice(gone));
    }
}
