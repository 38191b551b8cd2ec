//! What goes over the hand-over socket: one JSON object per packet.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::refusal::Refusal;

/// Bytes of the largest request.
pub const MAX_PACKET_BYTES: usize = 16 * 1024;

/// Bytes of the largest answer: one that describes [`MAX_ANSWER_FDS`] descriptors.
pub const MAX_ANSWER_BYTES: usize = 48 * 1024;

/// Descriptors that one request may carry.
pub const MAX_FDS: usize = 8;

/// Descriptors that one answer may carry: what the kernel lets through in one message.
pub const MAX_ANSWER_FDS: usize = 253;

/// An I/O address, written as `"0x…"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Iova(pub u64);

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Iova {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Iova {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.strip_prefix("0x")
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|digits| u64::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom("iova must be a string like \"0x1000\""))
    }
}

fn yes() -> bool {
    true
}

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "op",
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    deny_unknown_fields
)]
pub enum Request {
    /// Hand the reservation's descriptors over, or open its nodes. The caller becomes the holder's
    /// process, or the process does whose pidfd comes with the packet.
    Fetch {
        /// The reservation.
        reservation: String,
        /// Its epoch; 0 skips the fence.
        #[serde(default)]
        epoch: u64,
    },
    /// Map the sealed memfd that comes with the packet into the reservation's domain.
    Register {
        /// The reservation.
        reservation: String,
        /// Where; absent lets the daemon choose.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        iova: Option<Iova>,
        /// How much.
        length_bytes: u64,
        /// Where in the memfd it begins.
        #[serde(default)]
        offset: u64,
        /// The device may write.
        #[serde(default = "yes")]
        write: bool,
        /// The device may read.
        #[serde(default = "yes")]
        read: bool,
    },
    /// Remove a registration, exactly as it was made.
    Unregister {
        /// The reservation.
        reservation: String,
        /// Where it is.
        iova: Iova,
        /// How much.
        length_bytes: u64,
    },
    /// Show an iommufd: whoever shows the file that owns a group presents its token.
    ShowToken {
        /// The reservation.
        reservation: String,
    },
}

impl Request {
    /// The reservation that the request is about.
    #[must_use]
    pub fn reservation(&self) -> &str {
        match self {
            Self::Fetch { reservation, .. }
            | Self::Register { reservation, .. }
            | Self::Unregister { reservation, .. }
            | Self::ShowToken { reservation } => reservation,
        }
    }

    /// The same about another reservation: for who passes on what others ask.
    #[must_use]
    pub fn of_reservation(mut self, id: &str) -> Self {
        match &mut self {
            Self::Fetch { reservation, .. }
            | Self::Register { reservation, .. }
            | Self::Unregister { reservation, .. }
            | Self::ShowToken { reservation } => id.clone_into(reservation),
        }
        self
    }
}

/// What one handed-over descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FdKind {
    /// A VFIO device, bound and attached.
    Device,
    /// A VFIO device's cdev, opened and not bound: `VFIO_DEVICE_BIND_IOMMUFD` with the iommufd.
    Cdev,
    /// The iommufd of the context.
    Iommufd,
    /// The type1 container of the context.
    Container,
}

/// One handed-over descriptor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FdInfo {
    /// Its place in the packet.
    pub index: usize,
    /// What it is.
    pub kind: FdKind,
    /// The device's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The iommufd's id of the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<u32>,
    /// The I/O address space that the device is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ioas_id: Option<u32>,
}

impl FdInfo {
    /// A descriptor of which nothing more is said.
    #[must_use]
    pub fn new(index: usize, kind: FdKind) -> Self {
        Self { index, kind, address: None, device_id: None, ioas_id: None }
    }
}

/// What one node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// A VFIO device's cdev.
    Cdev,
    /// A VFIO group.
    Group,
    /// `/dev/iommu`.
    Iommufd,
    /// `/dev/vfio/vfio`.
    Container,
}

/// One node that the holder's user may open from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// What it is.
    pub kind: NodeKind,
    /// Where it is.
    pub path: String,
    /// The address of a cdev's device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The addresses of a group's devices that are the reservation's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
}

/// The secret by which a device is opened: a UUID, as it is appended to the name in
/// `VFIO_GROUP_GET_DEVICE_FD` (`0000:65:10.0 vf_token=UUID`), as QEMU's `vf-token=` and DPDK's
/// `--vfio-vf-token` take it, and by its 16 bytes in `VFIO_DEVICE_BIND_IOMMUFD`. It isn't printed by
/// `{:?}`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VfToken(String);

impl VfToken {
    /// The secret, as a UUID.
    #[must_use]
    pub fn new(uuid: String) -> Self {
        Self(uuid)
    }

    /// The UUID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VfToken(secret)")
    }
}

/// What the kernel asks for who opens one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VfTokenInfo {
    /// The device's address.
    pub address: String,
    /// What is to be shown.
    pub vf_token: VfToken,
}

/// What the daemon answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reply {
    /// Whether it was done.
    pub ok: bool,
    /// The reservation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<String>,
    /// Its epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// `exclusive`, `shared` or `group`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// `held`, `bound`, `unbound` or `node`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivery: Option<String>,
    /// `iommufd` or `type1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The descriptors that came with the packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fds: Option<Vec<FdInfo>>,
    /// The nodes that the holder opens by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<Vec<NodeInfo>>,
    /// What is to be shown to open or bind devices: of those alone of which the kernel asks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf_tokens: Option<Vec<VfTokenInfo>>,
    /// Where the memory was mapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iova: Option<Iova>,
    /// Bytes that were unmapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmapped_bytes: Option<u64>,
    /// The reservation whose token the shown file is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refusal: Option<Box<Refusal>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_read_as_documented() {
        let text = r#"{"op":"register","reservation":"r-1","iova":"0x10000","lengthBytes":4096,"offset":0,"write":true}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert_eq!(
            request,
            Request::Register {
                reservation: "r-1".to_owned(),
                iova: Some(Iova(0x10000)),
                length_bytes: 4096,
                offset: 0,
                write: true,
                read: true,
            }
        );
        let token: Request =
            serde_json::from_str(r#"{"op":"show-token","reservation":"r-2"}"#).unwrap();
        assert_eq!(token.reservation(), "r-2");
    }

    #[test]
    fn unknown_fields_and_addresses_that_are_none_are_refused() {
        for text in [
            r#"{"op":"fetch"}"#,
            r#"{"op":"fetch","reservation":"r","epoch":-1}"#,
            r#"{"op":"fetch","reservation":"r","path":"/etc/shadow"}"#,
            r#"{"op":"unregister","reservation":"r","iova":4096,"lengthBytes":1}"#,
            r#"{"op":"unregister","reservation":"r","iova":"0x+1","lengthBytes":1}"#,
            r#"{"op":"drop-tables","reservation":"r"}"#,
            r#"["fetch"]"#,
        ] {
            assert!(serde_json::from_str::<Request>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn replies_leave_out_what_they_do_not_say() {
        let reply = Reply { ok: true, iova: Some(Iova(0x2000)), ..Reply::default() };
        assert_eq!(serde_json::to_string(&reply).unwrap(), r#"{"ok":true,"iova":"0x2000"}"#);
    }

    #[test]
    fn a_vf_token_is_for_the_holder_and_not_for_the_log() {
        let text = r#"{"ok":true,"vfTokens":[{"address":"0000:65:10.0","vfToken":"01234567-89ab-cdef-0123-456789abcdef"}]}"#;
        let reply: Reply = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&reply).unwrap(), text);
        let printed = format!("{reply:?}");
        assert!(printed.contains("0000:65:10.0") && !printed.contains("01234567"), "{printed}");
    }

    #[test]
    fn the_longest_answer_fits_into_its_packet() {
        let longest = FdInfo {
            index: MAX_ANSWER_FDS,
            kind: FdKind::Container,
            address: Some("ffff:ff:1f.7".to_owned()),
            device_id: Some(u32::MAX),
            ioas_id: Some(u32::MAX),
        };
        let reply = Reply {
            ok: true,
            reservation: Some("r-0123456789ab".to_owned()),
            epoch: Some(u64::MAX),
            policy: Some("exclusive".to_owned()),
            delivery: Some("bound".to_owned()),
            backend: Some("iommufd".to_owned()),
            fds: Some(vec![longest; MAX_ANSWER_FDS]),
            ..Reply::default()
        };
        let bytes = serde_json::to_vec(&reply).unwrap().len();
        assert!(bytes > MAX_PACKET_BYTES && bytes <= MAX_ANSWER_BYTES, "{bytes}");
        // Devices that are handed over bound need none.
        let token = VfTokenInfo {
            address: "ffff:ff:1f.7".to_owned(),
            vf_token: VfToken::new("01234567-89ab-cdef-0123-456789abcdef".to_owned()),
        };
        let reply = Reply { vf_tokens: Some(vec![token; MAX_ANSWER_FDS]), ..reply };
        let longest = NodeInfo {
            kind: NodeKind::Cdev,
            path: "/dev/vfio/devices/vfio1048575".to_owned(),
            address: Some("ffff:ff:1f.7".to_owned()),
            devices: Vec::new(),
        };
        let nodes = Some(vec![longest; MAX_ANSWER_FDS]);
        let reply = Reply { fds: None, nodes, ..reply };
        let bytes = serde_json::to_vec(&reply).unwrap().len();
        assert!(bytes > MAX_PACKET_BYTES && bytes <= MAX_ANSWER_BYTES, "{bytes}");
        // A group each, which is longer than more devices in fewer groups.
        let longest = NodeInfo {
            kind: NodeKind::Group,
            path: "/dev/vfio/4294967295".to_owned(),
            address: None,
            devices: vec!["ffff:ff:1f.7".to_owned()],
        };
        let nodes = Some(vec![longest; MAX_ANSWER_FDS]);
        let bytes = serde_json::to_vec(&Reply { nodes, ..reply }).unwrap().len();
        assert!(bytes <= MAX_ANSWER_BYTES, "{bytes}");
    }
}
