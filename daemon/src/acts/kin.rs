//! Who comes of a holder: what it forked, and what `berth run` became, is the holder when it dies.
//!
//! A process doesn't show whose child its dead parent's was: the kernel gives orphans to another.
//! What forks leave as it was tells it: the session or process group that the holder led, the
//! control group that it was in, the environment that `berth run` began with. A program that makes
//! itself a daemon leaves its session and its parent, and neither of the others.

use berth_host::ProcessUse;
use berth_ownership::{HolderProcess, Reservation};

/// A process that has a device of a dead holder open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kinship {
    /// It came of the holder.
    Own,
    /// It did not, or that can't be told.
    Foreign,
}

/// Whether a process came of a reservation's holder that is dead.
pub(crate) fn of(record: &Reservation, dead: &HolderProcess, user: &ProcessUse) -> Kinship {
    let own = user.start_time >= dead.start_ticks
        && (is_led_by(dead, user.pid)
            || is_in(&dead.cgroup, &cgroup_of(user.pid))
            || is_run_for(record, user));
    if own { Kinship::Own } else { Kinship::Foreign }
}

/// Whether the holder led its session or process group: one gets into either by a fork alone, or as
/// its leader's child. The number is nobody's pid as long as it is in use for either.
fn is_led_by(dead: &HolderProcess, pid: i32) -> bool {
    let leaders = read(pid, "stat").and_then(|stat| leaders(&stat));
    dead.pid != 0 && leaders.is_some_and(|leaders| leaders.contains(&dead.pid))
}

/// Process group and session, fields 5 and 6 of a stat.
fn leaders(stat: &str) -> Option<[u32; 2]> {
    // The name in parentheses may hold anything, so count from its end.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(2);
    Some([fields.next()?.parse().ok()?, fields.next()?.parse().ok()?])
}

/// The same control group, or one below: not the root, in which everything is that was put nowhere.
fn is_in(group: &str, other: &str) -> bool {
    let below = || other.strip_prefix(group).is_some_and(|rest| rest.starts_with('/'));
    !group.is_empty() && (group == other || below())
}

/// Whether `berth run` started it, or what it came of, with the reservation, as the user that this
/// is for: the environment may say what it likes.
fn is_run_for(record: &Reservation, user: &ProcessUse) -> bool {
    let is_for = || {
        let uid = read(user.pid, "status").and_then(|status| real_uid(&status));
        uid.is_some_and(|uid| record.for_identity == format!("uid:{uid}"))
    };
    user.reservation == record.id.as_str() && is_for()
}

fn real_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The control group of a process; empty for the root and where there is none.
pub(crate) fn cgroup_of(pid: i32) -> String {
    read(pid, "cgroup").map(|text| own_cgroup(&text)).unwrap_or_default()
}

/// Of the unified hierarchy; of the service manager's own where that has none.
fn own_cgroup(text: &str) -> String {
    let path = |hierarchy: &str| {
        let found = text.lines().find_map(|line| line.split_once(hierarchy));
        found.map(|(_, path)| path.trim_end_matches(" (deleted)")).filter(|path| *path != "/")
    };
    path("0::").or_else(|| path(":name=systemd:")).unwrap_or_default().to_owned()
}

/// What a process is called.
pub(crate) fn name_of(pid: i32) -> String {
    read(pid, "comm").map(|name| name.trim_end().to_owned()).unwrap_or_default()
}

fn read(pid: i32, file: &str) -> Option<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/{file}")).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaders_are_read_behind_any_name() {
        let stat = "4242 (a) 1 2 3) S 1 4240 4200 0 -1 4194560 1 2";
        assert_eq!(leaders(stat), Some([4240, 4200]));
        assert_eq!(leaders("4242 (x"), None);
        assert_eq!(leaders("4242 (x) S 1"), None);
    }

    #[test]
    fn the_root_is_nobodys_own_control_group() {
        let service = "0::/machine.slice/vm1.scope\n";
        assert_eq!(own_cgroup(service), "/machine.slice/vm1.scope");
        assert_eq!(own_cgroup("0::/\n"), "");
        assert_eq!(own_cgroup("12:devices:/x\n1:name=systemd:/user.slice\n0::/\n"), "/user.slice");
        assert_eq!(own_cgroup("0::/vm1 (deleted)\n"), "/vm1");
        assert_eq!(own_cgroup(""), "");
        assert!(!is_in("", ""));
        assert!(is_in("/vm1", "/vm1") && is_in("/vm1", "/vm1/emulator"));
        assert!(!is_in("/vm1", "/vm10") && !is_in("/vm1/emulator", "/vm1"));
    }

    #[test]
    fn a_child_of_a_leader_shows_its_leader() {
        use std::os::unix::process::CommandExt as _;
        let mut child =
            std::process::Command::new("sleep").arg("600").process_group(0).spawn().unwrap();
        let dead = HolderProcess::new(child.id(), 0);
        let pid = i32::try_from(child.id()).unwrap();
        assert!(is_led_by(&dead, pid));
        assert!(!is_led_by(&HolderProcess::new(child.id() + 1, 0), pid));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn the_real_uid_comes_first() {
        assert_eq!(real_uid("Name:\tx\nUid:\t60001\t0\t0\t0\n"), Some(60001));
        assert_eq!(real_uid("Name:\tx\n"), None);
    }
}
