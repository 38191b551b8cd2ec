//! Kills `berthd` from outside at a system call of a chosen number, by `strace`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{Ctx, eventually, wait_for};

/// The directory of VFIO's nodes, and the one of iommufd.
const NODES: [&str; 2] = ["/dev/vfio", "/dev/iommu"];

/// System calls that are counted together, each by itself and for each thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calls {
    /// What they are for.
    pub name: &'static str,
    /// Their names, with commas between.
    pub calls: &'static str,
    /// Whether only those count that name a node of VFIO or iommufd.
    pub nodes: bool,
}

/// A tracer that is attached to a process and to all that it starts. Dropping it lets them go.
#[derive(Debug)]
pub struct Killer {
    strace: Child,
    out: PathBuf,
    patience: Duration,
}

/// What a tracer saw.
#[derive(Debug)]
pub struct Seen {
    lines: Vec<(u32, String)>,
}

impl Killer {
    /// Attaches to a process. With a number it is killed when one of its threads, or of what it
    /// starts, does one of these calls for that many times.
    ///
    /// # Errors
    /// There is no strace, or it can't attach.
    pub fn attach(ctx: &Ctx, pid: u32, sets: &[Calls], when: Option<u64>) -> Result<Self> {
        let out = ctx.dir().join("strace");
        let calls: Vec<&str> = sets.iter().map(|set| set.calls).collect();
        let calls = calls.join(",");
        let mut command = Command::new("strace");
        command.args(["-f", "-y", "-e", &format!("trace={calls}"), "-p", &pid.to_string()]);
        // Who starts its helpers was started before.
        for child in super::family::children(pid)? {
            command.args(["-p", &child.to_string()]);
        }
        if let Some(when) = when {
            command.args(["-e", &format!("inject={calls}:signal=SIGKILL:when={when}")]);
        }
        if when.is_some() && sets.iter().all(|set| set.nodes) {
            for node in nodes() {
                command.arg("-P").arg(node);
            }
        }
        let log = fs::File::create(ctx.dir().join("strace.log"))?;
        let strace = command
            .arg("-o")
            .arg(&out)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("strace")?;
        let mut killer = Self { strace, out, patience: ctx.patience() };
        let strace = &mut killer.strace;
        let mut ended = None;
        eventually("strace to attach to every thread", ctx.patience(), || {
            ended = strace.try_wait().ok().flatten();
            ended.is_some() || is_traced(pid)
        })?;
        if let Some(status) = ended {
            let log = fs::read_to_string(ctx.dir().join("strace.log")).unwrap_or_default();
            bail!("strace ended with {status}: {log}");
        }
        Ok(killer)
    }

    /// Lets go, and says what was seen.
    ///
    /// # Errors
    /// It doesn't end.
    pub fn finish(mut self) -> Result<Seen> {
        if self.strace.try_wait()?.is_none() {
            let pid = i32::try_from(self.strace.id()).ok().and_then(Pid::from_raw);
            // It may end by itself at this moment.
            let _ = kill_process(pid.context("odd pid")?, Signal::TERM);
        }
        let strace = &mut self.strace;
        wait_for("strace to end", self.patience, || strace.try_wait().ok().flatten())?;
        let text = String::from_utf8_lossy(&fs::read(&self.out)?).into_owned();
        let lines = text.lines().filter_map(|line| {
            let (pid, rest) = line.split_once(' ')?;
            Some((pid.parse().ok()?, rest.trim_start().to_owned()))
        });
        Ok(Seen { lines: lines.collect() })
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        // Both fail only when it has ended already. A tracer that is killed lets go.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

impl Seen {
    /// Up to which number at least one thread did one of these calls.
    #[must_use]
    pub fn most(&self, set: Calls) -> u64 {
        let mut counts: BTreeMap<(u32, &str), u64> = BTreeMap::new();
        for (pid, line) in &self.lines {
            let Some((call, args)) = line.split_once('(') else { continue };
            let counts_here = set.calls.split(',').any(|known| known == call)
                && (!set.nodes || NODES.iter().any(|node| args.contains(node)));
            if counts_here {
                *counts.entry((*pid, call)).or_default() += 1;
            }
        }
        counts.into_values().max().unwrap_or(0)
    }

    /// Whether a process was killed.
    #[must_use]
    pub fn killed(&self, pid: u32) -> bool {
        self.lines.iter().any(|(who, line)| *who == pid && line.starts_with("+++ killed"))
    }

    /// The call at which the first kill came, shortened; `None` when nobody was killed.
    #[must_use]
    pub fn hit(&self) -> Option<String> {
        let end = self.lines.iter().position(|(_, line)| line.starts_with("+++ killed"))?;
        let signal = self.lines[..end].iter().rposition(|(_, line)| line.contains("(INJECTED"));
        let last =
            signal.or_else(|| self.lines[..end].iter().rposition(|(_, line)| line.contains('(')));
        let (_, line) = &self.lines[last?];
        Some(line.chars().take(90).collect())
    }
}

/// Every node of VFIO and iommufd that there is or will be.
fn nodes() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/dev/iommu"), PathBuf::from("/dev/vfio/vfio")];
    let groups = fs::read_dir("/sys/kernel/iommu_groups").into_iter().flatten().flatten();
    found.extend(groups.map(|group| Path::new("/dev/vfio").join(group.file_name())));
    found.extend((0..4).map(|number| PathBuf::from(format!("/dev/vfio/devices/vfio{number}"))));
    found
}

fn is_traced(pid: u32) -> bool {
    let Ok(tasks) = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")) else {
        return false;
    };
    tasks.flatten().all(|task| {
        fs::read_to_string(task.path().join("status"))
            .is_ok_and(|text| !text.contains("TracerPid:\t0\n"))
    })
}
