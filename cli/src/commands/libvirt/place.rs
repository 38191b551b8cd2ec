//! Who a domain's devices are with before its QEMU is there.
//!
//! The hook is asked before libvirt starts QEMU, and a hand-over needs a living process of the user
//! that the reservation is for. So a process of that user, which does nothing, stands in until
//! the hook is told of QEMU.

use std::{
    fs,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, geteuid, kill_process, pidfd_open};

use crate::error::CliError;

/// The command that is the stand-in: its words tell it from all other processes.
const WORD: &str = "libvirt-stand-in";

/// Longer than libvirt takes from `prepare` to `started`, also for a guest whose memory is huge pages.
/// A stand-in that nobody ends must not keep devices.
const LIFE: Duration = Duration::from_mins(15);

/// The group of those who have none.
const NOGROUP: u32 = 65534;

/// Is the stand-in.
pub(crate) fn stand_in() -> Result<(), CliError> {
    std::thread::sleep(LIFE);
    Ok(())
}

/// Starts a stand-in for a reservation, as that user.
///
/// # Errors
/// Only root may start one as another user.
pub(super) fn start(reservation: &str, uid: u32) -> Result<OwnedFd, CliError> {
    let failed = |what: &str, cause: String| CliError::failed(format!("{what}: {cause}"));
    let mut command = Command::new("/proc/self/exe");
    command.args([WORD, reservation]).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // What is sent to the hook's process group isn't meant for it.
    command.process_group(0);
    if uid != geteuid().as_raw() {
        command.uid(uid).gid(NOGROUP);
    }
    let child = command
        .spawn()
        .map_err(|error| failed(&format!("start a process as uid {uid}"), error.to_string()))?;
    let pid = Pid::from_child(&child);
    pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| {
        failed(&format!("pidfd_open of process {}", pid.as_raw_pid()), errno.to_string())
    })
}

/// Ends the stand-ins of a reservation, if there are any.
pub(super) fn end(reservation: &str) {
    for pid in processes().filter(|pid| is_stand_in(*pid, reservation)) {
        // It has ended by itself meanwhile, or isn't ours to end.
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn processes() -> impl Iterator<Item = Pid> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?))
}

fn is_stand_in(pid: Pid, reservation: &str) -> bool {
    let words = fs::read(format!("/proc/{}/cmdline", pid.as_raw_pid())).unwrap_or_default();
    let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
    matches!(words.as_slice(), [_, word, of, ..]
        if *word == WORD.as_bytes() && *of == reservation.as_bytes())
}

/// The uid of the user that QEMU runs as: as the domain says, as libvirt is configured, or as the
/// distribution has it.
pub(super) fn uid_of(stated: Option<&str>) -> Result<u32, CliError> {
    let me = geteuid();
    if !me.is_root() {
        // `qemu:///session`: QEMU is of the user whose libvirt it is.
        return Ok(me.as_raw());
    }
    let configured = fs::read_to_string("/etc/libvirt/qemu.conf").ok();
    let configured = configured.as_deref().and_then(user_in);
    if let Some(user) = stated.or(configured) {
        return number(user).ok_or_else(|| {
            CliError::failed(format!("the domain's QEMU runs as {user:?}, which is no user here"))
        });
    }
    ["libvirt-qemu", "qemu"].into_iter().find_map(number).ok_or_else(|| {
        CliError::failed(
            "which user QEMU runs as is not known: set `user` in /etc/libvirt/qemu.conf, or a \
             <seclabel model='dac'> in the domain",
        )
    })
}

/// `user = "qemu"` of a qemu.conf.
fn user_in(conf: &str) -> Option<&str> {
    let lines = conf.lines().map(str::trim_start).filter(|line| !line.starts_with('#'));
    let mut values = lines.filter_map(|line| {
        let value = line.strip_prefix("user")?.trim_start().strip_prefix('=')?;
        value.trim_start().strip_prefix('"')?.split('"').next()
    });
    values.next_back().filter(|user| !user.is_empty())
}

/// A user as libvirt writes it: a name, or a number, which `+` tells from a name of digits.
fn number(user: &str) -> Option<u32> {
    if let Ok(number) = user.strip_prefix('+').unwrap_or(user).parse() {
        return Some(number);
    }
    // `id` knows all sources of users that the system has.
    let output = Command::new("id").args(["-u", "--", user]).stderr(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_a_qemu_conf() {
        for (conf, user) in [
            ("user = \"qemu\"\n", Some("qemu")),
            ("#user = \"x\"\nuser=\"+0\" # why\n", Some("+0")),
            ("  user = \"a\"\nuser = \"b\"", Some("b")),
            ("user_x = \"a\"\n", None),
            ("user = \"\"", None),
            ("group = \"qemu\"", None),
        ] {
            assert_eq!(user_in(conf), user, "{conf}");
        }
    }

    #[test]
    fn users_are_names_or_numbers() {
        assert_eq!(number("+64055"), Some(64055));
        assert_eq!(number("7"), Some(7));
        assert_eq!(number("root"), Some(0));
        assert_eq!(number("no-such-user-here"), None);
        assert_eq!(number("-u"), None);
    }
}
