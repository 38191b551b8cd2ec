//! What this process gave up, and what was refused to it since.

use std::fmt::Write as _;

use super::head;
use crate::hardening;

pub(super) fn write(text: &mut String) {
    head(text, "berth_confined", "gauge", "1 while what isn't needed is refused, by means.");
    let status = hardening::status();
    let seccomp = status.is_some_and(hardening::Status::seccomp);
    let landlock = status.is_some_and(hardening::Status::landlock);
    for (means, on) in [("seccomp", seccomp), ("landlock", landlock)] {
        // Writing to a String can't fail.
        let _ = writeln!(text, "berth_confined{{means=\"{means}\"}} {}", u8::from(on));
    }
    let name = "berth_refused_system_calls_total";
    head(text, name, "counter", "System calls that seccomp refused to the daemon, by name.");
    for (call, count) in hardening::refused_calls() {
        let _ = writeln!(text, "{name}{{call=\"{call}\"}} {count}");
    }
}
