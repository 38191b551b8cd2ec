//! A process that has a group open, unknown to the daemon, is found, named, adopted, watched, and
//! what it had is given back when it ends. The processes are real ones that have descriptors of the
//! simulated host.

#[path = "daemon_support/mod.rs"]
mod daemon_support;

use std::{
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use berth_host::{Act, Host as _, PciAddress, sim::SimHost};
use berth_ownership::Reason;
use berth_proto::v1::{self, owner::Kind, reservation::State};
use berthd::{
    model::{ApiError, Caller, Meta, Role},
    run::Daemon,
    service::Service,
};

const DEVICE: &str = "0000:00:06.0";
const OTHER: &str = "0000:00:05.0";
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that ends with this.
struct Owner(Child);

impl Owner {
    fn with(files: impl IntoIterator<Item = OwnedFd>) -> Self {
        let mut files = files.into_iter();
        let mut next = || files.next().map_or_else(Stdio::null, Stdio::from);
        let mut program = Command::new("sleep");
        program.arg("600").stdin(next()).stdout(next()).stderr(next());
        let child = program.spawn().expect("sleep is everywhere");
        // It has what it was given once it is the program that it is to be.
        let comm = format!("/proc/{}/comm", child.id());
        while std::fs::read_to_string(&comm).is_ok_and(|name| name.trim() != "sleep") {
            std::thread::sleep(Duration::from_millis(1));
        }
        Self(child)
    }

    fn pid(&self) -> i32 {
        self.0.id().try_into().expect("a pid")
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn at(text: &str) -> PciAddress {
    text.parse().expect("an address")
}

/// The devices are on vfio-pci before any daemon sees them.
fn machine() -> Arc<SimHost> {
    let sim = SimHost::builtin("small").expect("built in");
    for device in [DEVICE, OTHER] {
        let act = Act::Bind { device: at(device), driver: "vfio-pci".to_owned() };
        sim.perform(&act).expect("bound");
    }
    Arc::new(sim)
}

async fn start(dir: &Path, sim: &Arc<SimHost>) -> Daemon {
    let mut config = daemon_support::settings(dir, "", &["--host=sim:small"]);
    config.timeouts.drain_ms = 2_000;
    config.timeouts.rescan_ms = 3_600_000;
    Daemon::start(&config, Arc::clone(sim) as _).await.expect("the daemon starts")
}

fn operator() -> Caller {
    Caller::unix(0, None, Role::Operator)
}

fn pci(device: &str) -> v1::DeviceAddress {
    v1::DeviceAddress { kind: Some(v1::device_address::Kind::Pci(device.to_owned())) }
}

fn adopt(pid: i32, devices: &[&str]) -> v1::AdoptRequest {
    v1::AdoptRequest {
        pid,
        holder: "vm".to_owned(),
        devices: devices.iter().map(|device| pci(device)).collect(),
        ..v1::AdoptRequest::default()
    }
}

fn reserve(device: &str) -> v1::ReserveRequest {
    v1::ReserveRequest {
        holder: "other".to_owned(),
        devices: vec![pci(device)],
        policy: v1::Policy::Exclusive.into(),
        ..v1::ReserveRequest::default()
    }
}

async fn group(service: &Service) -> v1::Group {
    let request = v1::GetGroupRequest { group: DEVICE.to_owned() };
    service.get_group(&operator(), request).await.expect("a group")
}

async fn refused(service: &Service, request: v1::AdoptRequest) -> ApiError {
    service.adopt(&operator(), request).await.expect_err("it may not be adopted")
}

async fn until(service: &Service, id: &str, state: State) -> v1::Reservation {
    let begun = std::time::Instant::now();
    loop {
        let request = v1::GetReservationRequest { id: id.to_owned() };
        let now = service.get_reservation(&operator(), request).await.expect("on record");
        if now.state() == state && now.pending.is_empty() {
            return now;
        }
        assert!(begun.elapsed() < PATIENCE, "{id} stays {now:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// From a foreign owner to the end of the holder that it became, over a restart of the daemon.
async fn lives(files: impl Fn(&SimHost) -> Vec<OwnedFd>) {
    let (sim, dir) = (machine(), tempfile::tempdir().expect("a directory"));
    let owner = Owner::with(files(&sim));
    let daemon = start(dir.path(), &sim).await;
    let service = Arc::clone(daemon.service());
    let found = group(&service).await;
    assert_eq!(found.ownership(), Kind::Foreign);
    let process = &found.owner.as_ref().expect("an owner").processes[0];
    assert_eq!((process.pid, process.name.as_str()), (owner.pid(), "sleep"));
    assert_eq!(found.devices[0].foreign[0].pid, owner.pid());

    let refusal = service.reserve(&operator(), reserve(DEVICE)).await.expect_err("it is owned");
    assert_eq!(refusal.reason(), Reason::ForeignOwner);
    let named = format!("sleep ({})", owner.pid());
    assert!(refusal.refusal().message.contains(&named), "{refusal}");
    let way =
        format!("berth adopt --group {} --pid {} --holder NAME", found.stable_id, owner.pid());
    assert!(refusal.refusal().resolve.contains(&way), "{refusal:?}");

    let request =
        v1::AdoptRequest { request_id: "once".to_owned(), ..adopt(owner.pid(), &[DEVICE]) };
    let dry = v1::AdoptRequest { dry_run: true, request_id: String::new(), ..request.clone() };
    assert!(service.adopt(&operator(), dry).await.expect("a dry run").adopted);
    let adopted = service.adopt(&operator(), request.clone()).await.expect("adopted");
    assert_eq!((adopted.delivery(), adopted.policy()), (v1::Delivery::Node, v1::Policy::Exclusive));
    let held = until(&service, &adopted.id, State::Held).await;
    assert!(held.adopted && held.epoch > 0);
    assert_eq!(held.claims[0].processes[0].pid, owner.pid());
    let again = service.adopt(&operator(), request).await.expect("the same answer");
    assert_eq!(again.id, adopted.id);
    // Its holder isn't foreign, however often one looks.
    service.ledger().rescan(Meta::internal("test")).await.expect("looked");
    let now = group(&service).await;
    assert_eq!((now.ownership(), now.drift.as_str()), (Kind::Exclusive, ""));
    drop(service);

    daemon.stop().await;
    let daemon = start(dir.path(), &sim).await;
    let service = Arc::clone(daemon.service());
    let held = until(&service, &adopted.id, State::Held).await;
    assert_eq!(held.claims[0].processes[0].pid, owner.pid());
    drop(owner);
    let ended = until(&service, &adopted.id, State::Released).await;
    let back = &ended.given_back[0];
    assert_eq!((back.reset(), back.driver.as_str()), (v1::given_back::Reset::Verified, "vfio-pci"));
    assert!(back.baseline_restored);
    let facts = sim.device(at(DEVICE)).expect("it is there");
    assert_eq!(facts.driver_override.as_deref(), Some("vfio-pci"));
    let free = group(&service).await;
    assert_eq!((free.ownership(), free.reservations.len()), (Kind::Free, 0));
    assert!(sim.probe_free(free.number).expect("it can be asked"));
    drop(service);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_by_the_group_is_adopted() {
    lives(|sim| sim.open_by_group_for(at(DEVICE)).expect("opened").into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_by_a_cdev_is_adopted() {
    lives(|sim| sim.bind_for(at(DEVICE)).expect("bound").into()).await;
}

/// What a test looks for in the history.
async fn kinds(service: &Service) -> Vec<String> {
    let request = v1::ListEventsRequest { object: DEVICE.to_owned(), ..Default::default() };
    let listed = service.list_events(&operator(), request).await.expect("events");
    listed.events.into_iter().map(|event| event.kind).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_have_it_alone_is_not_adopted() {
    let (sim, dir) = (machine(), tempfile::tempdir().expect("a directory"));
    let daemon = start(dir.path(), &sim).await;
    let service = Arc::clone(daemon.service());
    let idle = Owner::with([]);
    assert_eq!(refused(&service, adopt(idle.pid(), &[DEVICE])).await.reason(), Reason::NotTheOwner);
    let [cdev, iommufd] = sim.bind_for(at(DEVICE)).expect("bound");
    let twice = [cdev.try_clone().expect("a duplicate"), iommufd.try_clone().expect("one more")];
    let owner = Owner::with([cdev, iommufd]);
    let wrong = refused(&service, adopt(idle.pid(), &[DEVICE])).await;
    assert_eq!(wrong.reason(), Reason::ForeignOwner);
    assert!(wrong.refusal().message.contains(&owner.pid().to_string()), "{wrong}");
    // One of the groups only: none is adopted.
    let half = refused(&service, adopt(owner.pid(), &[DEVICE, OTHER])).await;
    assert_eq!(half.reason(), Reason::NotTheOwner);
    let dead = {
        let process = Owner::with([]);
        process.pid()
    };
    assert_eq!(refused(&service, adopt(dead, &[DEVICE])).await.reason(), Reason::NotFound);
    assert_eq!(refused(&service, adopt(0, &[DEVICE])).await.reason(), Reason::InvalidArgument);
    let viewer = Caller::unix(0, None, Role::Orchestrator);
    let denied = service.adopt(&viewer, adopt(owner.pid(), &[DEVICE])).await.expect_err("a role");
    assert_eq!(denied.reason(), Reason::PermissionDenied);
    let second = Owner::with(twice);
    let both = refused(&service, adopt(owner.pid(), &[DEVICE])).await;
    assert_eq!(both.reason(), Reason::ForeignOwner);
    assert!(both.refusal().message.contains(&second.pid().to_string()), "{both}");
    drop((second, owner));
    service.ledger().rescan(Meta::internal("test")).await.expect("looked");
    assert_eq!(group(&service).await.ownership(), Kind::Free);
    let seen = kinds(&service).await;
    for kind in ["group.foreign_owner_came", "group.foreign_owner_went"] {
        assert!(seen.iter().any(|it| it == kind), "{kind} in {seen:?}");
    }
    assert!(!seen.iter().any(|it| it.starts_with("reservation.")), "{seen:?}");
    drop(service);
    daemon.stop().await;
}
