//! A real `berthd` under `strace` on a simulated machine, and what its clients were answered.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use berth_host::sim::Topology;
use berth_proto::v1::{self, reservations_client::ReservationsClient};
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use super::trace::{self, Event, Timed};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);
pub(crate) const CLIENTS: usize = 6;
/// Whatever changes files, makes that durable, or answers.
const CALLS: &str = "trace=openat,open,creat,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,\
                     copy_file_range,sendfile,splice,fsync,fdatasync,sync_file_range,msync,unlink,\
                     unlinkat,rename,renameat,renameat2,link,linkat,symlinkat,write,writev,sendto,\
                     sendmsg";

/// What was asked for a holder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Reserve,
    Attach,
    Renew,
    Release,
}

/// One life of a reservation, with all that was answered.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) holder: String,
    pub(crate) reservation: String,
    pub(crate) epoch: u64,
    pub(crate) device: String,
    pub(crate) answered: Vec<Asked>,
}

/// All of it.
pub(crate) struct Recorded {
    pub(crate) lives: Vec<Life>,
    pub(crate) events: Vec<Timed>,
}

/// The machine, as a file.
pub(crate) fn machine() -> Topology {
    Topology::generated(u32::try_from(CLIENTS).expect("few"))
}

fn device(client: usize) -> String {
    format!("0000:01:{client:02x}.0")
}

/// Runs it twice, `lives` for each client, stopped in order the first time and killed the second.
pub(crate) async fn record(dir: &Path, lives: usize) -> Recorded {
    fs::write(dir.join("machine.toml"), machine().to_toml().expect("a topology")).expect("written");
    let mut all = Vec::new();
    let mut text = String::new();
    for round in 0..2 {
        let daemon = Traced::start(dir, round).await;
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..CLIENTS {
            let channel = daemon.connect().await;
            clients.spawn(async move {
                let mut mine = Vec::new();
                for life in 0..lives {
                    let holder = format!("cut-{round}-{client:02}-{life:03}");
                    // The last ones stay as they are.
                    let most = if round == 1 && life + 1 == lives { client % 4 + 1 } else { 4 };
                    mine.push(live(channel.clone(), holder, client, most).await);
                }
                mine
            });
        }
        while let Some(mine) = clients.join_next().await {
            all.extend(mine.expect("a client that ends"));
        }
        text.push_str(&daemon.end(round == 0).await);
    }
    all.sort_by(|one: &Life, other| one.holder.cmp(&other.holder));
    let holders: Vec<String> = all.iter().map(|life| life.holder.clone()).collect();
    let events = trace::parse(&text, &dir.join("state"), &holders);
    for (holder, life) in all.iter().enumerate() {
        let left = |(_, event): &&Timed| matches!(event, Event::Answer { holder: of, .. } if *of == holder);
        let left = events.iter().filter(left).count();
        assert_eq!(left, life.answered.len(), "answers of {} in the trace", life.holder);
    }
    Recorded { lives: all, events }
}

async fn live(channel: Channel, holder: String, client: usize, most: usize) -> Life {
    let mut reservations = ReservationsClient::new(channel);
    let address = device(client);
    let pci = v1::device_address::Kind::Pci(address.clone());
    let request = v1::ReserveRequest {
        holder: holder.clone(),
        devices: vec![v1::DeviceAddress { kind: Some(pci) }],
        policy: v1::Policy::Exclusive.into(),
        ttl_ms: 3_600_000,
        ..v1::ReserveRequest::default()
    };
    let reserved = reservations.reserve(request).await.expect("a reservation").into_inner();
    let (id, epoch) = (reserved.id, reserved.epoch);
    let mut answered = vec![Asked::Reserve];
    if most > 1 {
        let request = v1::AttachRequest { id: id.clone(), ..v1::AttachRequest::default() };
        reservations.attach(request).await.expect("attached");
        answered.push(Asked::Attach);
    }
    if most > 2 {
        let request = v1::RenewRequest { id: id.clone(), ..v1::RenewRequest::default() };
        reservations.renew(request).await.expect("renewed");
        answered.push(Asked::Renew);
    }
    if most > 3 {
        let request = v1::ReleaseRequest { id: id.clone(), ..v1::ReleaseRequest::default() };
        reservations.release(request).await.expect("released");
        answered.push(Asked::Release);
    }
    Life { holder, reservation: id, epoch, device: address, answered }
}

/// A running `berthd`. Dropping it kills it.
struct Traced {
    child: Child,
    dir: PathBuf,
    trace: PathBuf,
}

impl Traced {
    async fn start(dir: &Path, round: usize) -> Self {
        let trace = dir.join(format!("trace-{round}"));
        let mut command = Command::new("strace");
        // The tracer as a grandchild: so that our child is berthd itself.
        command.args(["-D", "-f", "-q", "-y", "-xx", "-s", "1048576", "-e", CALLS, "-o"]);
        command.arg(&trace).arg(env!("CARGO_BIN_EXE_berthd"));
        command.arg("--host").arg(format!("sim:{}", dir.join("machine.toml").display()));
        command.arg("--state-dir").arg(dir.join("state"));
        for option in ["grpc", "http", "handover"] {
            let socket = format!("unix:{}", dir.join(option).display());
            command.arg(format!("--listen-{option}")).arg(socket);
        }
        let log = fs::File::options().create(true).append(true).open(dir.join("log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("a log"));
        let child = command.env("BERTH_LOG", "warn").spawn();
        let child = child.expect("strace can be started: is it installed?");
        let mut traced = Self { child, dir: dir.to_owned(), trace };
        traced.wait_until_it_serves().await;
        traced
    }

    async fn wait_until_it_serves(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait().expect("a child of ours");
            let log = || fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(ended.is_none(), "berthd ended with {ended:?}: {}", log());
            assert!(Instant::now() < deadline, "berthd isn't ready: {}", log());
            if self.dir.join("grpc").exists() {
                let channel = self.connect().await;
                let mut groups = v1::groups_client::GroupsClient::new(channel);
                if groups.list_groups(v1::ListGroupsRequest::default()).await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn connect(&self) -> Channel {
        let path = self.dir.join("grpc");
        Endpoint::from_static("http://berthd").connect_with_connector_lazy(tower::service_fn(
            move |_: http::Uri| {
                let path = path.clone();
                async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
            },
        ))
    }

    /// Stops it in order or kills it, and gives what was seen of it.
    async fn end(mut self, in_order: bool) -> String {
        if in_order {
            let pid = rustix::process::Pid::from_child(&self.child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        } else {
            self.child.kill().expect("a living child");
        }
        let pid = self.child.id();
        self.child.wait().expect("a child of ours");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&self.trace).expect("a trace");
            let last = text.lines().rev().take(64);
            let ends = |line: &str| line.starts_with(&format!("{pid} ")) && line.contains("+++ ");
            if last.into_iter().any(ends) {
                return text;
            }
            assert!(Instant::now() < deadline, "strace did not see berthd's end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
