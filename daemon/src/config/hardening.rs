//! `[hardening]`: what berthd gives up once it runs.

use toml::Spanned;

use super::{ConfigError, error::Source, raw::RawHardening};

/// How strictly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// What isn't needed is refused.
    Enforce,
    /// What isn't needed is done, and the kernel's audit log has it. System calls only.
    Log,
    /// Nothing is given up.
    Off,
}

impl Strictness {
    /// The word that the file uses.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Log => "log",
            Self::Off => "off",
        }
    }
}

/// What berthd gives up once it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardening {
    /// System calls.
    pub seccomp: Strictness,
    /// Files and ports.
    pub landlock: Strictness,
}

impl Default for Hardening {
    fn default() -> Self {
        Self { seccomp: Strictness::Enforce, landlock: Strictness::Enforce }
    }
}

pub(super) fn resolve(raw: &RawHardening, source: &Source<'_>) -> Result<Hardening, ConfigError> {
    use Strictness::{Enforce, Log, Off};
    let usual = Hardening::default();
    Ok(Hardening {
        seccomp: word(
            raw.seccomp.as_ref(),
            "seccomp",
            &[Enforce, Log, Off],
            usual.seccomp,
            source,
        )?,
        landlock: word(raw.landlock.as_ref(), "landlock", &[Enforce, Off], usual.landlock, source)?,
    })
}

fn word(
    given: Option<&Spanned<String>>,
    key: &str,
    known: &[Strictness],
    usual: Strictness,
    source: &Source<'_>,
) -> Result<Strictness, ConfigError> {
    let Some(given) = given else { return Ok(usual) };
    let found = known.iter().find(|known| known.word() == given.get_ref());
    found.copied().ok_or_else(|| {
        let words: Vec<&str> = known.iter().map(|known| known.word()).collect();
        source.error(
            Some(given.span()),
            &format!("hardening.{key}"),
            format!("{:?} is none of its words", given.get_ref()),
            format!("use {}", words.join(" or ")),
        )
    })
}
