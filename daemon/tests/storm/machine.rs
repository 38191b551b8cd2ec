//! A real `berthd` on a simulated machine of its own, to be killed and started again.

use std::{
    fmt::Write as _,
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use berth_proto::v1;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// A group: the devices in it.
pub(crate) type Group = Vec<String>;

/// Groups that are reserved together.
pub(crate) type Cell = Vec<Group>;

/// Cells of each kind: a group of one, a group of three, one of one beside one of two.
const OF_EACH: usize = 16;
const KINDS: [&[usize]; 3] = [&[1], &[3], &[1, 2]];

/// A running `berthd`. Dropping it kills it.
pub(crate) struct Machine {
    child: Child,
    dir: tempfile::TempDir,
    pub(crate) cells: Vec<Cell>,
}

fn cells() -> Vec<Cell> {
    let mut number = 0;
    let mut device = || {
        number += 1;
        format!("0000:{:02x}:{:02x}.0", number / 32 + 1, number % 32)
    };
    let kinds = KINDS.iter().flat_map(|kind| std::iter::repeat_n(kind, OF_EACH));
    kinds
        .map(|kind| kind.iter().map(|size| (0..*size).map(|_| device()).collect()).collect())
        .collect()
}

fn topology(cells: &[Cell]) -> String {
    let mut text = "name = \"storm\"\n".to_owned();
    for (number, group) in cells.iter().flatten().enumerate() {
        for device in group {
            let _ = write!(
                text,
                "[[device]]\naddress = \"{device}\"\ngroup = {number}\nvendor = 0x15b3\n\
                 device = 0x1021\nclass = 0x020000\nclass_name = \"Ethernet controller\"\n\
                 drivers = [\"mlx5_core\"]\nreset_methods = [\"flr\"]\n"
            );
        }
    }
    text
}

impl Machine {
    pub(crate) async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let cells = cells();
        fs::write(dir.path().join("machine.toml"), topology(&cells)).expect("written");
        let _ = fs::remove_file(log_file());
        let child = spawn(dir.path());
        let mut machine = Self { child, dir, cells };
        machine.wait_until_it_serves().await;
        machine
    }

    /// Kills it, at once, and starts it again.
    pub(crate) async fn restart(&mut self) {
        self.child.kill().expect("a living child");
        self.child.wait().expect("a child of ours");
        self.child = spawn(self.dir.path());
        self.wait_until_it_serves().await;
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("grpc")
    }

    pub(crate) fn handover(&self) -> PathBuf {
        self.dir.path().join("fd")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(log_file()).unwrap_or_default()
    }

    async fn wait_until_it_serves(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = self.child.try_wait().expect("a child of ours");
            assert!(ended.is_none(), "berthd ended with {ended:?}: {}", self.log());
            assert!(Instant::now() < deadline, "berthd isn't ready: {}", self.log());
            let mut groups = v1::groups_client::GroupsClient::new(channel(self.socket()));
            if groups.list_groups(v1::ListGroupsRequest::default()).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// It outlives the test, for who looks into what went wrong.
fn log_file() -> PathBuf {
    std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("storm-berthd.log")
}

fn spawn(dir: &std::path::Path) -> Child {
    let log = fs::File::options().create(true).append(true).open(log_file());
    Command::new(env!("CARGO_BIN_EXE_berthd"))
        .arg("--host")
        .arg(format!("sim:{}", dir.join("machine.toml").display()))
        .arg("--state-dir")
        .arg(dir.join("state"))
        .args(
            ["--listen-grpc", "--listen-http", "--listen-handover"]
                .iter()
                .zip(["grpc", "http", "fd"])
                .flat_map(|(option, name)| {
                    [(*option).to_owned(), format!("unix:{}", dir.join(name).display())]
                }),
        )
        .env("BERTH_LOG", "info,audit=error")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log.expect("a log"))
        .spawn()
        .expect("berthd starts")
}

/// A connection of its own, which is made when it is used and made again when it broke.
pub(crate) fn channel(path: PathBuf) -> Channel {
    Endpoint::from_static("http://berthd").connect_with_connector_lazy(tower::service_fn(
        move |_: http::Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        },
    ))
}
