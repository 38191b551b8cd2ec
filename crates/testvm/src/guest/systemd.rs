//! Berth as systemd runs it: installed as an administrator would, looked at by what systemd and the
//! kernel say of it.

use std::{
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{Ctx, daemon::Client, eventually, wait_for};

/// The daemon's unit.
pub const BERTHD: &str = "berthd.service";
/// Where sockets are.
pub const RUN_DIR: &str = "/run/berth";
/// Units that are stopped before and after each scenario.
const UNITS: &[&str] = &[
    BERTHD,
    "berthd.socket",
    "berthd-http.socket",
    "berthd-handover.socket",
    "berthd-page.socket",
    "berth-helper.socket",
];
/// Where the instances of the helper have their cgroups.
const HELPERS: &str = "/sys/fs/cgroup/system.slice/system-berth\\x2dhelper.slice";
const CONFIG: &str = "/etc/berth/berthd.toml";
const STATE: &str = "/var/lib/berth";
/// There while a udev rule is masked.
const MASKED_RULE: &str = "/run/udev/rules.d/70-berth.rules";
/// There once Berth was installed.
const INSTALLED: &str = "/run/berth-vm/installed";
/// Drop-ins of scenarios: gone with the next start of the machine, or of a scenario.
const DROP_INS: &str = "/run/systemd/system";

/// Berth, installed. Dropping it stops all of it, and says in the log what the journal has.
#[derive(Debug)]
pub struct Installed {
    client: Client,
    patience: Duration,
    /// Where the journal was when this was installed.
    since: String,
}

impl Deref for Installed {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A process of an instance of the helper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperProcess {
    /// Its unit.
    pub unit: String,
    /// Its id.
    pub pid: u32,
}

impl Installed {
    /// Installs it with the script that is there for that, with no state and with a configuration
    /// of this text. Nothing of it runs then.
    ///
    /// # Errors
    /// A step of the installation fails.
    pub fn fresh(ctx: &Ctx, config: &str) -> Result<Self> {
        let client = Client::new(ctx, Path::new(RUN_DIR).join("berthd.sock"));
        let installed = Self { client, patience: ctx.patience(), since: cursor()? };
        installed.remove_all()?;
        if !Path::new(INSTALLED).exists() {
            let bin = &ctx.config.bin_dir;
            run(Command::new("sh").arg(bin.join("deploy/systemd/install.sh")).arg(bin))?;
            fs::write(INSTALLED, "")?;
        }
        fs::write(CONFIG, config).with_context(|| format!("write {CONFIG}"))?;
        Ok(installed)
    }

    /// The same, and starts it.
    ///
    /// # Errors
    /// It doesn't come up; the journal is in the log.
    pub fn started(ctx: &Ctx, config: &str) -> Result<Self> {
        let installed = Self::fresh(ctx, config)?;
        systemctl(&["start", BERTHD])?;
        Ok(installed)
    }

    /// What was installed and started otherwise, with the journal from now on.
    ///
    /// # Errors
    /// There is no journal.
    pub fn watched(ctx: &Ctx) -> Result<Self> {
        let client = Client::new(ctx, Path::new(RUN_DIR).join("berthd.sock"));
        Ok(Self { client, patience: ctx.patience(), since: cursor()? })
    }

    fn remove_all(&self) -> Result<()> {
        // Units that were never installed can't be stopped.
        let all = |verb| [&[verb], UNITS].concat();
        let _ = systemctl(&all("stop"));
        let _ = systemctl(&all("reset-failed"));
        let drop_ins: Vec<PathBuf> =
            UNITS.iter().map(|unit| drop_in_dir(unit)).filter(|dir| dir.exists()).collect();
        for dir in &drop_ins {
            fs::remove_dir_all(dir)?;
        }
        if Path::new(MASKED_RULE).exists() {
            fs::remove_file(MASKED_RULE)?;
            reload_udev()?;
        }
        // Helpers go on without berthd, until their act ends.
        eventually("helpers to end", self.patience, || helpers().is_empty())?;
        if Path::new(STATE).exists() {
            run(Command::new("find").args([STATE, "-mindepth", "1", "-delete"]))?;
        }
        // Emulated, it takes seconds.
        if drop_ins.is_empty() { Ok(()) } else { systemctl(&["daemon-reload"]).map(drop) }
    }

    /// As if the udev rule had not been installed, for nodes that are made from now on.
    ///
    /// # Errors
    /// udev doesn't take it.
    pub fn mask_udev_rule(&self) -> Result<()> {
        fs::create_dir_all("/run/udev/rules.d")?;
        std::os::unix::fs::symlink("/dev/null", MASKED_RULE)?;
        reload_udev()
    }

    /// The hand-over socket.
    #[must_use]
    pub fn handover(&self) -> PathBuf {
        Path::new(RUN_DIR).join("handover.sock")
    }

    /// The daemon's process, as systemd knows it.
    ///
    /// # Errors
    /// It doesn't run.
    pub fn pid(&self) -> Result<u32> {
        let pid = show(BERTHD, "MainPID")?.parse()?;
        ensure!(pid != 0, "{BERTHD} has no process");
        Ok(pid)
    }

    /// What the journal has of it since this was installed, as chosen by journalctl's arguments.
    ///
    /// # Errors
    /// There is no journal.
    pub fn journal(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("journalctl");
        command.args(["--no-pager", "--after-cursor", &self.since]).args(arguments);
        Ok(String::from_utf8_lossy(&run(&mut command)?.stdout).into_owned())
    }

    /// Waits until the daemon is up in another process than `before`.
    ///
    /// # Errors
    /// It isn't in time.
    pub fn wait_for_another(&self, before: u32) -> Result<u32> {
        // The watchdog's time comes on top of ours.
        wait_for("another berthd", self.patience * 2, || {
            let pid = self.pid().ok().filter(|pid| *pid != before)?;
            (show(BERTHD, "SubState").ok()? == "running").then_some(pid)
        })
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        match self.journal(&["-o", "short-monotonic", "-u", "berthd*", "-u", "berth-helper*"]) {
            Ok(text) => println!("--- journal ---\n{text}--- end of the journal ---"),
            Err(error) => println!("there is no journal: {error:#}"),
        }
        if let Err(error) = self.remove_all() {
            println!("what was left running: {error:#}");
        }
    }
}

/// Runs a program to its end.
///
/// # Errors
/// Its exit status isn't 0; what it said is part of the error.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&said));
    }
    Ok(output)
}

/// Asks systemd for something, and says so in the log.
///
/// # Errors
/// It fails.
pub fn systemctl(words: &[&str]) -> Result<Output> {
    println!("# systemctl {}", words.join(" "));
    run(Command::new("systemctl").args(words))
}

/// A property of a unit.
///
/// # Errors
/// systemd doesn't answer.
pub fn show(unit: &str, property: &str) -> Result<String> {
    let mut command = Command::new("systemctl");
    let output = run(command.args(["show", "--value", "-p", property, unit]))?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Where the journal ends now.
fn cursor() -> Result<String> {
    let mut command = Command::new("journalctl");
    let output = run(command.args(["--no-pager", "-n", "0", "--show-cursor"]))?;
    let text = String::from_utf8(output.stdout)?;
    let cursor = text.lines().find_map(|line| line.strip_prefix("-- cursor: "));
    Ok(cursor.with_context(|| format!("no cursor: {text}"))?.to_owned())
}

fn reload_udev() -> Result<()> {
    run(Command::new("udevadm").args(["control", "--reload"])).map(drop)
}

fn drop_in_dir(unit: &str) -> PathBuf {
    Path::new(DROP_INS).join(format!("{unit}.d"))
}

/// Adds lines to a unit, until the scenario ends.
///
/// # Errors
/// They can't be written.
pub fn drop_in(unit: &str, text: &str) -> Result<()> {
    let dir = drop_in_dir(unit);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("scenario.conf"), text)?;
    systemctl(&["daemon-reload"]).map(drop)
}

/// The processes of helpers that run now, by their cgroups.
#[must_use]
pub fn helpers() -> Vec<HelperProcess> {
    let mut found = Vec::new();
    for entry in fs::read_dir(HELPERS).into_iter().flatten().flatten() {
        let unit = entry.file_name().to_string_lossy().into_owned();
        let text = fs::read_to_string(entry.path().join("cgroup.procs")).unwrap_or_default();
        let pids = text.lines().filter_map(|line| line.parse().ok());
        found.extend(pids.map(|pid| HelperProcess { unit: unit.clone(), pid }));
    }
    found
}

/// A field of `/proc/PID/status`.
///
/// # Errors
/// The process is gone.
pub fn status(pid: u32, field: &str) -> Result<String> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    Ok(value.with_context(|| format!("{path} has no {field}"))?.trim().to_owned())
}

/// The cgroup of a process, as the kernel says.
///
/// # Errors
/// The process is gone.
pub fn cgroup_of(pid: u32) -> Result<String> {
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let own = text.lines().find_map(|line| line.strip_prefix("0::"));
    Ok(own.with_context(|| format!("{path}: {text}"))?.to_owned())
}
