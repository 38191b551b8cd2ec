use berth_proto::v1::Delivery;

use super::{
    super::testing::{TOKEN, by_token, hand},
    *,
};

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn filled(line: &str, hand: &Hand) -> String {
    fill(&words(line), hand).unwrap_or_else(|error| panic!("{line}: {error:?}")).join(" ")
}

type Cases<'a> = &'a [(&'a Hand, &'a str, &'a str)];

fn all_are_filled(cases: Cases<'_>) {
    for (hand, line, wanted) in cases {
        assert_eq!(filled(line, hand), *wanted);
    }
}

const OBJECT: &str = "-object iommufd,id=berth0,fd=20";
const DEVICE: &str = "-device vfio-pci,fd=10,iommufd=berth0";

#[test]
fn what_is_not_there_is_added() {
    let one = hand(Delivery::Unbound, Backend::Iommufd, 1);
    let two = hand(Delivery::Unbound, Backend::Iommufd, 2);
    let node = hand(Delivery::Node, Backend::Iommufd, 1);
    let type1 = hand(Delivery::Node, Backend::Type1, 1);
    let both = hand(Delivery::Node, Backend::Type1, 2);
    let host = "-device vfio-pci,host=0000:65:00.0";
    all_are_filled(&[
        (&one, "qemu -m 1G", &format!("qemu -m 1G {OBJECT} {DEVICE}")),
        (&two, "qemu", &format!("qemu {OBJECT} {DEVICE} -device vfio-pci,fd=11,iommufd=berth0")),
        (&node, "qemu", &format!("qemu -object iommufd,id=berth0 {host},iommufd=berth0")),
        (&type1, "qemu", &format!("qemu {host}")),
        (&both, "qemu", &format!("qemu {host} -device vfio-pci,host=0000:65:00.1")),
        // Others' devices stay.
        (
            &one,
            "qemu -device vfio-pci,fd=4,iommufd=x",
            &format!("qemu -device vfio-pci,fd=4,iommufd=x {OBJECT} {DEVICE}"),
        ),
        (
            &one,
            "qemu -device virtio-net,host=65:00.0 -device",
            &format!("qemu -device virtio-net,host=65:00.0 -device {OBJECT} {DEVICE}"),
        ),
        // So do their names.
        (
            &one,
            "qemu -object iommufd,id=berth0 -device vfio-pci,host=66:00.0,iommufd=berth0",
            "qemu -object iommufd,id=berth0 -device vfio-pci,host=66:00.0,iommufd=berth0 \
             -object iommufd,id=berth1,fd=20 -device vfio-pci,fd=10,iommufd=berth1",
        ),
    ]);
}

#[test]
fn what_is_there_is_filled_in_and_keeps_its_other_properties() {
    let one = hand(Delivery::Unbound, Backend::Iommufd, 1);
    let two = hand(Delivery::Unbound, Backend::Iommufd, 2);
    let node = hand(Delivery::Node, Backend::Iommufd, 1);
    let type1 = hand(Delivery::Node, Backend::Type1, 1);
    all_are_filled(&[
        (
            &one,
            "qemu -device vfio-pci,host=65:00.0,id=gpu,bus=rp1,x-no-kvm-intx=on",
            &format!("qemu {DEVICE},id=gpu,bus=rp1,x-no-kvm-intx=on {OBJECT}"),
        ),
        (
            &one,
            "qemu --device driver=vfio-pci-nohotplug,id=a,host=0000:65:00.0",
            &format!("qemu --device driver=vfio-pci-nohotplug,id=a,fd=10,iommufd=berth0 {OBJECT}"),
        ),
        (
            &one,
            "qemu -device vfio-pci,sysfsdev=/sys/bus/pci/devices/0000:65:00.0/",
            &format!("qemu {DEVICE} {OBJECT}"),
        ),
        (
            &two,
            "qemu -device vfio-pci,host=65:00.1,id=b",
            &format!("qemu -device vfio-pci,fd=11,iommufd=berth0,id=b {OBJECT} {DEVICE}"),
        ),
        (
            &node,
            "qemu -device vfio-pci,host=65:00.0,id=b",
            "qemu -device vfio-pci,host=65:00.0,id=b,iommufd=berth0 -object iommufd,id=berth0",
        ),
        (
            &type1,
            "qemu -device vfio-pci,host=65:00.0,id=b",
            "qemu -device vfio-pci,host=65:00.0,id=b",
        ),
    ]);
}

#[test]
fn an_iommufd_that_is_there_for_a_device_is_the_one() {
    let two = hand(Delivery::Unbound, Backend::Iommufd, 2);
    let node = hand(Delivery::Node, Backend::Iommufd, 1);
    all_are_filled(&[
        (
            &two,
            "qemu -object iommufd,id=i -device vfio-pci,host=65:00.0,iommufd=i",
            "qemu -object iommufd,id=i,fd=20 -device vfio-pci,fd=10,iommufd=i \
             -device vfio-pci,fd=11,iommufd=i",
        ),
        (
            &node,
            "qemu -object iommufd,id=i,fd=5 -device vfio-pci,host=65:00.0,iommufd=i",
            "qemu -object iommufd,id=i,fd=5 -device vfio-pci,host=65:00.0,iommufd=i",
        ),
    ]);
}

/// As libvirt writes it.
#[test]
fn json_is_filled_in() {
    let one = hand(Delivery::Unbound, Backend::Iommufd, 1);
    let device = r#"{"driver":"vfio-pci","fd":"10","id":"hostdev0","iommufd":"berth0"}"#;
    all_are_filled(&[
        (
            &one,
            r#"qemu -device {"driver":"vfio-pci","host":"0000:65:00.0","id":"hostdev0"}"#,
            &format!("qemu -device {device} {OBJECT}"),
        ),
        (
            &one,
            r#"qemu -object {"qom-type":"iommufd","id":"i"} -device {"driver":"vfio-pci","host":"65:00.0","iommufd":"i"}"#,
            r#"qemu -object {"fd":"20","id":"i","qom-type":"iommufd"} -device {"driver":"vfio-pci","fd":"10","iommufd":"i"}"#,
        ),
    ]);
}

#[test]
fn what_qemu_could_not_do_is_refused() {
    for (delivery, backend, way) in [
        (Delivery::Bound, Backend::Iommufd, "unbound"),
        (Delivery::Held, Backend::Iommufd, "unbound"),
        (Delivery::Bound, Backend::Type1, "node"),
    ] {
        let Err(CliError::Refused(refusal, 3)) = fill(&words("qemu"), &hand(delivery, backend, 1))
        else {
            panic!("{delivery:?} on {backend:?} was filled in");
        };
        assert!(refusal.resolve[0].contains(way), "{refusal:?}");
    }
    let one = hand(Delivery::Unbound, Backend::Iommufd, 1);
    let two = hand(Delivery::Unbound, Backend::Iommufd, 2);
    let type1 = hand(Delivery::Node, Backend::Type1, 1);
    for (hand, line, said) in [
        (
            &one,
            "qemu -device vfio-pci,host=65:00.0 -device vfio-pci,host=0000:65:00.0",
            "two -device",
        ),
        (&one, "qemu -device vfio-pci,host=65:00.0,iommufd=i", "no -object iommufd,id=i"),
        (
            &one,
            "qemu -object iommufd,id=i,fd=9 -device vfio-pci,host=65:00.0,iommufd=i",
            "an fd already",
        ),
        (
            &two,
            "qemu -device vfio-pci,host=65:00.0,iommufd=i -device vfio-pci,host=65:00.1,iommufd=k",
            "name i and k",
        ),
        (&type1, "qemu -device vfio-pci,host=65:00.0,iommufd=i", "on type1"),
    ] {
        let Err(CliError::Usage(text)) = fill(&words(line), hand) else {
            panic!("{line} was filled in");
        };
        assert!(text.contains(said), "{line}: {text}");
    }
}

#[test]
fn a_vf_token_is_shown_on_type1_and_refused_where_qemu_shows_none() {
    let type1 = by_token(hand(Delivery::Node, Backend::Type1, 1));
    let device = format!("-device vfio-pci,host=0000:65:00.0,vf-token={TOKEN}");
    all_are_filled(&[
        (&type1, "qemu", &format!("qemu {device}")),
        (
            &type1,
            "qemu -device vfio-pci,host=65:00.0,id=nic",
            &format!("qemu -device vfio-pci,host=65:00.0,id=nic,vf-token={TOKEN}"),
        ),
        (
            &type1,
            "qemu -device vfio-pci,host=65:00.0,vf-token=x",
            &format!("qemu -device vfio-pci,host=65:00.0,vf-token={TOKEN}"),
        ),
    ]);
    for delivery in [Delivery::Unbound, Delivery::Node] {
        let iommufd = by_token(hand(delivery, Backend::Iommufd, 1));
        let Err(CliError::Refused(refusal, 3)) = fill(&words("qemu"), &iommufd) else {
            panic!("{delivery:?} is filled in");
        };
        assert_eq!(refusal.reason, "UNSUPPORTED");
        assert!(refusal.message.contains("0000:65:00.0") && !refusal.message.contains(TOKEN));
        assert!(refusal.resolve[0].contains("--backend type1"), "{:?}", refusal.resolve);
    }
}
