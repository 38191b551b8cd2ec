//! What is wrong with a host, from its facts and the record: each finding with its cause and its fix.

mod code;
mod confined;
mod drivers;
mod groups;
mod host;
mod memory;
mod records;
mod scope;

use berth_host::{Feature, Settings};
use berth_proto::v1;

use crate::model::{ConfigState, Snapshot};
use code::Code;
pub(in crate::view) use drivers::release;
pub use scope::{Scope, findings_of};

/// What is asked of the machine beside what is known of it.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// What it can do.
    pub features: &'a [Feature],
    /// How its kernel is set.
    pub settings: &'a Settings,
    /// What is in force of the configuration.
    pub config: &'a ConfigState,
}

/// All findings, the worst first.
#[must_use]
pub fn diagnose(snapshot: &Snapshot, machine: &Machine<'_>) -> Vec<v1::Finding> {
    let mut findings = host::findings(&snapshot.inventory.groups, machine);
    findings.extend(groups::findings(snapshot, None));
    findings.extend(snapshot.state.groups().flat_map(|group| drivers::siblings(snapshot, group)));
    findings.extend(records::findings(snapshot));
    findings.extend(refused_config(machine.config));
    findings.extend(confined::findings(crate::hardening::status()));
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.level));
    findings
}

fn refused_config(config: &ConfigState) -> Option<v1::Finding> {
    let (_, why) = config.refused.as_ref()?;
    let cause = format!("the configuration of the last reload is not in force: {why}");
    let fix = "correct the line, then `systemctl reload berthd`".to_owned();
    Some(v1::Finding { fixes: vec![fix], ..finding(Code::ConfigRefused, "", cause) })
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
