//! What berthd gives up once its configuration is read: system calls by seccomp, files and ports by
//! Landlock. Whatever goes wrong in it later can't do more than what is left.
//!
//! Both are for the whole process and for good, so they come before the first thread; and for all
//! that it starts, so whoever starts helpers is started before (`berth_helper::spawner`).

mod calls;
mod files;

use std::sync::OnceLock;

use berth_confine::{
    ConfineError,
    calls::{Others, Whom},
    files::Report,
};

use crate::config::{Config, Endpoint, Hardening, Strictness};

/// What is in force in this process; a process that never tried has none.
static STATUS: OnceLock<Status> = OnceLock::new();

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What was asked for.
    pub asked: Hardening,
    /// Why system calls are not filtered, where that was asked for.
    pub no_seccomp: Option<String>,
    /// What Landlock does; or why nothing, where it was asked for.
    pub landlock: Result<Report, String>,
    /// All of /dev is within reach until the next start, as VFIO had no directory there.
    pub all_nodes: bool,
}

/// What is in force in this process.
#[must_use]
pub fn status() -> Option<&'static Status> {
    STATUS.get()
}

/// The system calls that were refused, and how often.
#[must_use]
pub fn refused_calls() -> Vec<(&'static str, u32)> {
    berth_confine::calls::refused()
}

impl Status {
    /// Whether system calls that aren't needed are refused.
    #[must_use]
    pub fn seccomp(&self) -> bool {
        self.asked.seccomp == Strictness::Enforce && self.no_seccomp.is_none()
    }

    /// Whether files are kept out of reach.
    #[must_use]
    pub fn landlock(&self) -> bool {
        self.asked.landlock == Strictness::Enforce
            && self.landlock.as_ref().is_ok_and(|report| report.abi > 0)
    }

    /// What is within reach that needn't be, in words.
    #[must_use]
    pub fn gaps(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        match (self.asked.seccomp, &self.no_seccomp) {
            (Strictness::Enforce, None) => {}
            (Strictness::Enforce | Strictness::Log, Some(why)) => {
                gaps.push(format!("every system call: {why}"));
            }
            (asked, _) => {
                gaps.push(format!("every system call: hardening.seccomp is {}", asked.word()));
            }
        }
        match (self.asked.landlock, &self.landlock) {
            (Strictness::Enforce, Ok(report)) => {
                gaps.extend(report.lost.iter().map(|what| format!("{what}: the kernel is older")));
            }
            (Strictness::Enforce, Err(why)) => gaps.push(format!("all files: {why}")),
            (asked, _) => {
                gaps.push(format!("all files: hardening.landlock is {}", asked.word()));
            }
        }
        if self.all_nodes && self.landlock() {
            gaps.push(
                "all of /dev: there was no /dev/vfio at the start; restart berthd".to_owned(),
            );
        }
        gaps
    }
}

/// Gives up what isn't needed. The directories that it needs are there by now.
pub fn enter(config: &Config) -> &'static Status {
    let status = STATUS.get_or_init(|| try_enter(config));
    let gaps = status.gaps();
    if gaps.is_empty() {
        tracing::info!("confined: system calls by seccomp, files and TCP by Landlock");
    } else {
        tracing::warn!(within_reach = gaps.join("; "), "not confined as well as it could be");
    }
    if let Ok(report) = &status.landlock {
        for path in &report.absent {
            tracing::debug!(path = %path.display(), "not there, and out of reach until the next start");
        }
    }
    status
}

fn try_enter(config: &Config) -> Status {
    let Hardening { seccomp, landlock } = config.hardening;
    let nodes = files::Nodes::look();
    let text = |error: ConfineError| error.to_string();
    // Its own calls would not be let through.
    let report = match landlock {
        Strictness::Off | Strictness::Log => Ok(Report::default()),
        Strictness::Enforce => files::allowed(config, &nodes).enter().map_err(text),
    };
    let others = match seccomp {
        Strictness::Off => None,
        Strictness::Log => Some(Others::Logged),
        Strictness::Enforce => Some(Others::Refused),
    };
    let tcp = config.listen.iter().any(|it| matches!(it.endpoint, Endpoint::Tcp { .. }));
    let entered = others.map_or(Ok(()), |others| calls::allowed(tcp).enter(others, Whom::Process));
    Status {
        asked: config.hardening,
        no_seccomp: entered.err().map(text),
        landlock: report,
        all_nodes: nodes == files::Nodes::ToCome && !config.host.is_simulated(),
    }
}
