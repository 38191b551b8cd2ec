//! Whether /proc shows every process: where some are hidden, not finding anybody means nothing.

use rustix::io::Errno;

use crate::{
    HostError,
    linux::tree::{Root, file_error},
};

/// `CAP_SYS_PTRACE`, which sees what `hidepid` hides from others.
const SYS_PTRACE: u32 = 19;

/// The first namespace of pids, `PROC_PID_INIT_INO`: the only one that has all processes in it.
const FIRST_NAMESPACE: &str = "pid:[4026531836]";

/// # Errors
/// EACCES with what hides processes from this one; what could not be read.
///
/// # Kernel
/// `hidepid=invisible` (2) and `ptraceable` (4) leave processes out of the list. `noaccess` (1)
/// shows at each of them.
pub(super) fn whole(root: &Root) -> Result<(), HostError> {
    if !root.is_live() {
        return Ok(());
    }
    let read = |below: &str| {
        let path = root.join(below);
        std::fs::read_to_string(&path).map_err(|error| file_error("read", &path, errno(&error)))
    };
    let namespace = std::fs::read_link("/proc/self/ns/pid")
        .map_err(|error| file_error("read", "/proc/self/ns/pid", errno(&error)))?;
    if namespace.as_os_str() != FIRST_NAMESPACE {
        return Err(hidden("a pid namespace of its own"));
    }
    let hides = hides(&read("proc/self/mountinfo")?);
    if hides && !has_capability(&read("proc/self/status")?, SYS_PTRACE) {
        return Err(hidden("hidepid, without CAP_SYS_PTRACE"));
    }
    Ok(())
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn hidden(by: &str) -> HostError {
    file_error("read", format!("/proc, which hides processes by {by}"), Errno::ACCESS)
}

/// Whether the /proc that is seen leaves processes out: of those mounted there, the last.
fn hides(mountinfo: &str) -> bool {
    let mut options = mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let at_proc = mount.split(' ').nth(4) == Some("/proc");
        let mut fields = filesystem.split(' ');
        (at_proc && fields.next() == Some("proc")).then(|| fields.nth(1).unwrap_or_default())
    });
    options.next_back().is_some_and(|options| {
        options
            .split(',')
            .filter_map(|option| option.strip_prefix("hidepid="))
            .any(|how| !matches!(how, "0" | "off" | "1" | "noaccess"))
    })
}

fn has_capability(status: &str, capability: u32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set >> capability & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proc_that_leaves_processes_out_is_known_by_its_options() {
        let line = |options: &str| {
            format!(
                "22 28 0:20 / /sys rw - sysfs sysfs rw\n\
                 24 28 0:22 / /proc rw,nosuid shared:12 - proc proc rw{options}\n\
                 99 28 0:22 / /srv/proc rw - proc proc rw,hidepid=invisible\n"
            )
        };
        for shown in ["", ",gid=5", ",hidepid=0", ",hidepid=noaccess", ",hidepid=off"] {
            assert!(!hides(&line(shown)), "{shown}");
        }
        for hidden in [",hidepid=2", ",gid=5,hidepid=invisible", ",hidepid=ptraceable"] {
            assert!(hides(&line(hidden)), "{hidden}");
            let over = line(hidden) + "101 24 0:44 / /proc rw - proc proc rw\n";
            assert!(!hides(&over), "another one is mounted over it");
        }
        assert!(!hides(""));
    }

    #[test]
    fn capabilities_are_read_bit_by_bit() {
        let status = |set: &str| format!("Name:\tx\nCapPrm:\tffff\nCapEff:\t{set}\n");
        assert!(has_capability(&status("000001ffffffffff"), SYS_PTRACE));
        assert!(has_capability(&status("0000000000080000"), SYS_PTRACE));
        assert!(!has_capability(&status("000001fffff7ffff"), SYS_PTRACE));
        assert!(!has_capability("", SYS_PTRACE));
    }
}
