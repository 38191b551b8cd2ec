//! The cases of libvirt's `virhostdevtest` that have a verb here, by its names. libvirt counts
//! an active and an inactive list; here a device is active with a claim, and inactive while it is
//! detached from its host driver without one.

use super::fixture::{
    ask, attach, detach, device, driven, id, observe, order, refused, release, reserve, run_all,
};
use crate::*;

const DEVICES: [(&str, &str); 3] =
    [("g-0", "0000:05:00.0"), ("g-1", "0000:06:00.0"), ("g-2", "0000:07:00.0")];

/// How many devices are active, how many inactive.
fn counts(state: &State) -> (u32, usize) {
    let active = state
        .groups()
        .filter(|group| {
            group
                .reservations
                .iter()
                .any(|id| state.reservation(id).is_some_and(|record| record.claims > 0))
        })
        .map(|group| group.ownership.owner_cnt())
        .sum();
    let driverless = state.devices().filter(|device| {
        let group = state.group(&device.group);
        let claimed = group.is_some_and(|group| group.ownership != Ownership::Free);
        !device.facts.uses_kernel_dma() && !claimed
    });
    (active, driverless.count())
}

fn host() -> State {
    let mut state = State::new();
    for (group, address) in DEVICES {
        run_all(&mut state, &[observe(group, vec![driven(address, "e1000e")])]);
    }
    state
}

fn dma_release(address: &str) -> [Command; 2] {
    let device = DeviceId::from(address);
    [
        Command::KernelDmaRelease { device: device.clone(), host_uses_it_anyway: false },
        Command::KernelDmaDone { device, dma: DriverDma::Managed("vfio-pci".to_owned()) },
    ]
}

fn dma_set(address: &str) -> [Command; 2] {
    let device = DeviceId::from(address);
    [
        Command::KernelDmaSet { device: device.clone(), driver: None },
        Command::KernelDmaDone { device, dma: DriverDma::Kernel("e1000e".to_owned()) },
    ]
}

/// 16 testVirHostdevDetachPCINodeDevice: one by one, inactive + 1 each.
fn node_device_detach(state: &mut State) {
    for (n, (_, address)) in DEVICES.iter().enumerate() {
        run_all(state, &dma_release(address));
        assert_eq!(counts(state), (0, n + 1));
    }
}

/// 18 testVirHostdevReAttachPCINodeDevice: inactive - 1 each.
fn node_device_reattach(state: &mut State) {
    for (n, (_, address)) in DEVICES.iter().enumerate() {
        run_all(state, &dma_set(address));
        assert_eq!(counts(state), (0, 2 - n));
    }
}

/// 2, 8, 14: the devices are prepared for a guest.
fn prepare(state: &mut State, take_from_host: bool) {
    for (n, (group, _)) in DEVICES.iter().enumerate() {
        let flags = Flags { take_from_host, host_uses_it_anyway: false };
        run_all(state, &[ask(Reserve { flags, ..reserve(n, Policy::Exclusive, "vm", group) })]);
        if state.reservation(&id(n)).is_some_and(|record| record.pending.is_some()) {
            run_all(state, &[Command::PrepareDone { reservation: id(n), hold: Hold::Kernel }]);
        }
        attach(state, n);
    }
}

/// 3-5, 9-11: the same again, for another guest, with another driver: refused, nothing changes.
fn conflicts(state: &State) {
    let before = counts(state);
    for (n, (group, address)) in DEVICES.iter().enumerate() {
        let same = refused(state, &ask(reserve(n, Policy::Exclusive, "vm", group)));
        assert_eq!(same.reason, Reason::AlreadyExists, "same driver, same domain");
        for policy in Policy::ALL {
            let other = refused(state, &ask(reserve(8, policy, "other", group)));
            assert_eq!(other.reason, Reason::GroupOwned, "same driver, other domain");
            assert_eq!(other.owner.and_then(|owner| owner.reservation), Some(id(n)));
        }
        let driver = Some("e1000e".to_owned());
        let device = DeviceId::from(*address);
        let host = refused(state, &Command::KernelDmaSet { device, driver });
        assert_eq!(host.reason, Reason::GroupOwned, "other driver, same domain");
        assert_eq!(host.errno, Errno::EBUSY.number);
    }
    assert_eq!(counts(state), before);
}

/// 7, 13, 15: the devices come back from the guest.
fn reattach(state: &mut State) {
    for n in 0..DEVICES.len() {
        release(state, n);
    }
}

/// 1, 6, 12, 19: nothing is asked for, nothing changes.
fn nothing(state: &State) {
    let none = Reserve { targets: Vec::new(), ..reserve(9, Policy::Exclusive, "vm", "g-0") };
    assert_eq!(refused(state, &ask(none)).reason, Reason::InvalidArgument);
    let release = Command::Release { order: order(9), force: false };
    assert_eq!(refused(state, &release).reason, Reason::NotFound);
}

#[test]
fn test_vir_hostdev_roundtrip_no_guest() {
    let mut state = host();
    node_device_detach(&mut state);
    node_device_reattach(&mut state);
    assert_eq!(counts(&state), (0, 0));
}

#[test]
fn test_vir_hostdev_roundtrip_unmanaged() {
    let mut state = host();
    node_device_detach(&mut state);
    nothing(&state);
    prepare(&mut state, false);
    assert_eq!(counts(&state), (3, 0));
    conflicts(&state);
    reattach(&mut state);
    assert_eq!(counts(&state), (0, 3));
    nothing(&state);
    node_device_reattach(&mut state);
}

#[test]
fn test_vir_hostdev_roundtrip_managed() {
    let mut state = host();
    let unmanaged = refused(&state, &ask(reserve(0, Policy::Exclusive, "vm", "g-0")));
    assert_eq!(unmanaged.reason, Reason::KernelDma, "nobody said that it may be taken");
    assert_eq!(unmanaged.resolve[0], "berth kernel-dma release 0000:05:00.0");
    prepare(&mut state, true);
    assert_eq!(counts(&state), (3, 0));
    conflicts(&state);
    reattach(&mut state);
    // The host drivers are back, as the daemon would see next.
    for (group, address) in DEVICES {
        run_all(&mut state, &[observe(group, vec![driven(address, "e1000e")])]);
    }
    assert_eq!(counts(&state), (0, 0));
    nothing(&state);
}

#[test]
fn test_vir_hostdev_roundtrip_mixed() {
    let mut state = host();
    node_device_detach(&mut state);
    prepare(&mut state, true);
    assert_eq!(counts(&state), (3, 0));
    conflicts(&state);
    reattach(&mut state);
    assert_eq!(counts(&state), (0, 3), "a device that was detached by hand stays detached");
    node_device_reattach(&mut state);
}

/// 17 a reset changes no count; 20 the lists are as before after a restart.
#[test]
fn test_vir_hostdev_other() {
    let mut state = host();
    node_device_detach(&mut state);
    prepare(&mut state, false);
    detach(&mut state, 0);
    assert_eq!(counts(&state), (2, 1));
    attach(&mut state, 0);
    let restored = State::restore(state.parts()).expect("what was sound is sound");
    assert_eq!(counts(&restored), (3, 0));
    conflicts(&restored);
}

/// 22: a device goes back only with its last user. Here: the group with its last claim.
#[test]
fn test_nvme_disk_roundtrip() {
    let mut state = State::new();
    let members = ["0000:08:00.0", "0000:08:00.1", "0000:08:00.2"];
    run_all(&mut state, &[observe("g-8", members.map(device).to_vec())]);
    for (n, member) in members.iter().enumerate() {
        let devices = vec![DeviceId::from(*member)];
        let targets = vec![TargetRequest { group: "g-8".into(), devices }];
        let join = (n > 0).then(|| id(0));
        let request = Reserve { targets, join, ..reserve(n, Policy::Shared, "vm", "g-8") };
        run_all(&mut state, &[ask(request)]);
        attach(&mut state, n);
    }
    assert_eq!(state.owner_cnt(&"g-8".into()), 3);
    for (n, left) in [(0, 2), (2, 1), (1, 0)] {
        release(&mut state, n);
        assert_eq!(state.owner_cnt(&"g-8".into()), left);
        let free = state.group(&"g-8".into()).map(|group| group.ownership == Ownership::Free);
        assert_eq!(free, Some(left == 0));
    }
}
