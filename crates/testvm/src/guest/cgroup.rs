//! Control groups below the scenario's own, as a service manager makes them for VMs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// What was made; gone when dropped, where nothing runs in it any more.
#[derive(Debug)]
pub struct Cgroups {
    own: PathBuf,
    made: Vec<PathBuf>,
}

impl Cgroups {
    /// Finds the scenario's own.
    ///
    /// # Errors
    /// There is none.
    pub fn below_own() -> Result<Self> {
        let text = fs::read_to_string("/proc/self/cgroup")?;
        let own = text.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup")?;
        Ok(Self { own: Path::new("/sys/fs/cgroup").join(own), made: Vec::new() })
    }

    /// Puts a process into a group, made where it isn't there, below one that is where it has a path.
    ///
    /// # Errors
    /// The kernel's.
    pub fn put(&mut self, process: u32, group: &str) -> Result<()> {
        let dir = self.own.join(group);
        if !dir.exists() {
            fs::create_dir(&dir).with_context(|| format!("make {}", dir.display()))?;
            self.made.push(dir.clone());
        }
        fs::write(dir.join("cgroup.procs"), process.to_string())
            .with_context(|| format!("put {process} into {group}"))
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for dir in self.made.iter().rev() {
            // Processes that were killed leave it a moment later.
            for _ in 0..100 {
                if fs::remove_dir(dir).is_ok() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    }
}
