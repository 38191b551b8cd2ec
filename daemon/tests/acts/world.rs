//! A simulated machine with an engine and a book, and what must hold on it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use berth_host::{Host, Node, PciAddress, sim::SimHost};
use berth_ownership::{
    Backend, Command, Condition, Delivery, DomainId, Flags, Hold, HolderProcess, Order, Ownership,
    Policy, ReservationId, ReservationState, Reserve, ResetPolicy, TargetRequest,
};
use berthd::{
    acts::{Engine, EngineConfig, Records},
    fdstore::FdStore,
    reconcile,
};

use crate::{
    book::{Book, PATIENCE},
    crash::{Crash, CrashHost},
    kept::MemoryStore,
};

const DEADLINE: Duration = Duration::from_secs(30);

pub struct World {
    pub sim: SimHost,
    pub book: Arc<Book>,
    pub engine: Engine,
    pub crash: Arc<Crash>,
    /// Where descriptors outlive the daemon, if anywhere.
    pub store: Option<Arc<MemoryStore>>,
    before: Drivers,
}

type Drivers = BTreeMap<PciAddress, (Option<String>, Option<String>)>;

pub fn at(text: &str) -> PciAddress {
    text.parse().unwrap()
}

pub fn id(text: &str) -> ReservationId {
    ReservationId::new(text)
}

/// A scripted process as the record has it.
pub fn holder(process: &berth_host::sim::Foreign) -> HolderProcess {
    HolderProcess::new(process.pid().try_into().unwrap(), process.start_time())
}

/// This very process, which lives as long as any test.
pub fn myself() -> HolderProcess {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    let start_ticks = fields.split_ascii_whitespace().nth(19).unwrap().parse().unwrap();
    HolderProcess::new(std::process::id(), start_ticks)
}

fn drivers(sim: &SimHost) -> Drivers {
    let inventory = sim.scan().unwrap();
    inventory
        .devices
        .into_iter()
        .map(|facts| (facts.address, (facts.driver, facts.driver_override)))
        .collect()
}

impl World {
    pub fn new() -> Self {
        Self::on(SimHost::builtin("small").unwrap())
    }

    pub fn on(sim: SimHost) -> Self {
        Self::with(sim, false)
    }

    /// The same with a store of file descriptors.
    pub fn stored() -> Self {
        Self::with(SimHost::builtin("small").unwrap(), true)
    }

    pub fn with(sim: SimHost, stored: bool) -> Self {
        let crash = Arc::new(Crash::default());
        let store = stored.then(|| MemoryStore::new(&crash));
        let book = Book::new(&sim, &crash);
        let engine = engine(&sim, &book, &crash, store.as_ref(), DEADLINE);
        let before = drivers(&sim);
        Self { sim, book, engine, crash, store, before }
    }

    /// Another engine with a deadline of its own, before anything was done.
    pub fn engine_with(&mut self, deadline: Duration) {
        self.engine = engine(&self.sim, &self.book, &self.crash, self.store.as_ref(), deadline);
    }

    /// The process ends as it stands and a new one starts.
    pub fn restart(&mut self) -> reconcile::Report {
        self.engine.close(PATIENCE);
        if self.store.is_some() {
            // What was open was leaked, so that only the end of the process closes it.
            self.sim.end_this_process();
        }
        self.crash.arm(0);
        self.engine = engine(&self.sim, &self.book, &self.crash, self.store.as_ref(), DEADLINE);
        self.book.look();
        let engine = self.engine.clone();
        let open = self.book.open_intents();
        let passed = self.store.as_ref().map(|store| store.passed()).unwrap_or_default();
        let report = reconcile::run_with(&engine, open, Some("boot"), PATIENCE, passed);
        assert!(!report.late);
        self.book.settled();
        report
    }

    pub fn state(&self, name: &str) -> ReservationState {
        self.book.snapshot().state.reservation(&id(name)).unwrap().state
    }

    pub fn group_of(&self, device: &str) -> berth_ownership::GroupId {
        self.book.snapshot().group_of(at(device)).unwrap().id.clone()
    }

    pub fn number_of(&self, device: &str) -> u32 {
        self.sim.device(at(device)).unwrap().group.unwrap()
    }

    pub fn ownership(&self, device: &str) -> Ownership {
        let group = self.group_of(device);
        self.book.snapshot().state.group(&group).unwrap().ownership.clone()
    }

    pub fn reserve(&self, ask: &Ask) -> Result<(), Box<berth_ownership::Refusal>> {
        let command = Command::Reserve(Box::new(self.request(ask)));
        self.book.run(&command, &id(ask.name)).map(drop)
    }

    pub fn request(&self, ask: &Ask) -> Reserve {
        let mut targets: Vec<TargetRequest> = Vec::new();
        for device in ask.devices {
            let group = self.group_of(device);
            match targets.iter_mut().find(|target| target.group == group) {
                Some(target) => target.devices.push((*device).into()),
                None => targets.push(TargetRequest { group, devices: vec![(*device).into()] }),
            }
        }
        Reserve {
            id: id(ask.name),
            new_context: format!("c-{}", ask.name).into(),
            new_domain: format!("d-{}", ask.name).into(),
            holder: berth_ownership::Holder::new(ask.name),
            label: "tenant".into(),
            requester: "uid:0".to_owned(),
            for_identity: ask.uid.clone(),
            policy: ask.policy,
            delivery: ask.delivery,
            backend: ask.backend,
            targets,
            domain: ask.domain.map(DomainId::from),
            join: ask.join.map(id),
            memory_bytes: ask.memory_bytes,
            ttl_ms: None,
            flags: Flags { take_from_host: ask.take, host_uses_it_anyway: ask.take },
            reset_policy: ResetPolicy::AllowSameLabel,
            hold: Hold::Kernel,
            prepare: true,
        }
    }

    pub fn attach(&self, name: &str) -> Result<(), Box<berth_ownership::Refusal>> {
        let command = Command::Attach { order: Order::new(name), domain: None };
        self.book.run(&command, &id(name)).map(drop)
    }

    pub fn detach(&self, name: &str) -> Result<(), Box<berth_ownership::Refusal>> {
        self.book.run(&Command::Detach { order: Order::new(name) }, &id(name)).map(drop)
    }

    pub fn release(&self, name: &str) -> Result<(), Box<berth_ownership::Refusal>> {
        let command = Command::Release { order: Order::new(name), force: false };
        self.book.run(&command, &id(name)).map(drop)
    }

    /// Nothing runs any more and nothing is open.
    fn wait_idle(&self) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.engine.census() != Default::default() {
            let late = std::time::Instant::now() >= deadline;
            assert!(!late, "something is still open: {:?}", self.engine.census());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The crash did not come: nothing more is to be seen here.
    pub fn settle_down(&mut self) {
        self.crash.arm(0);
        self.give_all_back();
        self.check_given_back();
    }

    /// Releases every reservation, and gives host drivers back that were released on purpose.
    pub fn give_all_back(&self) {
        let names: Vec<ReservationId> = self
            .book
            .snapshot()
            .state
            .reservations()
            .filter(|record| record.state != ReservationState::Released)
            .map(|record| record.id.clone())
            .collect();
        for name in names {
            let order = Order::new(name.as_str());
            let done = self.book.run(&Command::Release { order, force: false }, &name).map(drop);
            assert_eq!(done.map_err(|refusal| refusal.message), Ok(()), "release of {name}");
        }
        for baseline in self.book.baselines() {
            let set = Command::KernelDmaSet { device: baseline.device, driver: None };
            self.book.order(&set).unwrap();
            self.book.settled();
        }
    }

    /// A process gets the descriptors of a reservation, as from the hand-over socket.
    pub fn hand_to(&self, process: &berth_host::sim::Foreign, name: &str) {
        let state = &self.book.snapshot().state;
        let record = state.reservation(&id(name)).unwrap();
        for device in record.devices() {
            let fd = self.engine.device_fd(device.as_str().parse().unwrap()).unwrap();
            process.receive(fd).unwrap();
        }
        let process = holder(process);
        self.book.order(&Command::HandOver { order: Order::new(name), process }).unwrap();
    }

    /// A process whose holder attaches by itself gets what it needs, as from the hand-over socket.
    pub fn hand_out(&self, process: &berth_host::sim::Foreign, name: &str) {
        self.hand_out_to(holder(process), name).unwrap();
        for fd in self.engine.handed_fds(&id(name)).unwrap() {
            process.receive(fd).unwrap();
        }
    }

    /// The hand-over alone.
    pub fn hand_out_to(
        &self,
        process: HolderProcess,
        name: &str,
    ) -> Result<(), Box<berth_ownership::Refusal>> {
        let command = Command::HandOver { order: Order::new(name), process };
        self.book.run(&command, &id(name)).map(drop)
    }

    /// The users that the access lists let in are those of reservations that are handed out, and
    /// whose holder hasn't ended.
    fn check_access(&self) {
        let state = &self.book.snapshot().state;
        let mut expected: BTreeMap<Node, Vec<u32>> = BTreeMap::new();
        for device in self.sim.scan().unwrap().devices {
            let number = device.group.into_iter().map(Node::Group);
            for node in number.chain([Node::Cdev(device.address), Node::Iommu]) {
                expected.entry(node).or_default();
            }
        }
        let node = |record: &&berth_ownership::Reservation| {
            record.delivery == Delivery::Node
                && record.is_handed_out()
                && record.state != ReservationState::Draining
        };
        for record in state.reservations().filter(node) {
            let uid: u32 = record.for_identity.strip_prefix("uid:").unwrap().parse().unwrap();
            let devices = record.devices().map(|device| at(device.as_str()));
            let nodes: Vec<Node> = match record.backend {
                Backend::Iommufd => devices.map(Node::Cdev).chain([Node::Iommu]).collect(),
                Backend::Type1 => devices
                    .map(|device| Node::Group(self.sim.device(device).unwrap().group.unwrap()))
                    .collect(),
            };
            for node in nodes {
                let users = expected.entry(node).or_default();
                users.retain(|known| *known != uid);
                users.push(uid);
            }
        }
        for (node, mut users) in expected {
            users.sort_unstable();
            assert_eq!(self.sim.access(node), users, "{node}");
        }
    }

    /// What must hold whenever no kernel work is under way.
    pub fn check(&self) {
        let snapshot = self.book.snapshot();
        let state = &snapshot.state;
        berth_ownership::invariants::check(state).unwrap();
        self.sim.check().unwrap();
        for group in state.groups() {
            let number = snapshot.group_number(&group.id).unwrap();
            let vfio = group.devices.iter().any(|device| {
                let facts = self.sim.device(device.as_str().parse().unwrap()).unwrap();
                facts.driver.as_deref() == Some(facts.vfio_driver.as_str())
            });
            let free = self.sim.probe_free(number).unwrap_or(!vfio);
            let held = state.reservations_of(group).next().is_some();
            if group.ownership == Ownership::Free && !held && vfio {
                assert!(free, "{} is free on record and not in the kernel", group.id);
            }
            if state.reservations_of(group).any(berth_ownership::Reservation::is_handed_out) {
                // The holder's to take: the kernel keeps others out once it did.
                let used = group
                    .devices
                    .iter()
                    .any(|device| self.sim.in_use(at(device.as_str())).unwrap());
                assert!(!used || !free, "{} is used and free", group.id);
            } else if held {
                assert!(!free, "{} is held on record and free in the kernel", group.id);
                let rival = self.sim.foreign_open_group(number);
                assert!(rival.is_err(), "a rival opened {}", group.id);
            }
        }
        self.check_access();
    }

    /// Everything given back: the machine is as it was, or says where it isn't.
    pub fn check_given_back(&self) {
        self.check();
        let snapshot = self.book.snapshot();
        let now = drivers(&self.sim);
        for (address, had) in &self.before {
            let device = snapshot.state.device(&address.to_string().as_str().into());
            let quarantined = device.is_some_and(|d| d.condition() == Condition::Quarantined);
            if !quarantined {
                assert_eq!(&now[address], had, "{address} is not as it was");
            }
        }
        self.wait_idle();
    }
}

fn engine(
    sim: &SimHost,
    book: &Arc<Book>,
    crash: &Arc<Crash>,
    store: Option<&Arc<MemoryStore>>,
    deadline: Duration,
) -> Engine {
    let host: Arc<dyn Host> = Arc::new(CrashHost { sim: sim.clone(), crash: Arc::clone(crash) });
    let records: Arc<dyn Records> = Arc::clone(book) as Arc<dyn Records>;
    let config = EngineConfig { deadline };
    let store = store.map(|store| Arc::clone(store) as Arc<dyn FdStore>);
    let engine = Engine::with_store(host, records, &config, store);
    book.set_executor(Arc::new(engine.clone()));
    engine
}

/// A reservation that a test asks for.
#[derive(Clone, Debug)]
pub struct Ask {
    pub name: &'static str,
    pub devices: &'static [&'static str],
    pub policy: Policy,
    pub delivery: Delivery,
    pub backend: Backend,
    pub take: bool,
    pub domain: Option<&'static str>,
    pub join: Option<&'static str>,
    pub uid: String,
    pub memory_bytes: u64,
}

impl Ask {
    pub fn new(name: &'static str, policy: Policy, devices: &'static [&'static str]) -> Self {
        Self {
            name,
            devices,
            policy,
            delivery: Delivery::Held,
            backend: Backend::Iommufd,
            take: false,
            domain: None,
            join: None,
            uid: format!("uid:{}", rustix::process::getuid().as_raw()),
            memory_bytes: 0,
        }
    }

    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    pub fn delivery(mut self, delivery: Delivery) -> Self {
        self.delivery = delivery;
        self
    }

    pub fn take(mut self) -> Self {
        self.take = true;
        self
    }

    pub fn domain(mut self, domain: &'static str) -> Self {
        self.domain = Some(domain);
        self
    }

    pub fn join(mut self, join: &'static str) -> Self {
        self.join = Some(join);
        self
    }
}
