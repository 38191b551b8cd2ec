//! 64 clients fight for 8 groups over gRPC; a part of the answers is lost, and asked for again.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use berth_host::sim::{SimHost, Topology};
use berth_proto::v1::{self, groups_client::GroupsClient, reservations_client::ReservationsClient};
use berthd::run::Daemon;
use hyper_util::rt::TokioIo;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};

use super::{
    checker::{Call, Op, Reply, linearizable},
    daemon_support,
};

const CLIENTS: u64 = 64;
const GROUPS: usize = 8;
const OPERATIONS: u64 = 10_000;

/// A clock that only orders.
#[derive(Default)]
struct Order(AtomicU64);

impl Order {
    fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

struct Shared {
    order: Order,
    left: AtomicU64,
    retries: AtomicU64,
    histories: Vec<Mutex<Vec<Op>>>,
    groups: Vec<String>,
}

struct Client {
    number: u64,
    calls: u64,
    random: StdRng,
    reservations: ReservationsClient<Channel>,
    groups: GroupsClient<Channel>,
    shared: Arc<Shared>,
    /// What it has: group and reservation.
    held: Option<(usize, String)>,
}

impl Client {
    async fn run(mut self) {
        while self
            .shared
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok()
        {
            let release = self.held.is_some() && self.random.random_bool(0.7);
            if release {
                self.release().await;
            } else if self.held.is_none() && self.random.random_bool(0.7) {
                self.reserve().await;
            } else {
                self.read().await;
            }
        }
    }

    fn request_id(&mut self) -> String {
        self.calls += 1;
        format!("{}-{}", self.number, self.calls)
    }

    /// Whether the next answer gets lost, and after how long nobody listens any more.
    fn loss(&mut self) -> Option<Duration> {
        let lost = self.random.random_bool(0.2);
        lost.then(|| Duration::from_micros(self.random.random_range(0..4000)))
    }

    fn record(&self, group: usize, call: Call, reply: Reply, called: u64) {
        let answered = self.shared.order.tick();
        let op = Op { call, reply, called, answered };
        self.shared.histories[group].lock().expect("no panic").push(op);
    }

    async fn reserve(&mut self) {
        let group = self.random.random_range(0..GROUPS);
        let request = v1::ReserveRequest {
            holder: format!("vm-{}", self.number),
            groups: vec![self.shared.groups[group].clone()],
            policy: v1::Policy::Exclusive.into(),
            request_id: self.request_id(),
            ..v1::ReserveRequest::default()
        };
        let called = self.shared.order.tick();
        let answer = loop {
            let loss = self.loss();
            let call = self.reservations.reserve(request.clone());
            match within(loss, call).await {
                Some(answer) => break answer,
                None => self.shared.retries.fetch_add(1, Ordering::SeqCst),
            };
        };
        let reply = match answer {
            Ok(held) => {
                let id = held.into_inner().id;
                self.held = Some((group, id.clone()));
                Reply::Reserved(id)
            }
            Err(status) => {
                assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
                assert!(status.message().contains("g-"), "names the group: {status}");
                Reply::Refused
            }
        };
        self.record(group, Call::Reserve, reply, called);
    }

    async fn release(&mut self) {
        let Some((group, id)) = self.held.take() else { return };
        let request = v1::ReleaseRequest {
            id: id.clone(),
            request_id: self.request_id(),
            ..v1::ReleaseRequest::default()
        };
        let called = self.shared.order.tick();
        let answer = loop {
            let loss = self.loss();
            let call = self.reservations.release(request.clone());
            match within(loss, call).await {
                Some(answer) => break answer,
                None => self.shared.retries.fetch_add(1, Ordering::SeqCst),
            };
        };
        let released = answer.expect("its own reservation").into_inner();
        assert_eq!(released.state(), v1::reservation::State::Released, "{released:?}");
        self.record(group, Call::Release(id), Reply::Released, called);
    }

    async fn read(&mut self) {
        let group = self.random.random_range(0..GROUPS);
        let request = v1::GetGroupRequest { group: self.shared.groups[group].clone() };
        let called = self.shared.order.tick();
        let shown = self.groups.get_group(request).await.expect("a group").into_inner();
        assert!(shown.reservations.len() <= 1, "two owners: {:?}", shown.reservations);
        let owner = shown.reservations.into_iter().next();
        self.record(group, Call::Read, Reply::Owner(owner), called);
    }
}

/// The answer, unless it comes too late.
async fn within<T>(limit: Option<Duration>, call: impl Future<Output = T>) -> Option<T> {
    match limit {
        Some(limit) => tokio::time::timeout(limit, call).await.ok(),
        None => Some(call.await),
    }
}

async fn start(dir: &std::path::Path) -> (Daemon, Arc<SimHost>) {
    let config = daemon_support::settings(dir, "", &["--host=sim"]);
    let count = u32::try_from(GROUPS).expect("few");
    let host = Arc::new(SimHost::from_topology(Topology::generated(count)));
    let daemon = Daemon::start(&config, Arc::clone(&host) as _).await.expect("the daemon starts");
    (daemon, host)
}

async fn channel(path: std::path::PathBuf) -> Channel {
    Endpoint::from_static("http://berthd")
        .connect_with_connector(tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .expect("berthd answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_see_one_order_of_events() {
    let dir = tempfile::tempdir().expect("a directory");
    let (daemon, _host) = start(dir.path()).await;
    let snapshot = daemon.service().snapshot();
    let groups: Vec<String> = snapshot.state.groups().map(|group| group.id.to_string()).collect();
    assert_eq!(groups.len(), GROUPS);
    let shared = Arc::new(Shared {
        order: Order::default(),
        left: AtomicU64::new(OPERATIONS),
        retries: AtomicU64::new(0),
        histories: (0..GROUPS).map(|_| Mutex::default()).collect(),
        groups,
    });
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let channel = channel(dir.path().join("berthd.sock")).await;
        let client = Client {
            number,
            calls: 0,
            random: StdRng::seed_from_u64(number),
            reservations: ReservationsClient::new(channel.clone()),
            groups: GroupsClient::new(channel),
            shared: Arc::clone(&shared),
            held: None,
        };
        clients.spawn(client.run());
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("no client panics");
    }
    let mut checked = 0;
    let mut granted = 0;
    for (group, history) in shared.histories.iter().enumerate() {
        let history = history.lock().expect("no panic");
        granted += history.iter().filter(|op| matches!(op.reply, Reply::Reserved(_))).count();
        assert!(linearizable(&history), "group {group}: {history:#?}");
        checked += history.len();
    }
    let retries = shared.retries.load(Ordering::SeqCst);
    println!("{checked} operations, {granted} granted, {retries} answers lost: linearizable");
    assert_eq!(u64::try_from(checked).expect("few"), OPERATIONS);
    assert!(granted > 100 && retries > 100, "{granted} granted, {retries} lost");
    daemon.stop().await;
}
