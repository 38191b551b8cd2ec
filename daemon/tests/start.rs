//! Starting on a tree of many devices: what is on record stays exactly as it was where the machine
//! is as it was, and ends where it is not.

#[path = "daemon_support/mod.rs"]
mod daemon_support;

use std::{path::Path, sync::Arc};

use berth_host::{
    PciAddress,
    linux::{
        Direct, LinuxConfig, LinuxHost,
        testing::{ConfigBytes, build_large},
    },
};
use berth_ownership::{
    Backend, Command, Delivery, DeviceId, DriverDma, Flags, GroupId, Hold, Ownership, Parts,
    Policy, ReservationState, Reserve, ResetPolicy, TargetRequest,
};
use berthd::{
    ledger::{self, LedgerConfig, Opened},
    model::Meta,
    run::Daemon,
};
use tempfile::TempDir;

/// More devices than the scan takes in one piece.
const SEVERAL: u32 = 600;
/// More than the store reads in one piece.
const MANY: u32 = 2100;

fn host(tree: &Path) -> Arc<LinuxHost> {
    let privileged = Arc::new(Direct::new(tree));
    Arc::new(LinuxHost::new(LinuxConfig { root: tree.to_owned(), privileged }))
}

async fn open(tree: &Path, state: &Path) -> Opened {
    ledger::open(LedgerConfig::new(state), host(tree)).await.expect("a store that opens")
}

/// A directory in memory where there can be one, as a tree has tens of thousands of files.
fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// What is on record, and the last event.
async fn record(tree: &Path, state: &Path) -> (Parts, u64) {
    let opened = open(tree, state).await;
    let snapshot = opened.ledger.snapshot();
    let found = (snapshot.state.parts(), snapshot.seq);
    drop((snapshot, opened.ledger));
    opened.task.await.expect("the ledger ends");
    found
}

/// Starts a daemon and stops it once it is ready.
async fn start(dir: &Path) {
    let config = daemon_support::settings(dir, "", &[]);
    let daemon = Daemon::start(&config, host(&dir.join("tree"))).await.expect("the daemon starts");
    assert!(daemon.is_ready());
    daemon.stop().await;
}

fn order(number: usize, group: GroupId) -> Command {
    let id = |letter: &str| format!("{letter}-{number:012x}");
    Command::Reserve(Box::new(Reserve {
        id: id("r").into(),
        new_context: id("c").into(),
        new_domain: id("d").into(),
        holder: "vm".into(),
        label: "uid:0".into(),
        requester: "uid:0".to_owned(),
        for_identity: "uid:0".to_owned(),
        policy: Policy::Exclusive,
        delivery: Delivery::Bound,
        backend: Backend::Iommufd,
        targets: vec![TargetRequest { group, devices: Vec::new() }],
        domain: None,
        join: None,
        memory_bytes: 1 << 30,
        ttl_ms: None,
        flags: Flags { take_from_host: false, host_uses_it_anyway: false },
        reset_policy: ResetPolicy::AllowSameLabel,
        hold: Hold::Ledger,
        prepare: false,
    }))
}

/// Reserves every group of the tree.
async fn reserve_all(tree: &Path, state: &Path) {
    let opened = open(tree, state).await;
    opened.ledger.rescan(Meta::internal("test")).await.expect("a scan");
    let groups: Vec<GroupId> =
        opened.ledger.snapshot().state.groups().map(|group| group.id.clone()).collect();
    let orders = groups.into_iter().enumerate().map(|(number, group)| order(number, group));
    for orders in orders.collect::<Vec<_>>().chunks(256) {
        let reserved = opened.ledger.submit_all(orders.to_vec(), Meta::internal("test")).await;
        reserved.expect("every group is free");
    }
    assert!(opened.ledger.snapshot().intents.is_empty());
    drop(opened.ledger);
    opened.task.await.expect("the ledger ends");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_is_as_it_was_changes_nothing() {
    let dir = directory();
    let (tree, state) = (dir.path().join("tree"), dir.path().join("state"));
    build_large(&tree, MANY).expect("a tree");
    reserve_all(&tree, &state).await;
    let before = record(&tree, &state).await;
    assert_eq!(before.0.reservations.len(), usize::try_from(MANY).expect("small"));
    assert_eq!(before.0.devices.len(), before.0.reservations.len());
    start(dir.path()).await;
    let after = record(&tree, &state).await;
    assert!(before == after, "the record changed, or an event was added");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_gone_or_another_device_now_is_lost_and_nothing_else() {
    let dir = directory();
    let (tree, state) = (dir.path().join("tree"), dir.path().join("state"));
    let built = build_large(&tree, SEVERAL).expect("a tree");
    reserve_all(&tree, &state).await;
    let at = |text: &str| text.parse::<PciAddress>().expect("an address");
    let (gone, other) = (at("0000:01:03.0"), at("0000:02:04.0"));
    std::fs::remove_file(tree.join(format!("sys/bus/pci/devices/{gone}"))).expect("unplugged");
    let config = ConfigBytes::endpoint(0x8086, 0x10c9, 0x02_00_00).acs(0x1d, 0x1d);
    built.file(&format!("sys/devices/{}/config", built.place(other)), config.bytes()).expect("set");
    start(dir.path()).await;
    let (parts, _) = record(&tree, &state).await;
    let count = |wanted| parts.reservations.iter().filter(|it| it.state == wanted).count();
    let all = usize::try_from(SEVERAL).expect("small");
    assert_eq!(count(ReservationState::Reserved), all - 2);
    assert_eq!(count(ReservationState::Lost), 2);
    let free = parts.groups.iter().filter(|group| group.reservations.is_empty());
    let free: Vec<&str> = free.flat_map(|group| &group.devices).map(DeviceId::as_str).collect();
    assert_eq!(free, [other.to_string()], "the one that is another now may be reserved anew");
    assert!(parts.devices.iter().all(|device| device.facts.id.as_str() != gone.to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_was_bound_meanwhile_is_recorded_and_nothing_else() {
    let dir = directory();
    let (tree, state) = (dir.path().join("tree"), dir.path().join("state"));
    let built = build_large(&tree, 64).expect("a tree");
    reserve_all(&tree, &state).await;
    let (mut expected, _) = record(&tree, &state).await;
    let bound = "0000:01:03.0".parse::<PciAddress>().expect("an address");
    let driver = dir.path().join("tree/sys/bus/pci/drivers/mlx5_core");
    std::fs::create_dir_all(&driver).expect("a driver");
    let link = format!("sys/devices/{}/driver", built.place(bound));
    std::os::unix::fs::symlink(&driver, tree.join(link)).expect("bound");
    start(dir.path()).await;
    let (parts, _) = record(&tree, &state).await;
    let device = expected.devices.iter_mut().find(|it| it.facts.id.as_str() == bound.to_string());
    let device = device.expect("recorded");
    device.facts.dma = DriverDma::Kernel("mlx5_core".to_owned());
    let group = expected.groups.iter_mut().find(|group| group.devices.contains(&device.facts.id));
    group.expect("recorded").ownership = Ownership::Kernel { n: 1 };
    assert!(parts == expected, "more or less than one driver and its claim changed");
}
