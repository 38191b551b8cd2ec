//! A `berthd` of which one call fails.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use berth_proto::v1;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A call, and what it is about.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) calls: u64,
}

/// One call that fails.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) site: String,
    pub(crate) call: u64,
    pub(crate) errno: i32,
    #[allow(dead_code, reason = "it is printed")]
    pub(crate) name: &'static str,
}

/// The program that makes calls fail.
pub(crate) struct Tracer {
    program: PathBuf,
}

impl Tracer {
    /// Compiles it.
    pub(crate) fn build() -> Self {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("failnth");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/failnth/failnth.c");
        let made = Command::new("cc")
            .args(["-O2", "-Wall", "-Wextra", "-o"])
            .args([&program, &source])
            .status()
            .expect("a C compiler, as the README says");
        assert!(made.success(), "failnth.c doesn't compile");
        Self { program }
    }
}

/// It runs, and is killed when this is dropped.
pub(crate) struct Faulty {
    child: Child,
    /// The process of `berthd` itself.
    pub(crate) pid: i32,
    dir: PathBuf,
}

impl Faulty {
    /// Starts it in a directory; with the tracer, a call may fail.
    pub(crate) fn start(dir: &Path, tracer: Option<(&Tracer, Option<&Fault>)>) -> Self {
        let berthd = env!("CARGO_BIN_EXE_berthd");
        let mut command = match tracer {
            None => Command::new(berthd),
            Some((tracer, fault)) => {
                let mut command = Command::new(&tracer.program);
                command.arg(dir.join("sites")).arg(dir);
                let (site, call, errno) =
                    fault.map_or(("-", 0, 0), |it| (it.site.as_str(), it.call, it.errno));
                command.arg(site).arg(call.to_string()).arg(errno.to_string()).arg(berthd);
                command
            }
        };
        command.arg("--host").arg(format!("sim:{}", dir.join("machine.toml").display()));
        command.arg("--state-dir").arg(dir.join("state"));
        for option in ["grpc", "http", "handover"] {
            let socket = format!("unix:{}", dir.join(option).display());
            command.arg(format!("--listen-{option}")).arg(socket);
        }
        let log = fs::File::options().create(true).append(true).open(dir.join("log"));
        let child = command
            .env("BERTH_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log.expect("a log"))
            .spawn();
        let mut child = child.expect("it starts");
        let mut pid = i32::try_from(child.id()).expect("a process");
        if tracer.is_some() {
            let mut line = String::new();
            let output = child.stdout.as_mut().expect("it is piped");
            BufReader::new(output).read_line(&mut line).expect("its process");
            pid = line.trim().parse().expect("a number");
        }
        Self { child, pid, dir: dir.to_owned() }
    }

    /// Whether it serves, or has ended.
    pub(crate) async fn serves(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.child.try_wait().expect("a child of ours").is_some() {
                return false;
            }
            assert!(Instant::now() < deadline, "it isn't ready: {}", log(&self.dir));
            if self.dir.join("grpc").exists() {
                let mut groups = v1::groups_client::GroupsClient::new(self.connect());
                let list = groups.list_groups(v1::ListGroupsRequest::default());
                if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(5), list).await {
                    return true;
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) fn connect(&self) -> Channel {
        let path = self.dir.join("grpc");
        Endpoint::from_static("http://berthd").connect_with_connector_lazy(tower::service_fn(
            move |_: http::Uri| {
                let path = path.clone();
                async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
            },
        ))
    }

    /// How many descriptors it has: of its database, and others but for connections.
    pub(crate) fn descriptors(&self) -> (usize, usize) {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid)).expect("it runs").flatten();
        let links = open.filter_map(|open| fs::read_link(open.path()).ok());
        let links = links.map(|link| link.to_string_lossy().into_owned());
        let links = links.filter(|link| !link.starts_with("socket:"));
        let (database, others): (Vec<_>, Vec<_>) =
            links.partition(|link| link.contains("/state/berth.db"));
        (database.len(), others.len())
    }

    /// Stops it in order, and waits for its end. A signal can be what fails: it is sent again.
    pub(crate) fn stop(mut self) {
        let pid = rustix::process::Pid::from_raw(self.pid).expect("a process");
        for turn in 0.. {
            if self.child.try_wait().expect("a child of ours").is_some() {
                return;
            }
            if turn % 150 == 0 {
                // It may have ended by itself.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn log(dir: &Path) -> String {
    fs::read_to_string(dir.join("log")).unwrap_or_default()
}

/// The sites that a run came by, and whether a call failed.
pub(crate) fn sites(dir: &Path) -> (Vec<Site>, bool) {
    let text = fs::read_to_string(dir.join("sites")).expect("the tracer ended in order");
    let hit = text.starts_with("hit 1");
    let site = |line: &str| {
        let (calls, name) = line.split_once(' ')?;
        Some(Site { name: name.to_owned(), calls: calls.parse().ok()? })
    };
    (text.lines().skip(1).filter_map(site).collect(), hit)
}
