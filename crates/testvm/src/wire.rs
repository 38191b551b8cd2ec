//! What the host tells the guest (one JSON file) and what the guest reports (JSON lines).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// Where the initramfs carries the [`GuestConfig`], and where the init leaves it for the runner.
pub const CONFIG_IN_INITRAMFS: &str = "/berth-vm.json";
/// Where the runner finds the [`GuestConfig`] after the switch to the overlay root.
pub const CONFIG_IN_GUEST: &str = "/run/berth-vm.json";
/// Name of the virtio-serial port that carries [`Message`] lines to the host.
pub const RESULTS_PORT: &str = "berth.results";
/// Name of the virtio-serial port on which the guest sends QMP commands to its own machine.
pub const QMP_PORT: &str = "berth.qmp";
/// The disk with the root file system, in guests that have one of their own.
pub const ROOT_DISK: &str = "/dev/vda";
/// The 9p tag under which the host's root is shared.
pub const HOST_TAG: &str = "host";

/// Which machine the guest runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// intel-iommu with interrupt remapping.
    Default,
    /// intel-iommu without interrupt remapping: the kernel refuses VFIO as unsafe.
    NoIntremap,
    /// As the default one, with a Debian of its own as root and systemd as process 1.
    Systemd,
}

impl Profile {
    /// Every profile, in the order in which they are run.
    pub const ALL: [Self; 3] = [Self::Default, Self::NoIntremap, Self::Systemd];
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::NoIntremap => "no-intremap",
            Self::Systemd => "systemd",
        })
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|profile| profile.to_string() == text).ok_or_else(|| {
            format!("no such profile: {text} (there are: default, no-intremap, systemd)")
        })
    }
}

/// Something that a scenario may need of the guest; found by asking the kernel, never by version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// `/dev/iommu` opens.
    Iommufd,
    /// vfio-pci makes a cdev under `/dev/vfio/devices` for a device bound to it.
    Cdev,
    /// `/dev/vfio/vfio` opens as a container with type1 v2.
    Type1,
    /// `IOMMU_IOAS_MAP_FILE` is known to the kernel.
    MapFile,
    /// Interrupts are remapped: the kernel lets VFIO have devices.
    Intremap,
    /// Interrupts are not remapped: the kernel answers EPERM to VFIO.
    NoIntremap,
    /// The kernel's iommufd self-test device is there.
    IommufdTest,
    /// `strace` is installed on the host, so that it is in the guest.
    Strace,
    /// The tracer that lets calls fail was compiled and staged.
    FailNth,
    /// `berthd` and `berth` were built and staged.
    Daemon,
    /// The device plugin and a kubelet's double were, too.
    Kubelet,
    /// The host's QEMU takes opened devices: a cdev and an iommufd (9.0 or newer).
    Qemu,
    /// A bridge driver that does DMA for the host (shpchp) sits on the shared bridges.
    Shpchp,
    /// `vp-vdpa` and `vhost_vdpa` are there, and the tool that makes a vDPA device.
    Vdpa,
    /// Process 1 is systemd. What needs it runs on that machine alone, and nothing else does.
    Systemd,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = serde_json::to_string(self).map_err(|_| fmt::Error)?;
        f.write_str(text.trim_matches('"'))
    }
}

/// What the runner is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Run every scenario whose name contains a part of the filter.
    Scenarios {
        /// Parts of scenarios' names, with commas between; empty means all.
        filter: String,
    },
    /// Give a shell on the console with `berthd` running.
    Shell {
        /// The terminal's type, as in `TERM`.
        term: String,
        /// The terminal's rows.
        rows: u16,
        /// The terminal's columns.
        columns: u16,
    },
    /// Measure.
    Bench {
        /// What to start, one after the other.
        runs: Vec<Measuring>,
    },
}

/// A program that measures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measuring {
    /// Its name, among the staged ones.
    pub program: String,
    /// Its arguments, but for the peers, the devices and where the results go.
    pub words: Vec<String>,
    /// Whether it takes a second device, for its peers.
    pub beside: bool,
}

/// Everything that the guest has to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GuestConfig {
    /// The kernel provider's name: `own`, `stock` or `path`.
    pub kernel: String,
    /// The machine.
    pub profile: Profile,
    /// What to do.
    pub mode: Mode,
    /// Directory, on the shared host root, with the programs staged for this run.
    pub bin_dir: PathBuf,
    /// A QEMU on the shared host root that takes opened devices, if there is one.
    pub qemu: Option<PathBuf>,
    /// Whether the machine is emulated, so that everything takes longer.
    pub slow: bool,
    /// Whether scenarios should also do what takes long.
    pub long: bool,
    /// Module files in the initramfs, in load order.
    pub modules: Vec<String>,
    /// Extra environment for the scenarios.
    pub env: BTreeMap<String, String>,
}

/// How a scenario ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything that was to be seen was seen.
    Pass,
    /// Something else was seen.
    Fail {
        /// What was expected, and what was seen.
        reason: String,
    },
    /// It could not run here.
    Skip {
        /// What it lacks.
        reason: String,
        /// The capabilities that are missing, when that is the reason.
        missing: BTreeSet<Capability>,
    },
}

/// One line from the guest to the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Message {
    /// The runner is up.
    Boot {
        /// `uname -r`.
        release: String,
        /// Seconds since the kernel started.
        uptime_seconds: f64,
        /// What was found.
        capabilities: BTreeSet<Capability>,
        /// How many scenarios match.
        scenarios: usize,
    },
    /// A scenario starts.
    Start {
        /// The scenario.
        name: String,
        /// After how long the guest gives it up.
        timeout_seconds: u64,
    },
    /// A line of a scenario's log.
    Log {
        /// The scenario.
        name: String,
        /// The line.
        line: String,
    },
    /// A scenario ended.
    Done {
        /// The scenario.
        name: String,
        /// How.
        verdict: Verdict,
        /// How long it took.
        seconds: f64,
    },
    /// What was measured.
    Rows {
        /// The rows, as `berth-bench` writes them: JSON.
        text: String,
    },
    /// Nothing more comes.
    End,
    /// The runner itself failed.
    Broken {
        /// Why.
        reason: String,
    },
}
