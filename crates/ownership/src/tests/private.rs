//! A host driver with a domain of its own, and the processes that keep it.

use super::fixture::{ask, driven, now, observe, refused, reserve, run_all};
use crate::*;

const A: &str = "0000:65:00.0";

#[test]
fn a_driver_with_a_domain_of_its_own_is_named_with_who_made_it_and_how_it_ends() {
    let mut state = State::new();
    let private = DeviceFacts {
        private_domain: true,
        processes: vec!["qemu (77)".to_owned()],
        ..driven(A, "vp-vdpa")
    };
    run_all(&mut state, &[observe("g-1", vec![private])]);
    assert_eq!(state.group(&"g-1".into()).unwrap().ownership, Ownership::Private { n: 1 });
    let refusal = refused(&state, &ask(reserve(0, Policy::Exclusive, "a", "g-1")));
    assert_eq!(refusal.reason, Reason::KernelDma);
    let text = &refusal.blockers[0].text;
    assert!(text.contains("vp-vdpa, with a domain of its own, for qemu (77)"), "{text}");
    assert_eq!(refusal.blockers[0].processes, ["qemu (77)"]);
    let end = format!("first end qemu (77), which keeps the domain that vp-vdpa has on {A}");
    assert_eq!(refusal.resolve[..2], [end, format!("berth kernel-dma release {A}")]);
    run_all(&mut state, &[observe("g-1", vec![driven(A, "vp-vdpa")])]);
    assert_eq!(state.group(&"g-1".into()).unwrap().ownership, Ownership::Kernel { n: 1 });
}

#[test]
fn a_domain_that_processes_keep_cannot_be_given_up() {
    let mut state = State::new();
    let private = |processes: &[&str]| DeviceFacts {
        private_domain: true,
        processes: processes.iter().map(|&process| process.to_owned()).collect(),
        ..driven(A, "vp-vdpa")
    };
    let flags = Flags { take_from_host: true, host_uses_it_anyway: true };
    let taking = ask(Reserve { flags, ..reserve(0, Policy::Exclusive, "a", "g-1") });
    let release = Command::KernelDmaRelease { device: A.into(), host_uses_it_anyway: true };
    run_all(&mut state, &[observe("g-1", vec![private(&["qemu (77)"])])]);
    for (cmd, errno) in [(&taking, Errno::EPERM), (&release, Errno::EBUSY)] {
        let refusal = refused(&state, cmd);
        assert_eq!((refusal.reason, refusal.errno), (Reason::KernelDma, errno.number));
        assert_eq!(refusal.blockers[0].processes, ["qemu (77)"]);
        assert!(refusal.resolve[0].starts_with("first end qemu (77)"), "{:?}", refusal.resolve);
    }
    run_all(&mut state, &[observe("g-1", vec![private(&[])])]);
    for cmd in [&taking, &release] {
        assert!(state.decide(cmd, &now()).is_ok(), "a driver's own domain goes with the driver");
    }
}

#[test]
fn a_driver_that_is_bound_on_purpose_makes_no_domain_of_its_own() {
    let mut state = State::new();
    let set = Command::KernelDmaSet { device: A.into(), driver: Some("nvme".to_owned()) };
    let done = Command::KernelDmaDone { device: A.into(), dma: DriverDma::Kernel("nvme".into()) };
    run_all(&mut state, &[observe("g-1", vec![DeviceFacts::new(A)]), set, done]);
    assert_eq!(state.group(&"g-1".into()).unwrap().ownership, Ownership::Kernel { n: 1 });
    let private = DeviceFacts { private_domain: true, ..driven(A, "vp-vdpa") };
    let release = Command::KernelDmaRelease { device: A.into(), host_uses_it_anyway: true };
    let done = Command::KernelDmaDone { device: A.into(), dma: DriverDma::None };
    run_all(&mut state, &[observe("g-1", vec![private]), release, done]);
    assert_eq!(state.group(&"g-1".into()).unwrap().ownership, Ownership::Free);
}
