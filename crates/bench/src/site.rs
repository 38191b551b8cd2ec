//! The machine that devices are handed over on: a simulated one, or this kernel with real devices.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};
use berth_host::sim::Topology;
pub(crate) use berth_measure::Backend;
use berth_measure::Target;
use berth_proto::v1;
use tempfile::TempDir;

use crate::{
    Places,
    daemon::{Machine, Running},
};

/// Devices of this kernel, both on vfio-pci and each in a group of its own.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// What both sides stand on.
    pub(crate) backend: Backend,
    /// The daemon's device.
    pub(crate) device: String,
    /// The peer's device.
    pub(crate) beside: String,
}

/// A daemon on its machine.
#[derive(Debug)]
pub(crate) struct Site {
    kernel: Option<Kernel>,
    dir: TempDir,
    /// The daemon.
    pub(crate) daemon: Running,
}

impl Site {
    /// Starts a daemon, on the kernel's devices where there are some.
    ///
    /// # Errors
    /// It isn't ready.
    pub(crate) fn start(places: &Places) -> Result<Self> {
        let dir = tempfile::tempdir_in(&places.memory).context("make a directory in memory")?;
        let file = dir.path().join("machine.toml");
        let kernel = places.kernel.clone();
        let machine = if kernel.is_some() {
            Machine::Kernel
        } else {
            fs::write(&file, Topology::generated(1).to_toml()?).context("write the machine")?;
            Machine::Simulated(&file)
        };
        let daemon = Running::start(&places.programs, machine, dir.path())?;
        Ok(Self { kernel, dir, daemon })
    }

    /// The hand-over socket.
    pub(crate) fn handover(&self) -> PathBuf {
        self.dir.path().join("handover.sock")
    }

    /// The gRPC socket.
    pub(crate) fn grpc(&self) -> PathBuf {
        self.dir.path().join("berthd.sock")
    }

    /// The real devices.
    ///
    /// # Errors
    /// The machine is simulated.
    pub(crate) fn kernel(&self) -> Result<&Kernel> {
        let Some(kernel) = &self.kernel else {
            bail!("this needs real devices: --backend, --device and --beside")
        };
        Ok(kernel)
    }

    /// Whether the devices are real.
    pub(crate) const fn is_real(&self) -> bool {
        self.kernel.is_some()
    }

    /// The device to reserve.
    pub(crate) fn device(&self) -> &str {
        self.kernel.as_ref().map_or("0000:01:00.0", |kernel| &kernel.device)
    }

    /// The back end to reserve it on.
    pub(crate) fn backend(&self) -> v1::Backend {
        match self.kernel.as_ref().map(|kernel| kernel.backend) {
            Some(Backend::Type1) => v1::Backend::Type1,
            Some(Backend::Iommufd) | None => v1::Backend::Iommufd,
        }
    }

    /// What the peer holds, in its words: its device, or as many memfds as there are descriptors.
    pub(crate) fn beside(&self, fds: usize) -> Vec<String> {
        match &self.kernel {
            Some(kernel) => vec![kernel.backend.word().to_owned(), kernel.beside.clone()],
            None => vec![fds.to_string()],
        }
    }

    /// The back end and the kernel, where both are real.
    fn place(&self) -> Option<String> {
        let kernel = self.kernel.as_ref()?;
        let name = rustix::system::uname();
        Some(format!("{}, Linux {}", kernel.backend.word(), name.release().to_string_lossy()))
    }

    /// A case's name, with where that is.
    pub(crate) fn case(&self, text: &str) -> String {
        self.place().map_or_else(|| text.to_owned(), |place| format!("{text}, {place}"))
    }

    /// A note, with where that is.
    pub(crate) fn note(&self, text: &str) -> String {
        self.place().map_or_else(|| text.to_owned(), |place| format!("{place}: {text}"))
    }

    /// Where the machine is simulated, the comparison that counts is that on a real one.
    pub(crate) const fn target(&self, target: Target) -> Target {
        if self.is_real() { target } else { Target::Beside }
    }
}
