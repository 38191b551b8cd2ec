//! Programs without any privilege: another uid, no capability, no way to get one.

use std::{env, fs, os::unix::process::CommandExt, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    process::{Gid, Resource, Rlimit, Uid, setrlimit},
    thread::{
        CapabilitySet, clear_ambient_capability_set, remove_capability_from_bounding_set,
        set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
    },
};

/// The uid and gid that scenarios use for a holder without rights.
pub const HOLDER_UID: u32 = 60001;
/// A second one, for scenarios about strangers.
pub const STRANGER_UID: u32 = 60002;
/// The first argument by which the runner's own program is told to drop everything and go on as
/// another program.
pub const VERB: &str = "unprivileged";

/// A command that runs `program` as `uid` without capabilities, with no new privileges and with
/// the given RLIMIT_MEMLOCK (hard and soft).
///
/// # Errors
/// The runner's own program can't be found.
pub fn command(uid: u32, memlock_bytes: Option<u64>, program: &Path) -> Result<Command> {
    let mut command = Command::new(env::current_exe().context("find our own program")?);
    let limit = memlock_bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
    command.args([VERB, &uid.to_string(), &limit]).arg(program);
    Ok(command)
}

/// What the command above does when it has started: never returns unless it fails.
///
/// # Errors
/// A privilege can't be dropped, or the program can't be started.
pub fn become_unprivileged(arguments: &[String]) -> Result<()> {
    let [uid, limit, program, rest @ ..] = arguments else {
        bail!("usage: {VERB} UID MEMLOCK|- PROGRAM [ARGUMENT...]");
    };
    let uid: u32 = uid.parse().context("a uid")?;
    ensure!(uid != 0, "root is not unprivileged");
    if limit != "-" {
        let limit = Some(limit.parse().context("a limit in bytes")?);
        setrlimit(Resource::Memlock, Rlimit { current: limit, maximum: limit })?;
    }
    for capability in CapabilitySet::all().iter() {
        // EINVAL: the kernel doesn't know this one yet, so nobody can have it.
        match remove_capability_from_bounding_set(capability) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error).context("shrink the bounding set"),
        }
    }
    clear_ambient_capability_set()?;
    // This process has one thread, so what holds for the thread holds for it.
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    set_no_new_privs(true)?;
    Err(Command::new(program).args(rest).exec()).with_context(|| format!("start {program}"))
}

/// Checks that a running process has no capability in any set but, at most, none.
///
/// # Errors
/// It has one, or is gone.
pub fn ensure_powerless(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let set = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .with_context(|| format!("{path} has no {name}"))?;
        ensure!(set.trim().trim_start_matches('0').is_empty(), "process {pid} has {name} {set}");
    }
    ensure!(status.lines().any(|l| l == "NoNewPrivs:\t1"), "process {pid} may gain privileges");
    Ok(())
}
