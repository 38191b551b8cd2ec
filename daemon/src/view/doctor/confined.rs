//! What berthd itself could do that it needn't.

use berth_proto::v1;

use super::{Code, finding, fixed_by};
use crate::hardening::Status;

/// Nothing of a process that was never to be confined: a test, a bench.
pub(super) fn findings(status: Option<&Status>) -> Option<v1::Finding> {
    let gaps = status?.gaps();
    if gaps.is_empty() {
        return None;
    }
    let cause = format!("within berthd's reach without need: {}", gaps.join("; "));
    let fix = "hardening.seccomp = \"enforce\", hardening.landlock = \"enforce\", a kernel of 6.12 or \
               newer with landlock among its LSMs, and a restart of berthd";
    Some(fixed_by(finding(Code::NotConfined, "", cause), fix))
}

#[cfg(test)]
mod tests {
    use berth_confine::files::Report;

    use super::*;
    use crate::config::{Hardening, Strictness};

    fn whole() -> Status {
        Status {
            asked: Hardening::default(),
            no_seccomp: None,
            landlock: Ok(Report { abi: 6, lost: Vec::new(), absent: Vec::new() }),
            all_nodes: false,
        }
    }

    #[test]
    fn each_gap_is_told_and_nothing_else() {
        assert!(findings(None).is_none() && findings(Some(&whole())).is_none());
        let off = |seccomp, landlock| Status { asked: Hardening { seccomp, landlock }, ..whole() };
        let old = Report { abi: 3, lost: vec!["TCP (6.7)"], absent: Vec::new() };
        for (status, says) in [
            (off(Strictness::Log, Strictness::Enforce), "hardening.seccomp is log"),
            (off(Strictness::Off, Strictness::Enforce), "hardening.seccomp is off"),
            (off(Strictness::Enforce, Strictness::Off), "hardening.landlock is off"),
            (Status { no_seccomp: Some("ENOSYS".to_owned()), ..whole() }, "ENOSYS"),
            (Status { landlock: Ok(old), ..whole() }, "TCP (6.7)"),
            (Status { landlock: Err("no".to_owned()), ..whole() }, "all files: no"),
            (Status { all_nodes: true, ..whole() }, "/dev/vfio"),
        ] {
            let found = findings(Some(&status)).unwrap();
            assert!(found.cause.contains(says), "{says}: {found:?}");
        }
    }
}
