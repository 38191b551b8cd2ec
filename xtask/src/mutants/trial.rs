//! Mutants that are switched on, one in each process.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::outcome::Outcome;

/// A program of tests, where it runs, and which of its tests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trial<'a> {
    pub(super) program: &'a Path,
    pub(super) dir: &'a Path,
    pub(super) level: &'a [&'a str],
}

/// The least time that tests have.
const LEAST: Duration = Duration::from_secs(20);

impl Trial<'_> {
    /// How long the tests may take: ten times what they take without a mutant, when they must pass.
    pub(super) fn limit(&self) -> Result<Duration> {
        let begun = Instant::now();
        match self.one(None, Duration::from_secs(600))? {
            Outcome::Missed => Ok(LEAST.max(begun.elapsed() * 10)),
            _ => bail!("without any mutant the tests of {} fail", self.program.display()),
        }
    }

    /// Runs the tests with a mutant.
    pub(super) fn one(&self, mutant: Option<u32>, limit: Duration) -> Result<Outcome> {
        let mut command = Command::new(self.program);
        command.args(self.level).arg("--test-threads=1").current_dir(self.dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(number) = mutant {
            command.env("BERTH_MUTANT", number.to_string());
        }
        let mut child = command.spawn().context("start the tests")?;
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait().context("wait for the tests")? {
                return Ok(if status.success() { Outcome::Missed } else { Outcome::Caught });
            }
            if begun.elapsed() > limit {
                child.kill().context("end the tests")?;
                child.wait().context("wait for the tests")?;
                return Ok(Outcome::Timeout);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Runs the tests with each of the mutants, some at a time.
    pub(super) fn all(&self, mutants: &[u32], jobs: usize) -> Result<Vec<(u32, Outcome)>> {
        if mutants.is_empty() {
            return Ok(Vec::new());
        }
        let limit = self.limit()?;
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..jobs.max(1) {
                scope.spawn(|| {
                    while let Some(number) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let outcome = self.one(Some(*number), limit);
                        let mut found = found.lock().unwrap_or_else(|held| held.into_inner());
                        found.push(outcome.map(|outcome| (*number, outcome)));
                    }
                });
            }
        });
        found.into_inner().unwrap_or_else(|held| held.into_inner()).into_iter().collect()
    }
}
