//! What runs inside the guest, and what scenarios are made of.

pub mod access;
pub mod bar;
pub mod bench;
pub mod capabilities;
pub mod cgroup;
pub mod daemon;
pub mod disk;
pub mod edu;
pub mod family;
pub mod gift;
pub mod handover;
pub mod holder;
pub mod injector;
pub mod killer;
pub mod kmsg;
pub mod kubelet;
pub mod machine;
pub mod memory;
pub mod nvme;
pub mod probe;
pub mod qtest;
pub mod runner;
pub mod shell;
pub mod sysfs;
pub mod systemd;
pub mod unpriv;
pub mod vdpa;
mod wait;

use std::{
    collections::BTreeSet,
    fmt::Display,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

pub use self::wait::{eventually, wait_for};
use crate::wire::{Capability, GuestConfig};

/// How a scenario ended when it saw no error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that was to be seen was seen.
    Pass,
    /// It could not run, for a reason that no [`Capability`] covers. In CI this is a failure.
    Skip(String),
}

/// One test on the real kernel.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Its name, `topic_what`, unique.
    pub name: &'static str,
    /// What it can't run without. A missing one is a named skip.
    pub needs: &'static [Capability],
    /// After how long it is given up, on a machine with KVM.
    pub timeout_seconds: u64,
    /// The test. An error is a failure.
    pub run: fn(&mut Ctx) -> Result<Outcome>,
}

impl Scenario {
    /// A scenario with the usual time limit of two minutes.
    pub const fn new(
        name: &'static str,
        needs: &'static [Capability],
        run: fn(&mut Ctx) -> Result<Outcome>,
    ) -> Self {
        Self { name, needs, timeout_seconds: 120, run }
    }

    /// The same with another time limit.
    #[must_use]
    pub const fn within(mut self, timeout_seconds: u64) -> Self {
        self.timeout_seconds = timeout_seconds;
        self
    }
}

/// What a scenario is given.
#[derive(Debug)]
pub struct Ctx {
    /// The run's configuration.
    pub config: GuestConfig,
    /// What this guest has.
    pub capabilities: BTreeSet<Capability>,
    dir: PathBuf,
}

impl Ctx {
    pub(crate) const fn new(
        config: GuestConfig,
        capabilities: BTreeSet<Capability>,
        dir: PathBuf,
    ) -> Self {
        Self { config, capabilities, dir }
    }

    /// Writes a line to the scenario's log.
    pub fn say(&self, line: impl Display) {
        println!("{line}");
    }

    /// Whether the guest has something.
    #[must_use]
    pub fn has(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }

    /// An empty directory on tmpfs that belongs to this scenario alone; any uid may enter it.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The path of a program that was built for this run (`berthd`, `berth`, ...).
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.config.bin_dir.join(name)
    }

    /// How long to wait for something that will come: generous, since only failures pay for it.
    #[must_use]
    pub const fn patience(&self) -> Duration {
        Duration::from_secs(if self.config.slow { 120 } else { 30 })
    }

    /// A connection to this machine's own QMP, for hot-plug.
    ///
    /// # Errors
    /// The port isn't there.
    pub fn machine(&self) -> Result<machine::Machine> {
        machine::Machine::open().context("open the machine's QMP port")
    }
}
