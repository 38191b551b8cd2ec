//! A real `berthd` on a simulated host, `small` where none is named, in a directory of its own.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) dir: tempfile::TempDir,
    host: &'static str,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Nothing is owed to a test's daemon; its directory goes with it.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Daemon {
    /// With the settings that are made for its directory.
    pub(crate) fn start(settings: impl FnOnce(&Path) -> String) -> Self {
        Self::start_on("sim:small", settings)
    }

    /// The same on another host.
    pub(crate) fn start_on(host: &'static str, settings: impl FnOnce(&Path) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("berthd.toml"), settings(dir.path())).unwrap();
        let daemon = Self { child: spawn(dir.path(), host), dir, host };
        daemon.until_it_answers();
        daemon
    }

    /// Another one in its place, after a `kill -9`.
    pub(crate) fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(self.dir.path(), self.host);
        self.until_it_answers();
    }

    fn until_it_answers(&self) {
        self.until("berthd answers", || self.berth(&["capabilities"]).status.success());
    }

    pub(crate) fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !is_so() {
            let log = || fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(begin.elapsed() < PATIENCE, "{what}: not yet\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("unix:{}", self.dir.path().join("berthd.sock").display())
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
        command.args(args).env("BERTH_ENDPOINT", self.endpoint()).env("NO_COLOR", "1");
        command
    }

    pub(crate) fn berth(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
}

fn spawn(dir: &Path, host: &str) -> Child {
    let at = |name: &str| dir.join(name);
    let berthd = Path::new(env!("CARGO_BIN_EXE_berth")).with_file_name("berthd");
    assert!(berthd.exists(), "cargo build builds {}", berthd.display());
    let socket = |name: &str| format!("unix:{}", at(name).display());
    let mut command = Command::new(berthd);
    command
        .args(["--host", host, "--state-dir"])
        .arg(at("state"))
        .arg("--config")
        .arg(at("berthd.toml"))
        .args(["--listen-grpc", &socket("berthd.sock")])
        .args(["--listen-http", &socket("http.sock")])
        .stdout(Stdio::null())
        .stderr(fs::File::create(at("log")).unwrap());
    let config = fs::read_to_string(at("berthd.toml")).unwrap();
    if !config.contains("serve = \"handover\"") {
        command.args(["--listen-handover", &socket("handover.sock")]);
    }
    command.spawn().unwrap()
}
