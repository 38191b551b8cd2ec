use super::*;
use crate::linux::testing::ConfigBytes;

fn parse_all(bytes: &[u8]) -> Option<ConfigSpace> {
    let start = &bytes[..bytes.len().min(STANDARD_BYTES)];
    parse(start, |at, step| {
        let at = usize::from(at);
        let Some(found) = bytes.get(at..at + STEP_BYTES) else { return false };
        step.copy_from_slice(found);
        true
    })
}

#[test]
fn reads_ids_class_and_header_type() {
    let bytes = ConfigBytes::endpoint(0x8086, 0x10c9, 0x02_00_00).bytes();
    let parsed = parse_all(&bytes).unwrap();
    assert_eq!((parsed.vendor, parsed.device, parsed.class), (0x8086, 0x10c9, 0x02_00_00));
    assert!(!parsed.bridge && !parsed.multifunction);
    assert_eq!(parsed.capabilities.port, Some(PortType::Endpoint));
}

#[test]
fn finds_acs_serial_and_sriov_in_a_chain() {
    let bytes = ConfigBytes::endpoint(0x8086, 0x10c9, 0x02_00_00)
        .acs(0x1d, 0x1d)
        .serial(0x0011_2233_4455_6677)
        .sriov()
        .bytes();
    let found = parse_all(&bytes).unwrap().capabilities;
    assert_eq!(found.acs, Some(Acs { capable: 0x1d, enabled: 0x1d }));
    assert_eq!(found.serial, Some(0x0011_2233_4455_6677));
    assert!(found.sriov && found.known);
}

#[test]
fn isolation_asks_only_for_what_the_port_is_capable_of() {
    assert!(Acs { capable: 0x1d, enabled: 0x1d }.isolates());
    assert!(Acs { capable: 0x01, enabled: 0x01 }.isolates());
    assert!(!Acs { capable: 0x1d, enabled: 0x1c }.isolates());
    assert!(!Acs { capable: 0x1d, enabled: 0 }.isolates());
}

#[test]
fn ports_are_told_apart() {
    for (kind, port) in [
        (4, PortType::RootPort),
        (5, PortType::UpstreamPort),
        (6, PortType::DownstreamPort),
        (7, PortType::PciBridge),
    ] {
        let bytes = ConfigBytes::port(0x1b36, 0x000c, kind).bytes();
        let parsed = parse_all(&bytes).unwrap();
        assert!(parsed.bridge);
        assert_eq!(parsed.capabilities.port, Some(port));
        assert_eq!((parsed.subsystem_vendor, parsed.subsystem_device), (0, 0));
    }
}

#[test]
fn conventional_pci_has_no_port_type() {
    let bytes = ConfigBytes::conventional(0x1234, 0x11e8, 0x00_ff_00).bytes();
    let parsed = parse_all(&bytes).unwrap();
    assert_eq!(parsed.capabilities, Capabilities { known: true, ..Default::default() });
}

#[test]
fn an_unprivileged_read_knows_ids_but_no_capabilities() {
    let bytes = ConfigBytes::endpoint(0x8086, 0x10c9, 0x02_00_00).acs(0x1d, 0x1d).bytes();
    let parsed = parse_all(&bytes[..64]).unwrap();
    assert_eq!(parsed.device, 0x10c9);
    assert_eq!(parsed.capabilities, Capabilities::default());
}

#[test]
fn short_reads_are_no_configuration_space() {
    for length in 0..64 {
        assert_eq!(parse_all(&vec![0x55; length]), None);
    }
}

#[test]
fn a_chain_that_bites_its_tail_ends() {
    let mut bytes = ConfigBytes::endpoint(1, 2, 3).acs(1, 1).bytes();
    bytes[0x34] = 0x50;
    bytes[0x50] = 0x05;
    bytes[0x51] = 0x50;
    assert_eq!(parse_all(&bytes).unwrap().capabilities.port, None);
    let mut bytes = ConfigBytes::endpoint(1, 2, 3).bytes();
    // An extended capability that points at itself.
    bytes[0x200..0x204].copy_from_slice(&[0x01, 0x00, 0x01, 0x20]);
    bytes[0x100..0x104].copy_from_slice(&[0x01, 0x00, 0x01, 0x20]);
    assert_eq!(parse_all(&bytes).unwrap().capabilities.acs, None);
}

#[test]
fn garbage_never_panics() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..2_000_usize {
        let mut bytes = vec![0; [64, 100, 256, 260, 300, 4096][round % 6]];
        for byte in &mut bytes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state.to_le_bytes()[3];
        }
        assert!(parse_all(&bytes).is_some());
    }
}
