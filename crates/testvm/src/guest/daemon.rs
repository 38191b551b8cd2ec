//! `berthd` and `berth` as a scenario uses them.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, OpenOptions},
    io::{Read as _, Write as _},
    ops::Deref,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixDatagram, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Ctx, wait_for};

/// How to start `berthd`.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Programs put before it, such as `strace -f -o FILE`.
    pub prefix: Vec<OsString>,
    /// Arguments after the usual ones.
    pub arguments: Vec<OsString>,
    /// Environment on top of the scenario's.
    pub env: Vec<(String, String)>,
    /// The hand-over socket is said in a file among the arguments, not as an argument.
    pub handover_in_file: bool,
}

/// A `berthd --host linux` with its state in the scenario's directory. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    notify: UnixDatagram,
    dir: PathBuf,
    program: PathBuf,
    client: Client,
    options: Options,
    patience: Duration,
}

impl Deref for Daemon {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// The command `berth`, connected to a daemon, whoever started that.
#[derive(Debug, Clone)]
pub struct Client {
    program: PathBuf,
    grpc: PathBuf,
}

/// What `berth -o json` answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it printed on stdout, if that was JSON; else null.
    pub json: Value,
    /// What it printed on stdout.
    pub stdout: String,
    /// What it printed on stderr.
    pub stderr: String,
}

impl Answer {
    /// The answer of a call that had to succeed.
    ///
    /// # Errors
    /// It didn't.
    pub fn ok(self) -> Result<Value> {
        match self.code {
            Some(0) => Ok(self.json),
            code => bail!("berth ended with {code:?}: {}{}", self.stdout, self.stderr),
        }
    }
}

impl Client {
    /// For the daemon that listens at `grpc`.
    #[must_use]
    pub fn new(ctx: &Ctx, grpc: PathBuf) -> Self {
        Self { program: ctx.program("berth"), grpc }
    }

    /// The gRPC socket.
    #[must_use]
    pub fn grpc(&self) -> PathBuf {
        self.grpc.clone()
    }

    /// The command `berth ...` for people, connected to this daemon.
    #[must_use]
    pub fn plain<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--endpoint").arg(format!("unix://{}", self.grpc.display()));
        command.args(arguments).env("NO_COLOR", "1");
        command
    }

    /// The command `berth -o json ...`, connected to this daemon.
    #[must_use]
    pub fn cli_command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--endpoint").arg(format!("unix://{}", self.grpc.display()));
        command.args(["-o", "json"]).args(arguments).env("NO_COLOR", "1");
        command
    }

    /// A shell's command, in which `berth` is this one's.
    pub fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        let own = self.program.parent().map(|dir| dir.display().to_string()).unwrap_or_default();
        let path = std::env::var("PATH").unwrap_or_default();
        command.args(["-c", line]).env("PATH", format!("{own}:{path}"));
        command.env("BERTH_ENDPOINT", format!("unix://{}", self.grpc.display()));
        command
    }

    /// Runs `berth -o json ...` and says in the log what came of it.
    ///
    /// # Errors
    /// It can't be started. A refusal is an [`Answer`], not an error.
    pub fn cli<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<Answer> {
        let mut command = self.cli_command(arguments);
        let output = command.output().context("start berth")?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let words: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        println!("$ berth {} -> {:?}\n{stdout}{stderr}", words.join(" "), output.status.code());
        // A refusal's document may stand on either stream.
        let json = serde_json::from_str(&stdout)
            .or_else(|_| serde_json::from_str(&stderr))
            .unwrap_or(Value::Null);
        Ok(Answer { code: output.status.code(), json, stdout, stderr })
    }
}

impl Daemon {
    /// Starts it on a fresh state directory (`berthd/state` in the scenario's own, which later
    /// starts in the same scenario find again) and waits until it says that it is ready.
    ///
    /// # Errors
    /// It ends, or isn't ready in time; the end of its log is part of the error.
    pub fn start(ctx: &Ctx) -> Result<Self> {
        Self::start_with(ctx, Options::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_with(ctx: &Ctx, options: Options) -> Result<Self> {
        let dir = ctx.dir().join("berthd");
        fs::create_dir_all(dir.join("state"))?;
        // Holders without rights connect to the sockets in it.
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
        let socket = dir.join("notify.sock");
        let _ = fs::remove_file(&socket);
        let notify = UnixDatagram::bind(&socket).context("bind the notify socket")?;
        notify.set_read_timeout(Some(Duration::from_millis(100)))?;
        let program = ctx.program("berthd");
        let child = spawn(&program, &dir, &options)?;
        let client = Client::new(ctx, dir.join("berthd.sock"));
        let patience = ctx.patience();
        let mut daemon = Self { child, notify, dir, program, client, options, patience };
        daemon.wait_until_ready()?;
        Ok(daemon)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        let mut packet = [0; 1024];
        while Instant::now() < deadline {
            if let Ok(length) = self.notify.recv(&mut packet)
                && packet[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1")
            {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("berthd ended at once ({status}); its log:\n{}", self.log());
            }
        }
        bail!("berthd was not ready in {} s; its log:\n{}", self.patience.as_secs(), self.log())
    }

    /// Its process id (of the prefix program, when there is one).
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The directory with its sockets, state and log.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The HTTP socket.
    #[must_use]
    pub fn http(&self) -> PathBuf {
        self.dir.join("http.sock")
    }

    /// What it answers over HTTP to a GET.
    ///
    /// # Errors
    /// It doesn't answer, or not with 200.
    pub fn get(&self, path: &str) -> Result<String> {
        match self.http_exchange(&format!("GET {path}"), "")? {
            (200, body) => Ok(body),
            answer => bail!("GET {path} was answered with {answer:?}"),
        }
    }

    /// Orders something over HTTP, such as `POST /api/v1/reservations`, with a body unless that is null,
    /// and gives the status with the document that came.
    ///
    /// # Errors
    /// It doesn't answer, or not with a document. A refusal is an answer.
    pub fn order(&self, line: &str, body: &Value) -> Result<(u16, Value)> {
        let words = if body.is_null() { String::new() } else { body.to_string() };
        let (status, text) = self.http_exchange(line, &words)?;
        println!("> {line} {body} -> {status} {text}");
        let document = serde_json::from_str(&text);
        Ok((status, document.with_context(|| format!("{line} was answered with {text:?}"))?))
    }

    fn http_exchange(&self, line: &str, body: &str) -> Result<(u16, String)> {
        let mut stream = UnixStream::connect(self.http()).context("connect to the HTTP socket")?;
        stream.set_read_timeout(Some(self.patience))?;
        let length = body.len();
        write!(
            stream,
            "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(|| format!("the answer to {line}"))?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end")?;
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        Ok((status.context("no status")?, body.to_owned()))
    }

    /// The hand-over socket.
    #[must_use]
    pub fn handover(&self) -> PathBuf {
        self.dir.join("handover.sock")
    }

    /// Everything that it and its predecessors in this scenario wrote to stderr.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("berthd.log")).unwrap_or_default()
    }

    /// Whether it runs.
    ///
    /// # Errors
    /// The kernel doesn't say.
    pub fn is_alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Kills it as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// The kernel doesn't let go of it.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.kill()?;
        Ok(self.child.wait()?)
    }

    /// Asks it to end (SIGTERM) and waits until it has.
    ///
    /// # Errors
    /// It doesn't end in time.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("odd pid")?;
        kill_process(pid, Signal::TERM)?;
        let child = &mut self.child;
        wait_for("berthd to end after SIGTERM", self.patience, || child.try_wait().ok().flatten())
    }

    /// Starts it anew on the same state, after [`Daemon::kill`] or [`Daemon::stop`].
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_again(&mut self) -> Result<()> {
        self.child = spawn(&self.program, &self.dir, &self.options)?;
        self.wait_until_ready()
    }

    /// The same as another program.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_again_as(&mut self, program: &Path) -> Result<()> {
        program.clone_into(&mut self.program);
        self.start_again()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only when it has ended and was waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        println!("--- berthd's log ---\n{log}--- end of berthd's log ---");
        let whole = !log.contains("seccomp refuses the system call");
        assert!(whole || std::thread::panicking(), "berthd needed what it had given up");
    }
}

fn spawn(program: &Path, dir: &Path, options: &Options) -> Result<Child> {
    let log = OpenOptions::new().create(true).append(true).open(dir.join("berthd.log"))?;
    let socket = |name: &str| format!("unix:{}", dir.join(name).display());
    let mut words = options.prefix.iter().map(OsString::as_os_str).chain([program.as_os_str()]);
    let mut command = Command::new(words.next().context("no program")?);
    command.args(words).args(["--host", "linux", "--state-dir"]).arg(dir.join("state"));
    command.args(["--listen-grpc", &socket("berthd.sock")]);
    command.args(["--listen-http", &socket("http.sock")]);
    if !options.handover_in_file {
        command.args(["--listen-handover", &socket("handover.sock")]);
    }
    command.args(&options.arguments);
    command.env("NOTIFY_SOCKET", dir.join("notify.sock")).env("RUST_LOG", "debug");
    command.env("NO_COLOR", "1").env("RUST_BACKTRACE", "1");
    command.envs(options.env.iter().map(|(name, value)| (name, value)));
    command.stdout(log.try_clone()?).stderr(log);
    command.spawn().with_context(|| format!("start {}", program.display()))
}
