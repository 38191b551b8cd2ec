//! Results: the table, the summary line, and which skips are failures.

use std::{collections::BTreeSet, fmt::Write};

use super::kernel::Kind;
use crate::wire::{Capability, Profile, Verdict};

/// One scenario's result on one machine.
#[derive(Debug, Clone)]
pub struct Line {
    /// The kernel.
    pub kernel: Kind,
    /// The machine.
    pub profile: Profile,
    /// The scenario, or `boot` for the machine itself.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// How long it took.
    pub seconds: f64,
}

/// The results of all machines.
#[derive(Debug, Default)]
pub struct Report {
    /// One line per scenario and machine.
    pub lines: Vec<Line>,
}

/// How many ended how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Scenarios that passed.
    pub passed: u32,
    /// Scenarios that failed.
    pub failed: u32,
    /// Scenarios that could not run.
    pub skipped: u32,
}

/// What a kernel of this kind on this machine is expected to have.
#[must_use]
pub fn expected(kernel: Kind, profile: Profile) -> BTreeSet<Capability> {
    use Capability as C;
    let interrupts = match profile {
        Profile::Default | Profile::Systemd => C::Intremap,
        Profile::NoIntremap => C::NoIntremap,
    };
    let mut set = BTreeSet::from([interrupts, C::Qemu]);
    if profile == Profile::Systemd {
        set.insert(C::Systemd);
    }
    match kernel {
        Kind::Own => {
            set.extend([C::Iommufd, C::Cdev, C::Type1, C::MapFile, C::IommufdTest]);
            set.extend([C::Strace, C::FailNth, C::Daemon, C::Kubelet, C::Vdpa]);
        }
        Kind::Stock => {
            set.extend([C::Type1, C::Shpchp, C::Strace, C::FailNth, C::Daemon, C::Kubelet]);
        }
        Kind::Path => {}
    }
    set
}

/// A line fit for the table; all of it is in the scenario's log.
fn shortened(line: &str) -> String {
    const LONGEST: usize = 400;
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} ...", &line[..end]),
        None => line.to_owned(),
    }
}

impl Report {
    /// In CI a skip for want of something that this kernel should have is a failure, and so is a
    /// skip that names no capability.
    pub fn make_strict(&mut self) {
        for line in &mut self.lines {
            let Verdict::Skip { reason, missing } = &line.verdict else { continue };
            let expected = expected(line.kernel, line.profile);
            let wrong = missing.is_empty() || missing.iter().any(|cap| expected.contains(cap));
            if wrong {
                let reason = format!("skipped in CI: {reason}");
                line.verdict = Verdict::Fail { reason };
            }
        }
    }

    /// How many ended how.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let count = |test: fn(&Verdict) -> bool| {
            let lines = self.lines.iter().filter(|line| test(&line.verdict));
            u32::try_from(lines.count()).unwrap_or(u32::MAX)
        };
        Counts {
            passed: count(|v| matches!(v, Verdict::Pass)),
            failed: count(|v| matches!(v, Verdict::Fail { .. })),
            skipped: count(|v| matches!(v, Verdict::Skip { .. })),
        }
    }

    /// Whether at least one scenario passed and none failed.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let counts = self.counts();
        counts.failed == 0 && counts.passed > 0
    }

    /// The table, one line per result.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = String::new();
        for line in &self.lines {
            let (word, reason) = match &line.verdict {
                Verdict::Pass => ("pass", ""),
                Verdict::Fail { reason } => ("FAIL", reason.as_str()),
                Verdict::Skip { reason, .. } => ("skip", reason.as_str()),
            };
            let machine = format!("{}/{}", line.kernel, line.profile);
            let _ = write!(text, "{machine:<18} {:<40} {word} {:>7.2} s", line.name, line.seconds);
            let mut reason = reason.lines().map(shortened);
            if let Some(first) = reason.next() {
                let _ = write!(text, "  {first}");
            }
            text.push('\n');
            for more in reason {
                let _ = writeln!(text, "    {more}");
            }
        }
        text
    }

    /// Two lines: as `cargo test` says it, and short.
    #[must_use]
    pub fn summary(&self) -> String {
        let Counts { passed, failed, skipped } = self.counts();
        let word = if self.is_good() { "ok" } else { "FAILED" };
        format!(
            "test result: {word}. {passed} passed; {failed} failed; {skipped} skipped\n\
             {passed} passed, {failed} failed, {skipped} skipped"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Line, Report};
    use crate::{
        host::kernel::Kind,
        wire::{Capability, Profile, Verdict},
    };

    fn skip(kernel: Kind, missing: &[Capability]) -> Report {
        let missing: BTreeSet<_> = missing.iter().copied().collect();
        let verdict = Verdict::Skip { reason: "lacks it".into(), missing };
        let name = "x".to_owned();
        let skip = Line { kernel, profile: Profile::Default, name, verdict, seconds: 0.1 };
        let pass = Line { verdict: Verdict::Pass, ..skip.clone() };
        Report { lines: vec![skip, pass] }
    }

    #[test]
    fn in_ci_a_skip_fails_where_the_kernel_should_have_it() {
        let mut report = skip(Kind::Own, &[Capability::Iommufd]);
        assert!(report.is_good());
        report.make_strict();
        assert!(!report.is_good());
        assert!(report.summary().starts_with("test result: FAILED. 1 passed; 1 failed; 0 skipped"));
    }

    #[test]
    fn in_ci_a_skip_is_fine_where_the_kernel_cannot_have_it() {
        let mut report = skip(Kind::Stock, &[Capability::Iommufd]);
        report.make_strict();
        assert!(report.is_good());
    }

    #[test]
    fn in_ci_a_skip_without_a_capability_fails() {
        let mut report = skip(Kind::Stock, &[]);
        report.make_strict();
        assert!(!report.is_good());
    }

    #[test]
    fn nothing_run_is_not_good() {
        assert!(!Report::default().is_good());
    }
}
