//! What a process of Berth's gives up once it knows what it needs: system calls ([`calls`], by
//! seccomp), files and ports ([`files`], by Landlock).
//!
//! Both are for good, and for everything that the process starts: whoever starts helpers has to have
//! somebody for that before.
#![forbid(unsafe_code)]

pub mod calls;
pub mod files;

pub use syscalls::Sysno;

/// A process that can't be confined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {why}")]
pub struct ConfineError {
    /// What was tried.
    pub what: &'static str,
    /// What the system says.
    pub why: String,
}

impl ConfineError {
    fn new(what: &'static str, why: impl ToString) -> Self {
        Self { what, why: why.to_string() }
    }
}
