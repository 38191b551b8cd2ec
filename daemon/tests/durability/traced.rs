//! The real `berthd` under `strace`, with its state on the disk that the target directory is on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use berth_host::sim::Topology;
use berth_proto::v1;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use crate::trace::Trace;

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Devices of the machine, each in a group of its own.
pub(crate) const DEVICES: usize = 512;
/// Every way to read from a socket, to write to one or to a file, and to make that durable.
const CALLS: &str = "trace=read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,pwrite64,\
                     pwritev,pwritev2,fdatasync,fsync,sync_file_range,msync";

/// A running `berthd`. Dropping it kills it.
pub(crate) struct Traced {
    child: Child,
    // Sockets here: the path of a socket must be short.
    sockets: tempfile::TempDir,
    // The rest here: nothing is durable on tmpfs.
    disk: tempfile::TempDir,
}

impl Traced {
    /// Starts it, every `fdatasync` delayed by that much, and waits until it serves.
    pub(crate) async fn start(delay: Option<Duration>) -> Self {
        let sockets = tempfile::tempdir().expect("a directory");
        let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let machine = disk.path().join("machine.toml");
        let topology = Topology::generated(u32::try_from(DEVICES).expect("a small number"));
        fs::write(&machine, topology.to_toml().expect("a topology")).expect("written");
        let mut command = Command::new("strace");
        // The tracer as a grandchild: so that our child is berthd itself.
        command.args(["-D", "-f", "-q", "-ttt", "-T", "-y", "-s", "70000", "-e", CALLS]);
        if let Some(delay) = delay {
            let delay = format!("inject=fdatasync:delay_enter={}", delay.as_micros());
            command.args(["-e", &delay]);
        }
        command.arg("-o").arg(disk.path().join("trace"));
        command.arg(env!("CARGO_BIN_EXE_berthd"));
        command.arg("--host").arg(format!("sim:{}", machine.display()));
        command.arg("--state-dir").arg(disk.path().join("state"));
        for option in ["grpc", "http", "handover"] {
            let socket = sockets.path().join(format!("{option}.sock"));
            command.arg(format!("--listen-{option}")).arg(format!("unix:{}", socket.display()));
        }
        let log = fs::File::create(disk.path().join("log")).expect("a log");
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap_or_else(
                |error| panic!("strace can't be started, is it installed? {error}"),
            );
        let mut traced = Self { child, sockets, disk };
        traced.wait_until_it_serves().await;
        traced
    }

    fn log(&self) -> String {
        fs::read_to_string(self.disk.path().join("log")).unwrap_or_default()
    }

    async fn wait_until_it_serves(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.serves().await {
            let ended = self.child.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "berthd ended with {ended:?}: {}", self.log());
            assert!(Instant::now() < deadline, "berthd isn't ready: {}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// It listens before it is ready, and refuses everything until then.
    async fn serves(&self) -> bool {
        if tokio::net::UnixStream::connect(self.socket()).await.is_err() {
            return false;
        }
        let mut groups = v1::groups_client::GroupsClient::new(self.connect().await);
        groups.list_groups(v1::ListGroupsRequest::default()).await.is_ok()
    }

    fn socket(&self) -> PathBuf {
        self.sockets.path().join("grpc.sock")
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> Channel {
        let path = self.socket();
        Endpoint::from_static("http://berthd")
            .connect_with_connector(tower::service_fn(move |_: http::Uri| {
                let path = path.clone();
                async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .expect("berthd answers")
    }

    /// Kills it as power loss would, and gives what was seen of it until then.
    pub(crate) async fn stop(mut self) -> Trace {
        let pid = self.child.id();
        self.child.kill().expect("a living child");
        self.child.wait().expect("a child of ours");
        let deadline = Instant::now() + PATIENCE;
        let ended = format!("{pid} ");
        loop {
            let text = read(&self.disk.path().join("trace"));
            let last =
                text.lines().any(|line| line.starts_with(&ended) && line.contains("+++ killed"));
            if last {
                return Trace::parse(&text);
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

/// A trace has bytes of every kind in it, but all that is looked for is ASCII.
fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).expect("a trace")).into_owned()
}

/// Reserves the device of that number; the answer comes as soon as that is recorded.
pub(crate) async fn reserve(channel: Channel, holder: &str, device: usize) {
    let address = format!("0000:{:02x}:{:02x}.0", device / 32 + 1, device % 32);
    let pci = v1::device_address::Kind::Pci(address);
    let request = v1::ReserveRequest {
        holder: holder.to_owned(),
        devices: vec![v1::DeviceAddress { kind: Some(pci) }],
        policy: v1::Policy::Exclusive.into(),
        no_wait: true,
        ..v1::ReserveRequest::default()
    };
    v1::reservations_client::ReservationsClient::new(channel)
        .reserve(request)
        .await
        .expect("a reservation");
}
