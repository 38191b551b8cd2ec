use super::*;
use berth_host::Node;

fn acts() -> Vec<Act> {
    let device: PciAddress = "0000:00:05.0".parse().unwrap();
    vec![
        Act::Bind { device, driver: "vfio-pci".into() },
        Act::Unbind { device },
        Act::Override { device, driver: None },
        Act::Restore { device, driver: Some("nvme".into()), driver_override: None },
        Act::Sriov { device, count: 4, autoprobe: false },
        Act::Reset { device },
        Act::ReadConfig { device },
        Act::WhoHolds { nodes: vec!["/dev/vfio/8".into()] },
        Act::Prlimit { pid: 7, start_time: 9, memlock_bytes: 1 << 30 },
        Act::Kill { pid: 7, start_time: 9, signal: 9 },
        Act::OpenIommu,
        Act::Access { node: Node::Cdev(device), uid: 60001, allow: true },
        Act::Access { node: Node::Group(8), uid: 60001, allow: false },
        Act::Access { node: Node::Iommu, uid: 1, allow: true },
        Act::Access { node: Node::Container, uid: 1, allow: true },
    ]
}

#[test]
fn every_act_survives_and_carries_its_verb() {
    for act in acts() {
        let request = Request { v: VERSION, act };
        let text = serde_json::to_string(&request).unwrap();
        assert!(text.contains(&format!("\"verb\":\"{}\"", verb(&request.act))), "{text}");
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), request);
        assert!(!object(&request.act).is_empty());
    }
}

#[test]
fn what_is_not_exactly_a_request_is_refused() {
    for bad in [
        "",
        "{}",
        "null",
        r#"{"v":1}"#,
        r#"{"v":1,"act":{"verb":"exec","device":"0000:00:05.0"}}"#,
        r#"{"v":1,"act":{"verb":"unbind","device":"../../x"}}"#,
        r#"{"v":1,"act":{"verb":"unbind"}}"#,
        r#"{"v":1,"act":{"verb":"unbind","device":"0000:00:05.0"},"root":"/tmp"}"#,
        r#"{"v":-1,"act":{"verb":"open-iommu"}}"#,
        r#"{"v":1,"act":{"verb":"access","node":"/dev/mem","uid":1,"allow":true}}"#,
        r#"{"v":1,"act":{"verb":"access","node":{"group":"../mem"},"uid":1,"allow":true}}"#,
        r#"{"v":1,"act":{"verb":"access","node":"iommu","uid":-1,"allow":true}}"#,
        r#"{"v":1,"act":{"verb":"access","node":"iommu","uid":1}}"#,
    ] {
        assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
    }
}

#[test]
fn errors_survive_with_their_errno() {
    let device: PciAddress = "0000:00:05.0".parse().unwrap();
    let act = Act::Unbind { device };
    for error in [
        HostError::NoDevice(device),
        HostError::File { op: "write", path: "/sys/x".into(), errno: 16 },
        HostError::DriverMismatch { device, wanted: "vfio-pci".into(), found: "none".into() },
        helper_error(&act, "x", false),
    ] {
        let failure = Failure::of(&error);
        let text = serde_json::to_string(&failure).unwrap();
        let back: Failure = serde_json::from_str(&text).unwrap();
        assert_eq!(back.into_error(&act).errno(), error.errno());
    }
    let unknown = Failure::File { op: "invent".into(), path: "/x".into(), errno: 5 };
    let error = unknown.into_error(&act);
    assert!(error.to_string().contains("invent /x"), "{error}");
}

#[test]
fn outcomes_survive() {
    for (outcome, fits) in [
        (ActOutcome::Done, true),
        (ActOutcome::Driver(None), true),
        (ActOutcome::Reset(ResetOutcome::Verified { method: "flr".into() }), true),
        (ActOutcome::Config(vec![0, 0x7f, 0xff]), true),
    ] {
        let shown = format!("{outcome:?}");
        let (done, fd) = Done::of(outcome);
        let text = serde_json::to_string(&done).unwrap();
        let back = serde_json::from_str::<Done>(&text).unwrap().into_outcome(fd);
        assert_eq!(back.map(|back| format!("{back:?}") == shown), Some(fits));
    }
    assert!(Done::Fd.into_outcome(None).is_none());
    for bad in ["0", "0g", "zz", "é"] {
        assert!(Done::Config(bad.into()).into_outcome(None).is_none());
    }
}
