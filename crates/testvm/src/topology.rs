//! The test machine: which function sits where, and with whom it shares a group.
//!
//! Every address is pinned on QEMU's command line ([`crate::host::machine`]), so scenarios may name
//! devices by these constants. The scenario `topology` compares this table with the running kernel.
//!
//! ```text
//! pcie.0 --+-- 00:03.0 edu ......................................... group edu-root
//!          +-- 00:04.0 virtio-serial, 00:05.0 virtio-9p (the harness's own)
//!          +-- 00:10.0 root port -- 01:00.0 edu .................... group edu-spare
//!          +-- 00:11.0 root port -- 02:00.0 pcie-pci-bridge
//!          |                          +-- 03:01.0 edu, 03:02.0 edu . group pair (with the bridge)
//!          +-- 00:12.0 root port -- 04:00.0 pcie-pci-bridge
//!          |                          +-- 05:01.0 edu, 05:02.0 e1000 group mixed (with the bridge)
//!          +-- 00:13.0 root port -- 06:00.0 igb (SR-IOV PF) ........ group igb
//!          +-- 00:14.0 root port -- 07:00.0 nvme, serial berth-nvme0 group nvme0
//!          +-- 00:15.0 root port -- 08:00.0 nvme, serial berth-nvme1 group nvme1
//!          +-- 00:16.0 root port -- 09:00.0 e1000e ................. group e1000e
//!          +-- 00:17.0 root port -- (empty: hot-plug, bus 0a)
//!          +-- 00:18.0 root port -- 0b:00.0 virtio-net ............. group virtio-net
//!          +-- 00:19.0 root port without ACS -- 0c:00.0 testdev .... group merged
//!          +-- 00:19.1 root port without ACS -- 0d:00.0 pcie-pci-bridge
//!          |                          +-- 0e:01.0, 0e:02.0 testdev . group merged (with bridge and ports)
//!          +-- 00:1a.0 root port -- 0f:00.0 testdev ................ group twin-port, twin-dev
//!          `-- 00:1a.1 root port -- 10:00.0 pcie-pci-bridge
//!                                     +-- 11:01.0, 11:02.0 testdev . group twin-bridge
//! ```
//!
//! The last two slots are alike but for the Access Control Services of their ports: what would become of
//! the one is what the kernel made of the other.

/// `edu` on the root bus: a group of its own, no reset method at all.
pub const EDU_ROOT: &str = "0000:00:03.0";
/// `edu` behind a root port: a group of its own.
pub const EDU_SPARE: &str = "0000:01:00.0";
/// The bridge over [`PAIR_A`] and [`PAIR_B`], in their group.
pub const PAIR_BRIDGE: &str = "0000:02:00.0";
/// First `edu` of the two that share a group.
pub const PAIR_A: &str = "0000:03:01.0";
/// Second `edu` of the two that share a group.
pub const PAIR_B: &str = "0000:03:02.0";
/// The bridge over [`MIXED_EDU`] and [`MIXED_NIC`], in their group.
pub const MIXED_BRIDGE: &str = "0000:04:00.0";
/// `edu` that shares its group with a network card of the host.
pub const MIXED_EDU: &str = "0000:05:01.0";
/// `e1000`, with a host driver, beside [`MIXED_EDU`].
pub const MIXED_NIC: &str = "0000:05:02.0";
/// `igb`: a PF with seven possible VFs.
pub const IGB: &str = "0000:06:00.0";
/// First `nvme`, serial `berth-nvme0`.
pub const NVME0: &str = "0000:07:00.0";
/// Second `nvme`, serial `berth-nvme1`.
pub const NVME1: &str = "0000:08:00.0";
/// `e1000e` on the host's driver.
pub const E1000E: &str = "0000:09:00.0";
/// Where a hot-plugged device appears.
pub const HOTPLUG_SLOT: &str = "0000:0a:00.0";
/// QEMU's name of the empty root port, for `device_add bus=`.
pub const HOTPLUG_BUS: &str = "rp-hotplug";

/// `virtio-net`, modern and behind the IOMMU: what `vp-vdpa` makes a vDPA device of.
pub const VIRTIO_NET: &str = "0000:0b:00.0";
/// QEMU's name of [`VIRTIO_NET`]: of the machine's endpoints the one that reports errors.
pub const VIRTIO_NET_ID: &str = "virtio-net";

/// Functions whose ports have no Access Control Services, each with the one in its place where they
/// have them.
pub const TWINS: &[(&str, &str)] = &[
    ("0000:00:19.0", "0000:00:1a.0"),
    ("0000:00:19.1", "0000:00:1a.1"),
    ("0000:0c:00.0", "0000:0f:00.0"),
    ("0000:0d:00.0", "0000:10:00.0"),
    ("0000:0e:01.0", "0000:11:01.0"),
    ("0000:0e:02.0", "0000:11:02.0"),
];
/// The ports without them.
pub const PORTS_WITHOUT_ACS: [&str; 2] = ["0000:00:19.0", "0000:00:19.1"];

/// One function of the test machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    /// Its address.
    pub address: &'static str,
    /// Vendor and device id.
    pub ids: (u16, u16),
    /// Functions with the same name share one IOMMU group, and nobody else is in it.
    pub group: &'static str,
    /// The driver that the host's kernel gives it at boot.
    pub host_driver: Option<&'static str>,
}

const fn seat(
    address: &'static str,
    ids: (u16, u16),
    group: &'static str,
    host_driver: Option<&'static str>,
) -> Seat {
    Seat { address, ids, group, host_driver }
}

const EDU: (u16, u16) = (0x1234, 0x11e8);
const BRIDGE: (u16, u16) = (0x1b36, 0x000e);
const NVME: (u16, u16) = (0x1b36, 0x0010);
const PORT: (u16, u16) = (0x1b36, 0x000c);
const TESTDEV: (u16, u16) = (0x1b36, 0x0005);

/// The functions that scenarios work with.
pub const SEATS: &[Seat] = &[
    seat(EDU_ROOT, EDU, "edu-root", None),
    seat(EDU_SPARE, EDU, "edu-spare", None),
    seat(PAIR_BRIDGE, BRIDGE, "pair", None),
    seat(PAIR_A, EDU, "pair", None),
    seat(PAIR_B, EDU, "pair", None),
    seat(MIXED_BRIDGE, BRIDGE, "mixed", None),
    seat(MIXED_EDU, EDU, "mixed", None),
    seat(MIXED_NIC, (0x8086, 0x100e), "mixed", Some("e1000")),
    seat(IGB, (0x8086, 0x10c9), "igb", Some("igb")),
    seat(NVME0, NVME, "nvme0", Some("nvme")),
    seat(NVME1, NVME, "nvme1", Some("nvme")),
    seat(E1000E, (0x8086, 0x10d3), "e1000e", Some("e1000e")),
    seat(VIRTIO_NET, (0x1af4, 0x1041), "virtio-net", Some("virtio-pci")),
    seat("0000:00:19.0", PORT, "merged", Some("pcieport")),
    seat("0000:00:19.1", PORT, "merged", Some("pcieport")),
    seat("0000:0c:00.0", TESTDEV, "merged", None),
    seat("0000:0d:00.0", BRIDGE, "merged", None),
    seat("0000:0e:01.0", TESTDEV, "merged", None),
    seat("0000:0e:02.0", TESTDEV, "merged", None),
    seat("0000:00:1a.0", PORT, "twin-port0", Some("pcieport")),
    seat("0000:00:1a.1", PORT, "twin-port1", Some("pcieport")),
    seat("0000:0f:00.0", TESTDEV, "twin-dev", None),
    seat("0000:10:00.0", BRIDGE, "twin-bridge", None),
    seat("0000:11:01.0", TESTDEV, "twin-bridge", None),
    seat("0000:11:02.0", TESTDEV, "twin-bridge", None),
];
