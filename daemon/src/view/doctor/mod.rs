//! What is wrong with a host, from its facts and the record: each finding with its cause and its fix.

mod code;
mod confined;
mod groups;
mod host;
mod records;

use berth_host::{Feature, Settings};
use berth_proto::v1;

use crate::model::Snapshot;
use code::Code;

/// What is asked of the machine beside what is known of it.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// What it can do.
    pub features: &'a [Feature],
    /// How its kernel is set.
    pub settings: &'a Settings,
}

/// All findings, the worst first.
#[must_use]
pub fn diagnose(snapshot: &Snapshot, machine: &Machine<'_>) -> Vec<v1::Finding> {
    let mut findings = host::findings(snapshot, machine);
    findings.extend(groups::findings(snapshot));
    findings.extend(records::findings(snapshot));
    findings.extend(confined::findings(crate::hardening::status()));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    findings
}

/// A finding about an object; the host where that is empty.
fn finding(code: Code, object: impl ToString, cause: impl Into<String>) -> v1::Finding {
    v1::Finding {
        level: code.level().into(),
        code: code.name().to_owned(),
        object: object.to_string(),
        cause: cause.into(),
        fixes: Vec::new(),
        docs: code.docs(),
    }
}

/// The same with a way out.
fn fixed_by(mut finding: v1::Finding, fix: impl Into<String>) -> v1::Finding {
    finding.fixes.push(fix.into());
    finding
}
