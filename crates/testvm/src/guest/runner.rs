//! Runs scenarios one after the other, each in a process and a cgroup of its own.
//!
//! A scenario that hangs is killed with everything it started; one that leaves a device on another
//! driver than before is a failure, and the device is brought back for those that follow.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{Ctx, Outcome, Scenario, capabilities, kmsg::Kmsg, machine, sysfs, wait::eventually};
use crate::{
    scenarios,
    topology::SEATS,
    wire::{
        CONFIG_IN_GUEST, Capability, GuestConfig, Message, Mode, Profile, RESULTS_PORT, Verdict,
    },
};

/// Where the runner keeps what its children need.
const DIR: &str = "/run/berth-vm";
/// How many times longer everything may take where the machine is emulated.
const SLOW_FACTOR: u64 = 5;
/// The first argument by which the runner's own program is told to run one scenario.
pub const VERB: &str = "scenario";

/// Reads what the host wrote for this guest.
///
/// # Errors
/// The file isn't there: this isn't a test guest.
pub fn config() -> Result<GuestConfig> {
    let text = fs::read(CONFIG_IN_GUEST)
        .with_context(|| format!("read {CONFIG_IN_GUEST}: this program runs in a test guest"))?;
    let mut config: GuestConfig = serde_json::from_slice(&text)?;
    // The init binds the staged programs there, so that any uid reaches them.
    config.bin_dir = Path::new(DIR).join("bin");
    Ok(config)
}

/// Tells the host.
#[derive(Debug)]
pub(super) struct Reporter {
    port: File,
}

impl Reporter {
    /// Opens the port.
    pub(super) fn open() -> Result<Self> {
        let path = machine::port(RESULTS_PORT)?;
        Ok(Self { port: OpenOptions::new().write(true).open(&path)? })
    }

    /// Sends one message.
    pub(super) fn send(&mut self, message: &Message) -> Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.port.write_all(&line).context("write to the results port")
    }
}

/// Runs everything that the configuration asks for and reports it.
///
/// # Errors
/// The host can't be told.
pub fn run_all(config: &GuestConfig) -> Result<()> {
    let mut reporter = Reporter::open()?;
    if let Err(error) = run_matching(config, &mut reporter) {
        reporter.send(&Message::Broken { reason: format!("{error:#}") })?;
    }
    Ok(())
}

fn run_matching(config: &GuestConfig, reporter: &mut Reporter) -> Result<()> {
    let Mode::Scenarios { filter } = &config.mode else { bail!("not asked to run scenarios") };
    let found = capabilities::probe_all(config);
    fs::write(capabilities_path(), serde_json::to_vec(&found)?)?;
    // What needs systemd has a machine of its own.
    let systemd = config.profile == Profile::Systemd;
    let is_here = |one: &Scenario| one.needs.contains(&Capability::Systemd) == systemd;
    let chosen: Vec<&Scenario> = scenarios::all()
        .into_iter()
        .filter(|scenario| is_here(scenario) && matches(filter, scenario.name))
        .collect();
    reporter.send(&Message::Boot {
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        uptime_seconds: uptime_seconds()?,
        capabilities: found.clone(),
        scenarios: chosen.len(),
    })?;
    for scenario in chosen {
        let factor = if config.slow { SLOW_FACTOR } else { 1 };
        let timeout_seconds = scenario.timeout_seconds * factor;
        let name = scenario.name.to_owned();
        reporter.send(&Message::Start { name: name.clone(), timeout_seconds })?;
        let started = Instant::now();
        let verdict = match missing(scenario, &found) {
            Some(skip) => skip,
            None => run_one(scenario, Duration::from_secs(timeout_seconds), reporter)?,
        };
        let seconds = started.elapsed().as_secs_f64();
        reporter.send(&Message::Done { name, verdict, seconds })?;
    }
    reporter.send(&Message::End)
}

/// Whether a name has one of the parts between the filter's commas.
fn matches(filter: &str, name: &str) -> bool {
    filter.split(',').any(|part| name.contains(part))
}

fn missing(scenario: &Scenario, found: &BTreeSet<Capability>) -> Option<Verdict> {
    let missing: BTreeSet<_> =
        scenario.needs.iter().copied().filter(|need| !found.contains(need)).collect();
    if missing.is_empty() {
        return None;
    }
    let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
    Some(Verdict::Skip { reason: format!("needs {}", names.join(", ")), missing })
}

fn uptime_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/uptime")?;
    Ok(text.split_whitespace().next().unwrap_or_default().parse()?)
}

fn capabilities_path() -> PathBuf {
    Path::new(DIR).join("capabilities.json")
}

fn verdict_path() -> PathBuf {
    Path::new(DIR).join("verdict.json")
}

/// The cgroup of a scenario, below the one of whoever asks: the runner, or its child before it has
/// entered.
fn cgroup() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup")?;
    Ok(Path::new("/sys/fs/cgroup").join(own).join("scenario"))
}

/// Runs one scenario in a child and cleans up behind it.
fn run_one(scenario: &Scenario, timeout: Duration, reporter: &mut Reporter) -> Result<Verdict> {
    let name = scenario.name;
    let before = sysfs::bindings();
    let mut kmsg = Kmsg::from_now()?;
    let _ = fs::remove_file(verdict_path());
    fs::create_dir_all(cgroup()?)?;
    let (child, lines) = start(name)?;
    let mut verdict = supervise(child, &lines, timeout, name, reporter)?;
    let mut say = |line: String| reporter.send(&Message::Log { name: name.to_owned(), line });
    if let Err(error) = end_cgroup() {
        fail(&mut verdict, format!("what it started could not be ended: {error:#}"));
    }
    for line in restore(&before) {
        say(format!("restore: {line}"))?;
        fail(&mut verdict, line);
    }
    for line in kmsg.lines() {
        say(format!("kernel: {line}"))?;
        if ["BUG:", "Oops", "general protection fault", "WARNING:"].iter().any(|w| line.contains(w))
        {
            fail(&mut verdict, format!("the kernel said: {line}"));
        }
    }
    Ok(verdict)
}

/// A failure stays the first that was seen; later ones are added.
fn fail(verdict: &mut Verdict, more: String) {
    *verdict = match verdict {
        Verdict::Fail { reason } => Verdict::Fail { reason: format!("{reason}\n{more}") },
        Verdict::Pass | Verdict::Skip { .. } => Verdict::Fail { reason: more },
    };
}

fn start(name: &str) -> Result<(Child, mpsc::Receiver<String>)> {
    let mut child = Command::new(env::current_exe()?)
        .args([VERB, name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start the scenario {name}"))?;
    let (sender, lines) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        forward(output, sender.clone());
    }
    if let Some(output) = child.stderr.take() {
        forward(output, sender);
    }
    Ok((child, lines))
}

/// Sends the lines of a stream on, from a thread of its own.
pub(super) fn forward(output: impl Read + Send + 'static, sender: Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n') {
            let Ok(line) = line else { return };
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
}

/// Forwards the child's lines until it ends or its time is up.
fn supervise(
    mut child: Child,
    lines: &mpsc::Receiver<String>,
    timeout: Duration,
    name: &str,
    reporter: &mut Reporter,
) -> Result<Verdict> {
    let deadline = Instant::now() + timeout;
    let status = loop {
        match lines.recv_timeout(Duration::from_millis(20)) {
            Ok(line) => {
                reporter.send(&Message::Log { name: name.to_owned(), line })?;
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            // Both pipes are closed; the exit status follows.
            Err(RecvTimeoutError::Disconnected) => thread::sleep(Duration::from_millis(5)),
        }
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            end_cgroup()?;
            let _ = child.wait();
            let reason = format!("it did not end within {} s", timeout.as_secs());
            return Ok(Verdict::Fail { reason });
        }
    };
    // What it wrote last may still be on its way; grandchildren may keep the pipes open for long.
    while let Ok(line) = lines.recv_timeout(Duration::from_millis(50)) {
        reporter.send(&Message::Log { name: name.to_owned(), line })?;
    }
    let verdict = fs::read(verdict_path()).ok().and_then(|text| serde_json::from_slice(&text).ok());
    Ok(verdict.unwrap_or_else(|| Verdict::Fail {
        reason: format!("it ended without a verdict ({status}); see its log"),
    }))
}

/// Kills everything the scenario started and waits until the cgroup is empty.
fn end_cgroup() -> Result<()> {
    let dir = cgroup()?;
    if !dir.exists() {
        return Ok(());
    }
    fs::write(dir.join("cgroup.kill"), "1").context("kill the scenario's cgroup")?;
    eventually("the scenario's processes to end", Duration::from_secs(60), || {
        fs::read_to_string(dir.join("cgroup.events")).is_ok_and(|text| text.contains("populated 0"))
    })?;
    // A scenario that failed may have left some of its own in it.
    for entry in fs::read_dir(&dir)?.flatten().filter(|entry| entry.path().is_dir()) {
        fs::remove_dir(entry.path()).context("remove a cgroup that the scenario made")?;
    }
    fs::remove_dir(&dir).context("remove the scenario's cgroup")
}

/// Brings devices back to the driver they had before, and says what had to be done.
fn restore(before: &[(String, Option<String>, Option<String>)]) -> Vec<String> {
    let after = sysfs::bindings();
    let mut found = Vec::new();
    for (address, driver, over) in &after {
        let Some((_, old_driver, old_override)) = before.iter().find(|(a, ..)| a == address) else {
            found.push(format!("it left {address} behind, which was not there before"));
            continue;
        };
        if driver == old_driver && over == old_override {
            continue;
        }
        found.push(format!(
            "it left {address} on {driver:?} with override {over:?}; before: {old_driver:?}, \
             {old_override:?}"
        ));
        let host = SEATS.iter().find(|seat| seat.address == address).and_then(|s| s.host_driver);
        if let Err(error) = sysfs::to_host(address, host.or(old_driver.as_deref())) {
            found.push(format!("{address} could not be brought back: {error:#}"));
        }
    }
    for (address, ..) in before {
        if !after.iter().any(|(a, ..)| a == address) {
            found.push(format!("it left the machine without {address}"));
        }
    }
    found
}

/// Runs one scenario in this process: what the runner's children do.
///
/// # Errors
/// There is no such scenario, or its verdict can't be written.
pub fn run_here(name: &str) -> Result<()> {
    fs::write(cgroup()?.join("cgroup.procs"), "0").context("enter the cgroup")?;
    let scenario = scenarios::all()
        .into_iter()
        .find(|scenario| scenario.name == name)
        .with_context(|| format!("no scenario {name}"))?;
    let found = serde_json::from_slice(&fs::read(capabilities_path())?)?;
    let dir = Path::new(DIR).join("scratch").join(name);
    fs::create_dir_all(&dir)?;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755))?;
    let mut ctx = Ctx::new(config()?, found, dir.clone());
    let verdict = match (scenario.run)(&mut ctx) {
        Ok(Outcome::Pass) => Verdict::Pass,
        Ok(Outcome::Skip(reason)) => Verdict::Skip { reason, missing: BTreeSet::new() },
        Err(error) => {
            println!("failed: {error:?}");
            Verdict::Fail { reason: format!("{error:#}") }
        }
    };
    let _ = fs::remove_dir_all(&dir);
    fs::write(verdict_path(), serde_json::to_vec(&verdict)?)?;
    Ok(())
}
