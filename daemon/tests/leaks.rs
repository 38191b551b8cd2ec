//! After a thousand reservations that were attached, handed over and given back, `berthd` has what
//! it had: descriptors, threads, children, and about its memory.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic as tests do")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use berth_handover::Client;
use berth_proto::v1::{self, reservations_client::ReservationsClient};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

const PATIENCE: Duration = Duration::from_secs(120);
const DEVICE: &str = "0000:00:06.0";
const CYCLES: usize = 1000;
/// Until its pools and caches are as large as they get.
const WARM_UP: usize = 100;
/// What allocators and SQLite's cache may keep beyond that; a leak of 32 KiB a cycle is more.
const SLACK_BYTES: u64 = 24 << 20;

/// A process of its own, so that only its descriptors are counted.
struct Berthd {
    child: Child,
    dir: tempfile::TempDir,
}

impl Berthd {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let unix = |name: &str| format!("unix:{}", dir.path().join(name).display());
        let log = fs::File::create(dir.path().join("log")).unwrap();
        fs::write(dir.path().join("berthd.toml"), "").unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_berthd"))
            .args(["--host", "sim:small", "--config"])
            .arg(dir.path().join("berthd.toml"))
            .arg("--state-dir")
            .arg(dir.path().join("state"))
            .args(["--listen-grpc", &unix("grpc"), "--listen-http", &unix("http")])
            .args(["--listen-handover", &unix("handover")])
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn client(&self) -> ReservationsClient<Channel> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let path = self.path("grpc");
            let connector = tower::service_fn(move |_: http::Uri| {
                let path = path.clone();
                async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
            });
            let endpoint = Endpoint::from_static("http://berthd");
            if let Ok(channel) = endpoint.connect_with_connector(connector).await {
                let mut client = ReservationsClient::new(channel);
                if client.list_reservations(v1::ListReservationsRequest {}).await.is_ok() {
                    return client;
                }
            }
            assert!(Instant::now() < deadline, "it isn't ready: {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn count(&self) -> Count {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let mut fds: BTreeMap<String, usize> = BTreeMap::new();
        for entry in fs::read_dir(proc.join("fd")).unwrap().flatten() {
            // One that was closed meanwhile is none.
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            *fds.entry(kind(&target)).or_default() += 1;
        }
        let tasks: Vec<PathBuf> =
            fs::read_dir(proc.join("task")).unwrap().flatten().map(|task| task.path()).collect();
        let children = tasks
            .iter()
            .filter_map(|task| fs::read_to_string(task.join("children")).ok())
            .map(|line| line.split_ascii_whitespace().count())
            .sum();
        let status = fs::read_to_string(proc.join("status")).unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib: u64 = rss.trim().trim_end_matches(" kB").parse().unwrap();
        Count { fds, threads: tasks.len(), children, rss_bytes: kib * 1024 }
    }
}

impl Drop for Berthd {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a descriptor is of, without numbers that differ from one to the next.
fn kind(target: &Path) -> String {
    let text = target.display().to_string();
    text.split(':').next().unwrap_or_default().to_owned()
}

#[derive(Clone, Debug)]
struct Count {
    fds: BTreeMap<String, usize>,
    threads: usize,
    children: usize,
    rss_bytes: u64,
}

impl Count {
    fn is_within(&self, before: &Self) -> bool {
        self.fds.iter().all(|(kind, count)| before.fds.get(kind) >= Some(count))
            && self.threads <= before.threads
            && self.children <= before.children
    }
}

/// The deliveries and back ends, in turn.
const KINDS: [(v1::Policy, v1::Delivery, v1::Backend); 8] = [
    (v1::Policy::Exclusive, v1::Delivery::Bound, v1::Backend::Iommufd),
    (v1::Policy::Exclusive, v1::Delivery::Bound, v1::Backend::Type1),
    (v1::Policy::Exclusive, v1::Delivery::Unbound, v1::Backend::Iommufd),
    (v1::Policy::Exclusive, v1::Delivery::Node, v1::Backend::Iommufd),
    (v1::Policy::Exclusive, v1::Delivery::Node, v1::Backend::Type1),
    (v1::Policy::Shared, v1::Delivery::Bound, v1::Backend::Iommufd),
    (v1::Policy::Group, v1::Delivery::Held, v1::Backend::Iommufd),
    (v1::Policy::Group, v1::Delivery::Held, v1::Backend::Type1),
];

async fn cycle(berthd: &Berthd, client: &mut ReservationsClient<Channel>, number: usize) {
    let (policy, delivery, backend) = KINDS[number % KINDS.len()];
    let pci = v1::device_address::Kind::Pci(DEVICE.to_owned());
    let request = v1::ReserveRequest {
        holder: format!("vm{number}"),
        devices: vec![v1::DeviceAddress { kind: Some(pci) }],
        policy: policy.into(),
        delivery: delivery.into(),
        backend: backend.into(),
        request_id: format!("reserve-{number}"),
        ..v1::ReserveRequest::default()
    };
    let id = client.reserve(request).await.unwrap().into_inner().id;
    let by_itself = matches!(delivery, v1::Delivery::Unbound | v1::Delivery::Node);
    if !by_itself {
        let request_id = format!("attach-{number}");
        let attach = v1::AttachRequest { id: id.clone(), request_id, ..Default::default() };
        client.attach(attach).await.unwrap();
    }
    if delivery != v1::Delivery::Held {
        let (path, name) = (berthd.path("handover"), id.clone());
        let fetch = move || Client::connect(path).unwrap().fetch(&name, 0).map(|got| got.fds.len());
        let fetched = tokio::task::spawn_blocking(fetch).await.unwrap().unwrap();
        assert_eq!(fetched > 0, delivery != v1::Delivery::Node, "{delivery:?}");
    }
    let request_id = format!("release-{number}");
    let release = v1::ReleaseRequest { id, request_id, ..Default::default() };
    let released = client.release(release).await.unwrap().into_inner();
    assert_eq!(released.state(), v1::reservation::State::Released, "{released:?}");
}

/// The count, once what closes behind an answer is closed.
async fn settled(berthd: &Berthd, before: &Count) -> Count {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = berthd.count();
        if now.is_within(before) || Instant::now() >= deadline {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_lives_leave_nothing_behind() {
    let berthd = Berthd::start();
    let mut client = berthd.client().await;
    for number in 0..WARM_UP {
        cycle(&berthd, &mut client, number).await;
    }
    let before = berthd.count();
    let start = Instant::now();
    for number in WARM_UP..WARM_UP + CYCLES {
        cycle(&berthd, &mut client, number).await;
    }
    let took = start.elapsed();
    let after = settled(&berthd, &before).await;
    println!("{CYCLES} cycles in {took:?}\nbefore {before:?}\nafter  {after:?}");
    assert!(after.is_within(&before), "before {before:?}, after {after:?}");
    let grown = after.rss_bytes.saturating_sub(before.rss_bytes);
    assert!(grown <= SLACK_BYTES, "grown by {grown} bytes: before {before:?}, after {after:?}");
}
