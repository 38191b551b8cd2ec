//! A daemon on a simulated host, for a test.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// Ends with the value.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
    directory: tempfile::TempDir,
    /// Where HTTP is served.
    port: u16,
}

impl Daemon {
    /// Starts `berthd --host HOST` with sockets and state of its own, and waits until it answers.
    pub(super) fn start(root: &Path, host: &str) -> Result<Self> {
        let directory = tempfile::tempdir().context("make a directory for the daemon")?;
        let port = free_port()?;
        let socket = |name: &str| format!("unix:{}", directory.path().join(name).display());
        let log = std::fs::File::create(directory.path().join("berthd.log"))
            .context("create the daemon's log")?;
        let child = Command::new(root.join("target/debug/berthd"))
            .args(["--host", host, "--state-dir"])
            .arg(directory.path().join("state"))
            .args(["--listen-grpc", &socket("berthd.sock")])
            .args(["--listen-http", &format!("127.0.0.1:{port}")])
            .args(["--listen-http", &socket("http.sock")])
            .args(["--listen-handover", &socket("handover.sock")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("start berthd")?;
        let mut daemon = Self { child, directory, port };
        daemon.wait_until_ready(root)?;
        Ok(daemon)
    }

    /// For `BERTH_ENDPOINT`.
    pub(super) fn endpoint(&self) -> String {
        format!("unix:{}", self.socket("berthd.sock").display())
    }

    /// One of `berthd.sock`, `http.sock`, `handover.sock`.
    pub(super) fn socket(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The body of what HTTP answers.
    pub(super) fn get(&self, path: &str) -> Result<String> {
        let mut stream =
            TcpStream::connect(("127.0.0.1", self.port)).context("reach the daemon")?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("read the daemon's answer")?;
        match answer.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200") => Ok(body.to_owned()),
            _ => bail!("GET {path}: {answer}"),
        }
    }

    fn wait_until_ready(&mut self, root: &Path) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let berth: PathBuf = root.join("target/debug/berth");
        loop {
            if let Some(status) = self.child.try_wait().context("wait for berthd")? {
                bail!("berthd ended with {status}:\n{}", self.log());
            }
            let asked = Command::new(&berth)
                .args(["--endpoint", &self.endpoint(), "capabilities"])
                .output()
                .context("run berth capabilities")?;
            if asked.status.success() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("berthd isn't ready after 60 s:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("berthd.log")).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Nothing is owed to a test's daemon; its directory goes with it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("find a free port")?;
    Ok(listener.local_addr().context("read the port")?.port())
}
