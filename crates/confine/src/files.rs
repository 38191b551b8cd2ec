//! Files and ports: none can be reached but those that are named, and what is below them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, LandlockStatus,
    NetPort, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    Scope,
};

use crate::ConfineError;

/// What may be done with a file, or with all that is below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Reading files and listing directories.
    Read,
    /// Writing files that are there.
    Write,
    /// Both, and the ioctls of devices.
    Device,
    /// Everything but running programs and making devices.
    Keep,
    /// Making and removing sockets.
    Sockets,
}

/// The newest rights that are asked for. Newer ones would need to be thought about first.
const NEWEST: ABI = ABI::V6;

impl Right {
    fn access(self) -> BitFlags<AccessFs> {
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        match self {
            Self::Read => read,
            Self::Write => AccessFs::WriteFile | AccessFs::Truncate,
            Self::Device => read | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev,
            Self::Keep => {
                read | AccessFs::WriteFile
                    | AccessFs::Truncate
                    | AccessFs::MakeReg
                    | AccessFs::MakeDir
                    | AccessFs::MakeSock
                    | AccessFs::RemoveFile
                    | AccessFs::RemoveDir
                    | AccessFs::Refer
            }
            Self::Sockets => read | AccessFs::MakeSock | AccessFs::RemoveFile,
        }
    }
}

/// What stays within reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    paths: Vec<(PathBuf, Right)>,
    ports: Vec<u16>,
    signals: bool,
}

/// What a kernel can't keep out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The version of Landlock that is in force; 0 for none.
    pub abi: i32,
    /// What it doesn't restrict, in words.
    pub lost: Vec<&'static str>,
    /// Paths that weren't there: they stay out of reach when they appear.
    pub absent: Vec<PathBuf>,
}

impl Allowed {
    /// Nothing.
    #[must_use]
    pub fn nothing() -> Self {
        Self::default()
    }

    /// A path, and what is below it.
    #[must_use]
    pub fn path(mut self, path: impl Into<PathBuf>, right: Right) -> Self {
        self.paths.push((path.into(), right));
        self
    }

    /// Listening at a TCP port; 0 lets the system choose.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.ports.push(port);
        self
    }

    /// Signals to processes that aren't confined with this one.
    #[must_use]
    pub fn signals(mut self) -> Self {
        self.signals = true;
        self
    }

    /// Gives everything else up, for the calling thread and all that it starts, for good. A kernel
    /// that can't do all of it does what it can.
    ///
    /// # Errors
    /// The kernel has Landlock and refuses.
    pub fn enter(&self) -> Result<Report, ConfineError> {
        let failed = |error: &dyn std::fmt::Display| ConfineError::new("Landlock", error);
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))
            .map_err(|error| failed(&error))?
            .handle_access(AccessNet::from_all(NEWEST))
            .map_err(|error| failed(&error))?;
        if !self.signals {
            ruleset = ruleset.scope(Scope::Signal).map_err(|error| failed(&error))?;
        }
        let mut created = ruleset.create().map_err(|error| failed(&error))?;
        let mut absent = Vec::new();
        for (path, right) in &self.paths {
            match rule(path, *right) {
                Ok(rule) => created = created.add_rule(rule).map_err(|error| failed(&error))?,
                Err(error) if is_out_of_reach(&error) => absent.push(path.clone()),
                Err(error) => return Err(failed(&format!("{}: {error}", path.display()))),
            }
        }
        for port in &self.ports {
            let rule = NetPort::new(*port, AccessNet::BindTcp);
            created = created.add_rule(rule).map_err(|error| failed(&error))?;
        }
        let status = created.restrict_self().map_err(|error| failed(&error))?;
        let abi = match status.landlock {
            LandlockStatus::Available { effective_abi, .. } => effective_abi as i32,
            _ => 0,
        };
        Ok(Report { abi, lost: lost(abi), absent })
    }
}

/// A file takes no rights of directories.
fn rule(path: &Path, right: Right) -> io::Result<PathBeneath<PathFd>> {
    let fd = PathFd::new(path).map_err(|error| match error {
        PathFdError::OpenCall { source, .. } => source,
        other => io::Error::other(other),
    })?;
    let access = if fs::metadata(path)?.is_dir() {
        right.access()
    } else {
        right.access() & AccessFs::from_file(NEWEST)
    };
    Ok(PathBeneath::new(fd, access))
}

/// Whether it can't be opened later either. A path that can't be opened for want of a descriptor is
/// there: kept out of reach, its act would be refused as if it had no right to it.
fn is_out_of_reach(error: &io::Error) -> bool {
    use io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
}

/// What each version added.
fn lost(abi: i32) -> Vec<&'static str> {
    let added = [
        (1, "files (Linux 5.13 with landlock among the LSMs)"),
        (2, "moving files between directories (5.19)"),
        (3, "truncating files (6.2)"),
        (4, "TCP (6.7)"),
        (5, "ioctls of devices (6.10)"),
        (6, "signals (6.12)"),
    ];
    added.into_iter().filter(|(since, _)| abi < *since).map(|(_, what)| what).collect()
}

#[cfg(test)]
mod tests {
    use std::{io::ErrorKind, net::TcpListener, os::unix::net::UnixListener};

    use super::*;

    /// In a thread of its own, which ends with its restrictions.
    fn confined<T: Send + 'static>(
        allowed: Allowed,
        run: impl FnOnce(Report) -> T + Send + 'static,
    ) -> T {
        std::thread::spawn(move || run(allowed.enter().unwrap())).join().unwrap()
    }

    fn kind<T>(answer: io::Result<T>) -> Option<ErrorKind> {
        answer.err().map(|error| error.kind())
    }

    #[test]
    fn what_isn_t_named_is_out_of_reach() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let at = move |name: &str| root.join(name);
        for name in ["read", "state", "run", "out"] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("file"), "text").unwrap();
        }
        let allowed = Allowed::nothing()
            .path(at("read"), Right::Read)
            .path(at("state"), Right::Keep)
            .path(at("run"), Right::Sockets)
            .path(at("gone"), Right::Read);
        let gone = at("gone");
        let denied = Some(ErrorKind::PermissionDenied);
        confined(allowed, move |report| {
            if report.abi == 0 {
                eprintln!("this kernel has no Landlock: nothing is tested");
                assert!(!report.lost.is_empty());
                return;
            }
            assert_eq!(report.absent, [gone]);
            assert_eq!(fs::read_to_string(at("read").join("file")).unwrap(), "text");
            assert_eq!(kind(fs::write(at("read").join("file"), "x")), denied);
            assert_eq!(kind(fs::read(at("out").join("file"))), denied);
            assert_eq!(kind(fs::read("/etc/passwd")), denied);
            fs::write(at("state").join("new"), "x").unwrap();
            fs::rename(at("state").join("new"), at("state").join("newer")).unwrap();
            fs::remove_file(at("state").join("newer")).unwrap();
            drop(UnixListener::bind(at("run").join("s")).unwrap());
            fs::remove_file(at("run").join("s")).unwrap();
            assert_eq!(kind(fs::write(at("run").join("new"), "x")), denied);
            assert_eq!(kind(UnixListener::bind(at("read").join("s"))), denied);
            if report.abi >= 4 {
                assert_eq!(kind(TcpListener::bind("127.0.0.1:0")), denied);
            }
        });
        // Other threads are as they were.
        fs::read("/etc/passwd").unwrap();
    }

    #[test]
    fn what_can_t_be_looked_at_is_not_taken_for_absent() {
        // A name that no file system has (ENAMETOOLONG) stands for a lack of descriptors.
        let long = Path::new("/").join("n".repeat(300));
        let entered = std::thread::spawn(|| Allowed::nothing().path(long, Right::Read).enter())
            .join()
            .unwrap();
        let error = entered.unwrap_err().to_string();
        assert!(error.contains("/nnn"), "{error}");
    }

    #[test]
    fn a_port_that_is_named_can_be_listened_at() {
        confined(Allowed::nothing().port(0), |_| TcpListener::bind("127.0.0.1:0").map(drop))
            .unwrap();
    }

    #[test]
    fn older_kernels_lose_more() {
        assert_eq!(lost(6), [""; 0]);
        assert_eq!(lost(5), ["signals (6.12)"]);
        assert_eq!(lost(0).len(), 6);
    }
}
