//! Hand-overs for the tests.

use berth_proto::v1::{Backend, Delivery};

use super::hand::{Device, Hand};

/// The same of virtual functions whose physical one is on vfio-pci.
pub(super) fn by_token(hand: Hand) -> Hand {
    let shown = |device| Device { vf_token: Some(TOKEN.to_owned()), ..device };
    Hand { devices: hand.devices.into_iter().map(shown).collect(), ..hand }
}

pub(super) const TOKEN: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// What `r-1` hands over of 0000:65:00.0 and its next functions: descriptors from 10, the context 20.
pub(super) fn hand(delivery: Delivery, backend: Backend, devices: u32) -> Hand {
    let with_fds = matches!(delivery, Delivery::Bound | Delivery::Unbound);
    let (node, iommufd) = (delivery == Delivery::Node, backend == Backend::Iommufd);
    let device = |n: u32| Device {
        address: format!("0000:65:00.{n}"),
        fd: with_fds.then(|| (10 + n).to_string()),
        ioas: (delivery == Delivery::Bound && iommufd).then(|| "5".to_owned()),
        node: (node && iommufd).then(|| format!("/dev/vfio/devices/vfio{n}")),
        group: (node && !iommufd).then(|| "/dev/vfio/7".to_owned()),
        vf_token: None,
    };
    Hand {
        reservation: "r-1".to_owned(),
        delivery,
        backend,
        // A held hand-over brings nothing.
        devices: (0..devices).filter(|_| delivery != Delivery::Held).map(device).collect(),
        context: with_fds.then(|| "20".to_owned()),
        promised: false,
    }
}
