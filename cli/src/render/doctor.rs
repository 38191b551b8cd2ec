//! `berth doctor`.

use berth_proto::v1::{self, finding::Level};

use super::{Meaning, paint};

/// All findings, or that there is none.
pub(crate) fn text(diagnosis: &v1::Diagnosis) -> String {
    if diagnosis.findings.is_empty() {
        return "nothing is in the way".to_owned();
    }
    diagnosis.findings.iter().map(finding).collect::<Vec<_>>().join("\n\n")
}

/// One finding: what it is about, cause, fixes, where to read on.
pub(crate) fn finding(finding: &v1::Finding) -> String {
    let (level, meaning) = match finding.level() {
        Level::Problem => ("problem", Meaning::Bad),
        Level::Warning => ("warning", Meaning::Used),
        Level::Note | Level::Unspecified => ("note", Meaning::Plain),
    };
    let object = if finding.object.is_empty() { "this host" } else { &finding.object };
    let mut lines = vec![format!("{}  {object}: {}", paint(level, meaning), finding.code)];
    lines.push(format!("  {}", finding.cause));
    lines.extend(finding.fixes.iter().map(|fix| format!("  to resolve: {fix}")));
    lines.push(format!("  see {}", finding.docs));
    super::narrow::folded(&lines.join("\n"))
}

/// How many there are of each level, for people.
pub(crate) fn count(diagnosis: &v1::Diagnosis, level: Level) -> usize {
    diagnosis.findings.iter().filter(|finding| finding.level() == level).count()
}
