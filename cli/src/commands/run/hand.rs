//! What a hand-over brings, in the words that go into a command line.

use std::os::fd::AsRawFd as _;

use berth_handover::{FdKind, Fetched, NodeKind};
use berth_proto::v1::{Backend, Delivery, Reservation};

use crate::{address, error::CliError};

/// What the program gets. Before the fetch the numbers and paths are placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hand {
    pub(super) reservation: String,
    pub(super) delivery: Delivery,
    pub(super) backend: Backend,
    pub(super) devices: Vec<Device>,
    /// Number of the iommufd's or container's descriptor.
    pub(super) context: Option<String>,
    /// Nothing was fetched yet.
    pub(super) promised: bool,
}

/// One device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) address: String,
    /// Number of its descriptor: bound, or a cdev.
    pub(super) fd: Option<String>,
    /// Id of the address space that it is attached to.
    pub(super) ioas: Option<String>,
    /// Path of its cdev.
    pub(super) node: Option<String>,
    /// Path of its group.
    pub(super) group: Option<String>,
    /// What is to be shown to open it; before the fetch nobody knows whether the kernel asks for it.
    pub(super) vf_token: Option<String>,
}

impl Hand {
    /// What a fetch of the reservation will bring, as far as the record tells.
    pub(super) fn promised(reservation: &Reservation) -> Self {
        let (delivery, backend) = (reservation.delivery(), reservation.backend());
        let with_fds = matches!(delivery, Delivery::Bound | Delivery::Unbound);
        let iommufd = backend == Backend::Iommufd;
        let targets = reservation.targets.iter().filter(|_| delivery != Delivery::Held);
        let devices = targets.flat_map(|target| &target.devices).map(|device| {
            let address = address::text(Some(device)).to_owned();
            let named = |what: &str| format!("{{{what}:{address}}}");
            let node = delivery == Delivery::Node;
            Device {
                fd: with_fds.then(|| named("device")),
                ioas: (delivery == Delivery::Bound && iommufd).then(|| named("ioas")),
                node: (node && iommufd).then(|| named("node")),
                group: (node && !iommufd).then(|| named("group")),
                vf_token: None,
                address,
            }
        });
        let context = if iommufd { "{iommufd}" } else { "{container}" };
        Self {
            reservation: reservation.id.clone(),
            delivery,
            backend,
            devices: devices.collect(),
            context: with_fds.then(|| context.to_owned()),
            promised: true,
        }
    }

    /// What a fetch brought. The numbers are of descriptors that `fetched` owns.
    pub(super) fn fetched(reservation: &str, fetched: &Fetched) -> Result<Self, CliError> {
        let word = |text: &Option<String>| text.clone().unwrap_or_default().to_uppercase();
        let unknown =
            |what: &str| CliError::failed(format!("berthd hands over with unknown {what}"));
        let delivery = Delivery::from_str_name(&word(&fetched.reply.delivery));
        let backend = Backend::from_str_name(&word(&fetched.reply.backend));
        let mut hand = Self {
            reservation: reservation.to_owned(),
            delivery: delivery.ok_or_else(|| unknown("delivery"))?,
            backend: backend.ok_or_else(|| unknown("back end"))?,
            devices: Vec::new(),
            context: None,
            promised: false,
        };
        for (info, fd) in &fetched.fds {
            let number = Some(fd.as_raw_fd().to_string());
            match info.kind {
                FdKind::Iommufd | FdKind::Container => hand.context = number,
                FdKind::Device | FdKind::Cdev => hand.devices.push(Device {
                    address: info.address.clone().unwrap_or_default(),
                    fd: number,
                    ioas: info.ioas_id.map(|id| id.to_string()),
                    ..Device::default()
                }),
            }
        }
        for node in fetched.nodes() {
            let path = Some(node.path.clone());
            match node.kind {
                NodeKind::Cdev => hand.devices.push(Device {
                    address: node.address.clone().unwrap_or_default(),
                    node: path,
                    ..Device::default()
                }),
                NodeKind::Group => hand.devices.extend(node.devices.iter().map(|address| Device {
                    address: address.clone(),
                    group: path.clone(),
                    ..Device::default()
                })),
                NodeKind::Iommufd | NodeKind::Container => {}
            }
        }
        for device in &mut hand.devices {
            let token = fetched.vf_token(&device.address);
            device.vf_token = token.map(|token| token.as_str().to_owned());
        }
        Ok(hand)
    }

    /// Whether the device is the reservation's.
    pub(super) fn has(&self, address: &str) -> bool {
        self.devices.iter().any(|device| device.address == address)
    }

    /// `unbound`, as it is written in options.
    pub(super) fn delivery_word(&self) -> String {
        self.delivery.as_str_name().to_lowercase()
    }

    /// `iommufd`, likewise.
    pub(super) fn backend_word(&self) -> String {
        self.backend.as_str_name().to_lowercase()
    }
}
