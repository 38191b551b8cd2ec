//! Lets one call of `berthd`, or of a helper, to the kernel fail: a tracer below it counts its calls by
//! site, and answers one of them in the kernel's place.
//!
//! The tracer is `daemon/tests/failnth/failnth.c`, compiled by the host. What `berthd` gives up when it
//! starts it gives up below the tracer too.

use std::{ffi::OsString, fs, io, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    Ctx,
    daemon::{Daemon, Options},
    family, wait_for,
};

/// The tracer's name, among the staged programs.
pub const PROGRAM: &str = "failnth";

/// A call, and what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// `[PROGRAM/]CALL[-REQUEST]:OBJECT`: a helper's calls have its name in front, devices and numbers are
    /// `D` and `N`.
    pub name: String,
    /// How often it came by.
    pub calls: u64,
}

/// A call that fails.
#[derive(Debug, Clone)]
pub struct Fault {
    /// Where.
    pub site: String,
    /// The how manieth one there.
    pub number: u64,
    /// What it answers.
    pub errno: i32,
}

/// What was counted since the last time.
#[derive(Debug)]
pub struct Counted {
    /// Whether a call failed.
    pub hit: bool,
    /// Every site, in the order in which they came first.
    pub sites: Vec<Site>,
}

/// The tracer of a running `berthd`.
#[derive(Debug)]
pub struct Injector {
    tracer: u32,
    log: PathBuf,
    patience: Duration,
}

impl Injector {
    /// Starts `berthd` below it. No call fails yet.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start(ctx: &Ctx, options: Options) -> Result<(Daemon, Self)> {
        let log = ctx.dir().join("calls");
        let mut prefix: Vec<OsString> = vec![ctx.program(PROGRAM).into(), log.clone().into()];
        prefix.push(ctx.dir().join("berthd").into());
        prefix.extend(["-", "0", "0"].map(OsString::from));
        let daemon = Daemon::start_with(ctx, Options { prefix, ..options })?;
        let injector = Self { tracer: daemon.pid(), log, patience: ctx.patience() };
        Ok((daemon, injector))
    }

    /// The process of `berthd` itself.
    ///
    /// # Errors
    /// It has ended.
    pub fn traced(&self) -> Result<u32> {
        family::children(self.tracer)?.first().copied().context("berthd has ended")
    }

    /// What was counted, and from now on anew, with this fault.
    ///
    /// # Errors
    /// The tracer has ended, or doesn't answer.
    pub fn next(&self, fault: Option<&Fault>) -> Result<Counted> {
        let order = fault.map_or_else(
            || "-\n0 0\n".to_owned(),
            |it| format!("{}\n{} {}\n", it.site, it.number, it.errno),
        );
        match fs::remove_file(&self.log) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        fs::write(self.log.with_extension("next"), order)?;
        let tracer = i32::try_from(self.tracer).ok().and_then(Pid::from_raw);
        kill_process(tracer.context("odd pid")?, Signal::USR1)?;
        let text =
            wait_for("the tracer's log", self.patience, || fs::read_to_string(&self.log).ok())?;
        parse(&text)
    }
}

fn parse(text: &str) -> Result<Counted> {
    let mut lines = text.lines();
    let hit = lines.next().and_then(|line| line.strip_prefix("hit ")).context("no first line")?;
    let site = |line: &str| {
        let (calls, name) = line.split_once(' ')?;
        Some(Site { name: name.to_owned(), calls: calls.parse().ok()? })
    };
    let sites: Vec<Site> =
        lines.map(|line| site(line).context("no site")).collect::<Result<_>>()?;
    Ok(Counted { hit: hit == "1", sites })
}
