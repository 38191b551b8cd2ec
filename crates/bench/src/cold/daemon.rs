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
pub(super) struct Start {
    /// From exec to the line `ready`, in milliseconds.
    pub(super) ready_ms: f64,
    /// Resident then, in MiB.
    pub(super) resident_mib: f64,
    /// The most that was resident, in MiB.
    pub(super) peak_mib: f64,
    /// User and system time, in milliseconds.
    pub(super) cpu_ms: f64,
}

/// How long it may take to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take to be ready; then there is nothing to compare.
const READY: Duration = Duration::from_secs(30);

/// Starts `berthd` on a tree, waits until it is ready, and stops it.
///
/// # Errors
/// It ended before that.
pub(super) fn start(programs: &Path, tree: &Path, dir: &Path) -> Result<Start> {
    let unix = |name: &str| format!("unix:{}", dir.join(name).display());
    let config = dir.join("berthd.toml");
    fs::write(&config, "").context("write a configuration")?;
    let began = Instant::now();
    let mut child = Command::new(programs.join("berthd"))
        .args(["--host", "linux"])
        .arg("--config")
        .arg(&config)
        .arg("--sysfs-root")
        .arg(tree)
        .arg("--state-dir")
        .arg(dir.join("state"))
        .args(["--listen-grpc", &unix("berthd.sock"), "--listen-http", &unix("http.sock")])
        .args(["--listen-handover", &unix("handover.sock")])
        .stderr(Stdio::piped())
        .spawn()
        .context("start berthd")?;
    let seen = watch(&mut child, began);
    stop(&mut child)?;
    seen
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

fn watch(child: &mut Child, began: Instant) -> Result<Start> {
    let lines = lines(child.stderr.take().context("no stderr")?);
    let mut said = Vec::new();
    let ready_ms = loop {
        let left = READY.saturating_sub(began.elapsed());
        let Ok(line) = lines.recv_timeout(left) else {
            bail!("berthd was not ready after {:.1?}:\n{}", began.elapsed(), said.join("\n"));
        };
        if line.ends_with(" ready") {
            break began.elapsed().as_secs_f64() * 1e3;
        }
        said.push(line);
    };
    let proc = format!("/proc/{}", child.id());
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
