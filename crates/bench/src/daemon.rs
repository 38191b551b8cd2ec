//! Starting `berthd` and asking the kernel what it cost.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// One start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    /// From exec to the line `ready`, in milliseconds.
    pub(crate) ready_ms: f64,
    /// Resident then, in MiB.
    pub(crate) resident_mib: f64,
    /// The most that was resident, in MiB.
    pub(crate) peak_mib: f64,
    /// User and system time, in milliseconds.
    pub(crate) cpu_ms: f64,
}

/// How long it may take to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to be ready; then there is nothing to compare.
const READY: Duration = Duration::from_secs(30);

/// What machine a daemon finds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Machine<'a> {
    /// This one, as it is.
    Kernel,
    /// This one's kernel, with a tree of files as sysfs.
    Tree(&'a Path),
    /// A simulated one, by its file.
    Simulated(&'a Path),
}

/// A daemon that is ready. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    /// From exec to the line `ready`, in milliseconds.
    pub(crate) ready_ms: f64,
}

impl Running {
    /// Starts `berthd` with its state and its sockets in a directory, and waits until it is ready.
    ///
    /// # Errors
    /// It ended before that.
    pub(crate) fn start(programs: &Path, machine: Machine<'_>, dir: &Path) -> Result<Self> {
        let unix = |name: &str| format!("unix:{}", dir.join(name).display());
        let config = dir.join("berthd.toml");
        fs::write(&config, "").context("write a configuration")?;
        let mut command = Command::new(programs.join("berthd"));
        match machine {
            Machine::Kernel => command.args(["--host", "linux"]),
            Machine::Tree(tree) => command.args(["--host", "linux", "--sysfs-root"]).arg(tree),
            Machine::Simulated(file) => {
                command.args(["--host", &format!("sim:{}", file.display())])
            }
        };
        let began = Instant::now();
        let child = command
            .arg("--config")
            .arg(&config)
            .arg("--state-dir")
            .arg(dir.join("state"))
            .args(["--listen-grpc", &unix("berthd.sock"), "--listen-http", &unix("http.sock")])
            .args(["--listen-handover", &unix("handover.sock")])
            .stderr(Stdio::piped())
            .spawn()
            .context("start berthd")?;
        let mut running = Self { child, ready_ms: 0.0 };
        running.ready_ms = until_ready(&mut running.child, began)?;
        Ok(running)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has cost until now.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn cost(&self) -> Result<Start> {
        cost(self.child.id(), self.ready_ms)
    }

    /// Lets it end as a service manager does.
    ///
    /// # Errors
    /// Of the system.
    pub(crate) fn stop(mut self) -> Result<()> {
        stop(&mut self.child)
    }

    /// Kills it, and waits until it is gone.
    ///
    /// # Errors
    /// Of the system.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill().context("kill berthd")?;
        self.child.wait().map(drop).context("wait for berthd")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already, mostly.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of a stream, read by a thread, so that waiting for one can end.
fn lines(stream: ChildStderr) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        // Once nobody listens, lines are read all the same: a full pipe would stop the daemon.
        BufReader::new(stream).lines().map_while(Result::ok).for_each(|line| {
            let _ = sender.send(line);
        });
    });
    receiver
}

fn until_ready(child: &mut Child, began: Instant) -> Result<f64> {
    let lines = lines(child.stderr.take().context("no stderr")?);
    let mut said = Vec::new();
    loop {
        let left = READY.saturating_sub(began.elapsed());
        let Ok(line) = lines.recv_timeout(left) else {
            bail!("berthd was not ready after {:.1?}:\n{}", began.elapsed(), said.join("\n"));
        };
        if line.ends_with(" ready") {
            return Ok(began.elapsed().as_secs_f64() * 1e3);
        }
        said.push(line);
    }
}

fn cost(pid: u32, ready_ms: f64) -> Result<Start> {
    let proc = format!("/proc/{pid}");
    let status = fs::read_to_string(format!("{proc}/status")).context("read its status")?;
    let mib = |name: &str| -> f64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or(0.0) / 1024.0
    };
    let cpu_ms = cpu_ms(&proc)?;
    Ok(Start { ready_ms, resident_mib: mib("VmRSS:"), peak_mib: mib("VmHWM:"), cpu_ms })
}

/// The time that all of its threads have run, in steps of a tick.
fn cpu_ms(proc: &str) -> Result<f64> {
    let stat = fs::read_to_string(format!("{proc}/stat")).context("read its stat")?;
    let after = stat.rsplit(')').next().unwrap_or("");
    let ticks: f64 =
        after.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<f64>().ok()).sum();
    let tick_ms = 1e3 / rustix::param::clock_ticks_per_second() as f64;
    Ok(ticks * tick_ms)
}

fn stop(child: &mut Child) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a pid")?;
    kill_process(pid, Signal::TERM).context("stop berthd")?;
    let began = Instant::now();
    while child.try_wait().context("wait for berthd")?.is_none() {
        if began.elapsed() > PATIENCE {
            child.kill().context("kill berthd")?;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
