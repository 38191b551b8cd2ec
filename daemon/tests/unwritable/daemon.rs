//! `berthd` in a mount namespace of its own, on a simulated machine.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use berth_host::sim::Topology;
use berth_proto::v1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the state directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mount {
    /// A directory.
    Plain,
    /// The same, mounted read-only.
    ReadOnly,
    /// A small file system in memory.
    Tmpfs,
}

/// A running `berthd`. Dropping it kills it.
pub(crate) struct Daemon {
    child: Child,
    dir: Arc<tempfile::TempDir>,
}

impl Daemon {
    /// Starts it, under `strace` with what it is to inject where that is given.
    pub(crate) async fn start(mount: Mount, inject: Option<&str>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("state")).expect("a directory");
        let topology = Topology::generated(128).to_toml().expect("a topology");
        fs::write(dir.path().join("machine.toml"), topology).expect("written");
        Self::start_in(Arc::new(dir), mount, inject).await
    }

    async fn start_in(dir: Arc<tempfile::TempDir>, mount: Mount, inject: Option<&str>) -> Self {
        let at = dir.path().display();
        let prepare = match mount {
            Mount::Plain => "true".to_owned(),
            Mount::ReadOnly => {
                format!("mount --bind {at}/state {at}/state && mount -o remount,ro,bind {at}/state")
            }
            Mount::Tmpfs => format!("mount -t tmpfs -o size=3m state {at}/state"),
        };
        let trace = inject.map_or_else(String::new, |inject| {
            format!("strace -D -f -q -o {at}/trace -e trace=fsync,fdatasync -e {inject} ")
        });
        let script = format!(
            "{prepare} && exec {trace}{} --host sim:{at}/machine.toml --state-dir {at}/state \
             --listen-grpc unix:{at}/grpc --listen-http unix:{at}/http --listen-handover unix:{at}/fd",
            env!("CARGO_BIN_EXE_berthd")
        );
        let log = fs::File::options().create(true).append(true).open(dir.path().join("log"));
        let child = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log.expect("a log"))
            .spawn()
            .expect("unshare of util-linux");
        let mut daemon = Self { child, dir };
        daemon.wait_until_it_serves().await;
        daemon
    }

    /// Kills it and starts it again.
    pub(crate) async fn restart(mut self, mount: Mount) -> Self {
        self.end();
        Self::start_in(Arc::clone(&self.dir), mount, None).await
    }

    fn end(&mut self) {
        // Both fail only when it has ended and was waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    async fn wait_until_it_serves(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "berthd ended with {ended:?}: {}", self.log());
            assert!(Instant::now() < deadline, "berthd isn't ready: {}", self.log());
            if let Ok(channel) = self.connect().await {
                let mut groups = v1::groups_client::GroupsClient::new(channel);
                if groups.list_groups(v1::ListGroupsRequest::default()).await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it says that all is well again.
    pub(crate) async fn wait_until_well(&self) {
        let deadline = Instant::now() + PATIENCE;
        while let Some(degraded) = self.capabilities().await.degraded {
            assert!(Instant::now() < deadline, "it does not heal: {degraded:?} {}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn connect(&self) -> Result<Channel, tonic::transport::Error> {
        let path = self.dir.path().join("grpc");
        Endpoint::from_static("http://berthd")
            .connect_with_connector(tower::service_fn(move |_: http::Uri| {
                let path = path.clone();
                async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
    }

    async fn channel(&self) -> Channel {
        self.connect().await.expect("berthd answers")
    }

    /// Reserves the device of that number.
    pub(crate) async fn reserve(
        &self,
        holder: &str,
        device: usize,
    ) -> Result<v1::Reservation, Status> {
        let address = format!("0000:{:02x}:{:02x}.0", device / 32 + 1, device % 32);
        let pci = v1::device_address::Kind::Pci(address);
        let request = v1::ReserveRequest {
            holder: holder.to_owned(),
            devices: vec![v1::DeviceAddress { kind: Some(pci) }],
            policy: v1::Policy::Exclusive.into(),
            no_wait: true,
            ..v1::ReserveRequest::default()
        };
        let mut client = v1::reservations_client::ReservationsClient::new(self.channel().await);
        client.reserve(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn reservations(&self) -> Vec<v1::Reservation> {
        let mut client = v1::reservations_client::ReservationsClient::new(self.channel().await);
        let listed = client.list_reservations(v1::ListReservationsRequest::default()).await;
        listed.expect("a list").into_inner().reservations
    }

    pub(crate) async fn capabilities(&self) -> v1::Capabilities {
        let mut client = v1::host_client::HostClient::new(self.channel().await);
        let answer = client.get_capabilities(v1::GetCapabilitiesRequest {}).await;
        answer.expect("an answer").into_inner()
    }

    pub(crate) async fn events(&self) -> Vec<v1::Event> {
        let mut client = v1::events_client::EventsClient::new(self.channel().await);
        let request = v1::ListEventsRequest { limit: 1000, ..v1::ListEventsRequest::default() };
        client.list_events(request).await.expect("events").into_inner().events
    }

    /// The whole answer to a GET.
    pub(crate) async fn http(&self, path: &str) -> String {
        let mut stream = tokio::net::UnixStream::connect(self.dir.path().join("http"))
            .await
            .expect("it listens");
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    /// The state directory as the daemon sees it.
    fn inside(&self) -> PathBuf {
        let state = self.dir.path().join("state");
        let state = state.strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{}/root", self.child.id())).join(state)
    }

    /// Fills the file system.
    pub(crate) fn fill(&self) {
        use std::io::Write as _;
        let mut file = fs::File::create(self.inside().join("ballast")).expect("a file");
        while file.write_all(&[7; 4096]).is_ok() {}
    }

    pub(crate) fn make_room(&self) {
        fs::remove_file(self.inside().join("ballast")).expect("the ballast");
    }

    /// Mounts the state directory otherwise.
    pub(crate) fn remount(&self, how: &str) {
        let pid = self.child.id().to_string();
        let done = Command::new("nsenter")
            .args(["--preserve-credentials", "--user", "--mount", "--target", &pid])
            .args(["mount", "-o", &format!("remount,{how},bind")])
            .arg(self.dir.path().join("state"))
            .status();
        assert!(done.expect("nsenter of util-linux").success(), "not mounted {how}");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}
