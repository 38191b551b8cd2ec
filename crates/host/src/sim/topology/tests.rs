use super::*;
use crate::{Host, PciAddress, sim::SimHost};

fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

#[test]
fn the_built_in_ones_are_right() {
    let names: Vec<&str> = Topology::builtin_names().collect();
    assert_eq!(names, ["small", "gpu-server", "sriov-nic", "desktop-no-acs", "large"]);
    for name in names {
        let topology = Topology::builtin(name).unwrap();
        assert_eq!(topology.name(), name);
        let host = SimHost::from_topology(topology);
        host.check().unwrap();
        let inventory = host.scan().unwrap();
        assert!(!inventory.groups.is_empty(), "{name}");
        for device in &inventory.devices {
            assert_eq!(host.device(device.address).unwrap(), *device);
        }
        for group in &inventory.groups {
            assert!(group.stable_id.starts_with("g-") && group.stable_id.len() == 14);
            assert!(!group.members.is_empty(), "{name} group {}", group.number);
        }
    }
}

#[test]
fn a_gpu_server_has_what_one_has() {
    let inventory = SimHost::builtin("gpu-server").unwrap().scan().unwrap();
    let of = |class: u32| inventory.devices.iter().filter(|d| d.class == class).count();
    assert_eq!((of(0x03_02_00), of(0x06_80_00), of(0x01_08_02)), (8, 4, 9));
    let physical = inventory.devices.iter().filter(|d| d.sriov_total > 0);
    assert_eq!(physical.map(|d| d.virtual_functions.len()).collect::<Vec<_>>(), [4, 4]);
    for node in [0, 1] {
        assert!(inventory.devices.iter().any(|d| d.numa_node == node && d.class == 0x03_02_00));
    }
}

#[test]
fn each_device_of_a_gpu_server_has_a_link_and_no_virtual_function_does() {
    let host = SimHost::builtin("gpu-server").unwrap();
    let inventory = host.scan().unwrap();
    for device in inventory.devices.iter().filter(|device| !device.bridge) {
        let link = host.health(device.address).unwrap().link;
        assert_eq!(link.is_some(), device.physical_function.is_none(), "{}", device.address);
        assert!(link.is_none_or(|link| link.current == link.reachable()), "{link:?}");
    }
}

#[test]
fn a_topology_goes_through_its_file() {
    for name in Topology::builtin_names() {
        let topology = Topology::builtin(name).unwrap();
        let text = topology.to_toml().unwrap();
        let again = Topology::parse(&text, "again").unwrap();
        let scan = |t: Topology| SimHost::from_topology(t).scan().unwrap();
        assert_eq!(scan(topology), scan(again), "{name}");
    }
}

#[test]
fn a_machine_is_recorded() {
    let host = SimHost::builtin("gpu-server").unwrap();
    let inventory = host.scan().unwrap();
    let uses = |address| host.uses(address).unwrap();
    let record = |serials| {
        Topology::from_inventory("copy", "6.12", &inventory, &host.features(), &uses, serials)
            .unwrap()
    };
    let copy = SimHost::from_topology(record(Serials::Plain));
    assert_eq!(copy.scan().unwrap(), inventory);
    assert_eq!(copy.kernel_release(), "6.12");
    let nic = address("0000:29:00.0");
    assert_eq!(copy.uses(nic).unwrap(), host.uses(nic).unwrap());
    assert_eq!(copy.backends(), host.backends());

    let text = record(Serials::Hashed).to_toml().unwrap();
    assert!(!text.contains("sim-gpu-0"), "a serial number is in the file");
    assert!(Topology::parse(&text, "hashed").is_ok());
}

#[test]
fn wrong_files_name_their_line() {
    let head = "name = \"x\"\n\n[[device]]\naddress = \"0000:00:01.0\"\n";
    for (text, line, message) in [
        ("name = \"x\"\nnmae = 1\n".to_owned(), 2, "unknown field `nmae`"),
        ("name = \"\"\n".to_owned(), 1, "name is empty"),
        (format!("{head}vendor = \"a\"\n"), 5, "invalid type"),
        (format!("{head}\n[[device]]\naddress = \"zz\"\n"), 7, "not a PCI address"),
        (format!("{head}\n[[device]]\naddress = \"00:01.0\"\n"), 6, "is there twice"),
        (format!("{head}\n[[device]]\ngroup = 1\n"), 6, "needs an address"),
        (format!("{head}like = \"y\"\n"), 3, "no [template.y]"),
        (format!("{head}parent = \"0000:00:02.0\"\n"), 3, "is not in the file"),
        (format!("{head}parent = \"0000:00:01.0\"\n"), 3, "the device itself"),
        (format!("{head}sriov_vfs = 1\n"), 3, "more than sriov_total"),
        (format!("{head}class = 0x1000000\n"), 3, "24 bits"),
        (format!("{head}[[group]]\nnumber = 3\n"), 1, "group 3 has no device"),
        (format!("{head}[[fault]]\nsite = \"bind\"\nerrno = \"EWHAT\"\n"), 7, "EWHAT"),
        (format!("{head}[[fault]]\nsite = \"nowhere\"\n"), 6, "nowhere"),
    ] {
        let error = Topology::parse(&text, "bad.toml").unwrap_err().to_string();
        assert!(error.starts_with(&format!("topology bad.toml: line {line}: ")), "{error}\n{text}");
        assert!(error.contains(message), "{error}\n{text}");
    }
    let error = Topology::builtin("huge").unwrap_err().to_string();
    assert!(error.contains("gpu-server"), "{error}");
    assert!(matches!(Topology::load("/nonexistent.toml"), Err(HostError::File { errno: 2, .. })));
}

#[test]
fn a_fault_stands_in_the_file() {
    let text = "name = \"x\"\n[[device]]\naddress = \"0000:00:01.0\"\ngroup = 0\n\
                [[fault]]\nsite = \"scan\"\nerrno = \"EIO\"\ntimes = 1\n";
    let host = SimHost::from_topology(Topology::parse(text, "x").unwrap());
    assert_eq!(host.scan().unwrap_err().errno(), Some(5));
    assert!(host.scan().is_ok());
}

#[test]
fn a_large_machine_is_generated() {
    let host = SimHost::from_topology(Topology::generated(10_000));
    let inventory = host.scan().unwrap();
    assert_eq!((inventory.devices.len(), inventory.groups.len()), (10_000, 10_000));
    host.check().unwrap();
}

#[test]
fn the_large_one_has_two_thousand_functions_behind_ports() {
    let inventory = SimHost::builtin("large").unwrap().scan().unwrap();
    let (bridges, functions): (Vec<_>, Vec<_>) = inventory.devices.iter().partition(|d| d.bridge);
    assert_eq!((bridges.len(), functions.len()), (125, 2_000));
    assert!(functions.iter().all(|device| device.parent.is_some()));
    let several = inventory.groups.iter().filter(|group| group.members.len() == 4).count();
    assert_eq!(several, 31 * 4);
    assert_eq!(inventory.groups.len(), 125 + 94 * 16 + several);
}
