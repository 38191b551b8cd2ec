//! A daemon in this process on a simulated host that is made for the walk: every cell gets groups
//! of its own, so that cells don't see each other.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use berth_host::{
    Grouping, GroupingCode, Host, PciAddress,
    sim::{Fault, Foreign, Rule, SimHost, Site, Topology},
};
use berth_ownership::Table;
use berth_proto::v1;
use berthd::{config::Config, ledger::LedgerHandle, run::Daemon};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

/// How long the helper waits for an act: longer than any walk, so that what hangs stays stuck.
const HELPER_TIMEOUT_MS: u64 = 600_000;

/// What a display has in a topology that shows the console.
const DISPLAY: &str = "class = 0x030000\n\
                       uses = [{ kind = \"boot-display\", detail = \"the console's display\" }]\n";

/// What a group is like when the daemon starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// One device without a driver.
    Single,
    /// Two devices without a driver.
    Pair,
    /// One device on a host driver.
    Kernel,
    /// Two devices, the second on a host driver.
    KernelPair,
    /// Two devices, both on host drivers.
    KernelBoth,
    /// One device on a host driver, and mounted.
    Uses,
    /// Two devices without a driver; the console is shown on the first.
    Display,
    /// One device that another process has bound to an iommufd of its own.
    Foreign,
    /// Two devices, the first bound by another process.
    ForeignPair,
    /// One device on a host driver that attached a domain of its own, and then a second one.
    PrivatePair,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Single,
        Self::Pair,
        Self::Kernel,
        Self::KernelPair,
        Self::KernelBoth,
        Self::Uses,
        Self::Display,
        Self::Foreign,
        Self::ForeignPair,
        Self::PrivatePair,
    ];

    /// How many groups of this kind a walk over so many cells needs at most.
    fn count(self, cells: usize) -> usize {
        match self {
            Self::Single => 3 * cells + 4,
            Self::Pair => cells + 4,
            Self::Kernel => cells.min(24) + 1,
            Self::KernelPair | Self::KernelBoth | Self::Uses => cells.min(8) + 1,
            Self::Display | Self::PrivatePair => cells.min(2) + 1,
            Self::Foreign | Self::ForeignPair => cells.min(12) + 1,
        }
    }

    fn pair(self) -> bool {
        match self {
            Self::Pair
            | Self::KernelPair
            | Self::KernelBoth
            | Self::Display
            | Self::ForeignPair => true,
            Self::Single | Self::Kernel | Self::Uses | Self::Foreign | Self::PrivatePair => false,
        }
    }

    /// Whether the second device is plugged in later.
    fn grows(self) -> bool {
        self == Self::PrivatePair
    }

    /// Drivers of the two devices at boot.
    fn drivers(self) -> [Option<&'static str>; 2] {
        match self {
            Self::Single | Self::Pair | Self::Display => [None, None],
            Self::Kernel | Self::Uses | Self::PrivatePair => [Some("nvme"), None],
            Self::KernelPair => [None, Some("nvme")],
            Self::KernelBoth => [Some("nvme"), Some("nvme")],
            Self::Foreign | Self::ForeignPair => [Some("vfio-pci"), None],
        }
    }
}

/// A group, by its devices.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The first device.
    pub(crate) a: String,
    /// The second; the first again where there is none.
    pub(crate) b: String,
}

/// A daemon and its machine.
pub(crate) struct World {
    pub(crate) sim: Arc<SimHost>,
    pub(crate) ledger: LedgerHandle,
    pub(crate) channel: Channel,
    /// What carries reservations that don't join others.
    pub(crate) backend: v1::Backend,
    places: Mutex<BTreeMap<Kind, Vec<Place>>>,
    daemon: Daemon,
    rivals: Vec<Foreign>,
    dir: tempfile::TempDir,
}

impl World {
    /// Starts a daemon under a table, on a machine that is large enough for so many cells.
    pub(crate) async fn start(table: Table, cells: usize) -> Self {
        Self::start_with(table, cells, HELPER_TIMEOUT_MS).await
    }

    /// The same on a machine whose helper gives acts up after `helper_timeout_ms`.
    pub(crate) async fn start_with(table: Table, cells: usize, helper_timeout_ms: u64) -> Self {
        let (text, places) = machine(cells);
        let topology = Topology::parse(&text, "cells").expect("a topology that is right");
        let sim = topology.with_helper_timeout_ms(helper_timeout_ms);
        let sim = Arc::new(SimHost::from_topology(sim));
        let rivals = [Kind::Foreign, Kind::ForeignPair]
            .iter()
            .flat_map(|kind| &places[kind])
            .map(|place| sim.foreign_bind(address(&place.a)).expect("nobody has it"))
            .collect();
        for place in &places[&Kind::PrivatePair] {
            sim.host_driver_attach(address(&place.a)).expect("it is alone");
            let why = Grouping {
                code: GroupingCode::Multifunction,
                cause: None,
                text: "plugged in beside it".to_owned(),
            };
            sim.plug_beside(address(&place.b), address(&place.a), &why).expect("a free slot");
        }
        let dir = directory();
        let (daemon, ledger, channel) = serve(dir.path(), &sim, table).await;
        let backend = v1::Backend::Iommufd;
        Self { sim, ledger, channel, backend, places: Mutex::new(places), daemon, rivals, dir }
    }

    /// The same on another back end.
    pub(crate) fn on(mut self, backend: v1::Backend) -> Self {
        self.backend = backend;
        self
    }

    /// A group that nothing has happened to yet.
    pub(crate) fn place(&self, kind: Kind) -> Place {
        let mut places = self.places.lock().expect("no panic");
        places.get_mut(&kind).and_then(Vec::pop).unwrap_or_else(|| panic!("no {kind:?} is left"))
    }

    /// Makes the next call of this kind hang until the world ends.
    pub(crate) fn hang(&self, site: Site, device: &str) {
        self.sim.fault(Fault::at(site).device(address(device)).hang());
    }

    /// A host driver turns up on a device of a group that is owned: the kernel would refuse that,
    /// so its rule is broken first.
    pub(crate) fn drift(&self, device: &str) {
        self.sim.break_rule(Rule::OwnedRefusesDrivers);
        self.sim.host_driver_bind(address(device), "nvme").expect("no rule is in the way");
    }

    /// Ends the daemon.
    pub(crate) async fn stop(self) {
        self.sim.clear_faults();
        let Self { channel, ledger, daemon, rivals, dir, .. } = self;
        drop((channel, ledger));
        daemon.stop().await;
        drop((rivals, dir));
    }

    /// Ends the daemon, and starts one under a table on the same record and machine.
    pub(crate) async fn restart(self, table: Table) -> Self {
        let Self { sim, channel, backend, ledger, daemon, rivals, dir, places } = self;
        drop((channel, ledger));
        daemon.stop().await;
        let (daemon, ledger, channel) = serve(dir.path(), &sim, table).await;
        Self { sim, ledger, channel, backend, places, daemon, rivals, dir }
    }

    /// The socket where holders fetch their devices.
    pub(crate) fn handover_socket(&self) -> PathBuf {
        self.dir.path().join("handover.sock")
    }
}

async fn serve(dir: &Path, sim: &Arc<SimHost>, table: Table) -> (Daemon, LedgerHandle, Channel) {
    let host = Arc::clone(sim) as Arc<dyn Host>;
    let daemon =
        Daemon::start_on(&config(dir), host, Vec::new(), table).await.expect("the daemon starts");
    let ledger = daemon.service().ledger().clone();
    looked_at(&ledger).await;
    (daemon, ledger, channel(&dir.join("berthd.sock")).await)
}

/// The condition of all devices was looked at: it isn't again, so that what the walk says of it stays
/// said.
async fn looked_at(ledger: &LedgerHandle) {
    let looked = async {
        while ledger.snapshot().health.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), looked).await.expect("conditions are looked at");
}

/// The address in words.
pub(crate) fn address(text: &str) -> PciAddress {
    text.parse().expect("a PCI address")
}

/// The text of a topology, and the groups in it.
fn machine(cells: usize) -> (String, BTreeMap<Kind, Vec<Place>>) {
    let mut text = "name = \"cells\"\n\n[template.disk]\nvendor = 0x1234\ndevice = 0x11e8\n\
                    class = 0x010802\nreset_methods = [\"flr\"]\ndrivers = [\"nvme\"]\n"
        .to_owned();
    let mut places = BTreeMap::new();
    let mut number = 0;
    for (domain, kind) in Kind::ALL.into_iter().enumerate() {
        let mut list = Vec::new();
        for index in 0..kind.count(cells) {
            let at = |slot: usize| {
                format!("{domain:04x}:{:02x}:{:02x}.0", index / 16 + 1, index % 16 * 2 + slot)
            };
            let (a, second) = (at(0), kind.pair().then(|| at(1)));
            for (slot, device) in [Some(&a), second.as_ref()].into_iter().flatten().enumerate() {
                let _ = write!(
                    text,
                    "\n[[device]]\naddress = \"{device}\"\nlike = \"disk\"\ngroup = {number}\n"
                );
                if let Some(driver) = kind.drivers()[slot] {
                    let _ = writeln!(text, "driver = \"{driver}\"");
                }
                if kind == Kind::Display && slot == 0 {
                    text.push_str(DISPLAY);
                }
                if kind == Kind::Uses {
                    text.push_str("uses = [{ kind = \"mount\", detail = \"/srv\" }]\n");
                }
            }
            let later = kind.grows().then(|| at(1));
            let b = second.or(later).unwrap_or_else(|| a.clone());
            list.push(Place { a, b });
            number += 1;
        }
        places.insert(kind, list);
    }
    (text, places)
}

/// In memory where there is such a place: the walk is not about disks.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a directory")
}

fn config(dir: &Path) -> Config {
    let mut config = crate::daemon_support::settings(dir, "", &["--host=sim:small"]);
    config.timeouts.drain_ms = 2_000;
    // What the walk says of the host stays said.
    config.timeouts.rescan_ms = 3_600_000;
    config.condition.poll = Duration::from_secs(3600);
    config
}

async fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    Endpoint::from_static("http://berthd")
        .connect_timeout(Duration::from_secs(60))
        .connect_with_connector(tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .expect("berthd answers")
}
