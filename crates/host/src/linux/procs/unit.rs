//! What a process is to the system: its user, and the service manager's unit that it is in.

/// The real user id, of `/proc/PID/status`.
pub(super) fn real_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The unit, of `/proc/PID/cgroup`: the first part of the path that is one, below all slices. In a
/// user's own service manager it is that one's unit. Empty where there is none.
pub(super) fn of(cgroup: &str) -> String {
    let path = |hierarchy: &str| cgroup.lines().find_map(|line| line.split_once(hierarchy));
    let Some((_, path)) = path(":name=systemd:").or_else(|| path("0::")) else {
        return String::new();
    };
    let is_unit = |part: &&str| [".service", ".scope"].iter().any(|kind| part.ends_with(kind));
    let mut units = path.split('/').filter(is_unit);
    let first = units.next().unwrap_or_default();
    let inner = if first.starts_with("user@") { units.next() } else { None };
    inner.unwrap_or(first).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_told_by_their_control_groups() {
        for (text, unit) in [
            ("0::/system.slice/dpdk.service\n", "dpdk.service"),
            (
                "0::/machine.slice/machine-qemu\\x2d1\\x2dvm.scope/libvirt/emulator\n",
                "machine-qemu\\x2d1\\x2dvm.scope",
            ),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/vm.service\n",
                "vm.service",
            ),
            ("0::/user.slice/user-0.slice/session-3.scope\n", "session-3.scope"),
            ("12:cpu:/x\n1:name=systemd:/system.slice/a.service\n0::/\n", "a.service"),
            ("0::/\n", ""),
            ("", ""),
        ] {
            assert_eq!(of(text), unit, "{text}");
        }
    }

    #[test]
    fn the_real_user_is_the_first_of_four() {
        assert_eq!(real_uid("Name:\tx\nUid:\t107\t0\t0\t0\n"), Some(107));
        assert_eq!(real_uid("Name:\tx\n"), None);
    }
}
