//! Revoke: a holder that won't let go is stopped, its DMA is cut, it is killed, and that is proven.
//!
//! Unmapping alone isn't enough, as the holder would map again at once; so it is stopped first.

use std::time::{Duration, Instant};

use berth_host::{Act, PciAddress, ProcessUse};
use berth_ownership::{HolderProcess, Policy, Reason, Refusal};
use rustix::process::Signal;

use super::{hand_over, job::Job, tools::Tools};

/// How long a killed process may take to close its descriptors.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a stopped process is told to go on, where the helper fails.
const CONTINUES: u32 = 3;

/// Ends every process that has a device of the reservation open.
///
/// # Errors
/// `HOLDER_DRAINING` when one is still there in the end; nobody is left stopped then.
pub(crate) fn run(tools: &Tools, intent: u64, job: &Job) -> Result<(), Box<Refusal>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all = tools.users_of(job)?;
        if all.is_empty() {
            return Ok(());
        }
        let users = certain(tools, job, &all);
        let Some(first) = users.first().filter(|_| Instant::now() < deadline) else {
            return Err(still_there(job, &all));
        };
        tools.note(intent, "revoke", format!("{} ({})", first.name, first.pid))?;
        strike(tools, job, &users)?;
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The same once more for one process, after a revoke that could not end it. Nobody else is killed:
/// the reservation may be another holder's by now.
///
/// # Errors
/// Who has a device open can't be told.
pub(super) fn again(tools: &Tools, job: &Job, one: &HolderProcess) -> Result<(), Box<Refusal>> {
    // Cut off in any case, also where nobody can be told apart.
    unmap(tools, job);
    let mut users = certain(tools, job, &tools.users_of(job)?);
    users.retain(|user| {
        u32::try_from(user.pid) == Ok(one.pid) && user.start_time == one.start_ticks
    });
    if users.is_empty() { Ok(()) } else { strike(tools, job, &users) }
}

/// Stops, cuts off, kills.
fn strike(tools: &Tools, job: &Job, users: &[ProcessUse]) -> Result<(), Box<Refusal>> {
    let device = job.devices().next().ok_or_else(|| still_there(job, users))?;
    let stopped = Stopped::stop(tools, device, users);
    unmap(tools, job);
    // One that let go before it was stopped is none of ours any more.
    let still = certain(tools, job, &tools.users_of(job)?);
    stopped.kill(&still);
    Ok(())
}

/// Nobody is killed on a guess: an older kernel doesn't tell whose device it is.
fn certain(tools: &Tools, job: &Job, users: &[ProcessUse]) -> Vec<ProcessUse> {
    let mut users = users.to_vec();
    users.retain(|user| user.is_certain() || tools.is_holder(job, user));
    users
}

/// Processes that were stopped. Whoever isn't killed goes on, whatever becomes of the revoke.
struct Stopped<'a> {
    tools: &'a Tools,
    device: PciAddress,
    users: Vec<ProcessUse>,
}

impl<'a> Stopped<'a> {
    fn stop(tools: &'a Tools, device: PciAddress, users: &[ProcessUse]) -> Self {
        let mut stopped = Self { tools, device, users: Vec::new() };
        for user in users {
            match stopped.signal(user, Signal::STOP) {
                Ok(()) => stopped.users.push(user.clone()),
                // It may be gone by now, or be stopped after all: by a helper that came late.
                Err(refusal) => {
                    tracing::warn!(pid = user.pid, why = refusal.message, "stop");
                    stopped.users.extend(refusal_is_late(&refusal).then(|| user.clone()));
                }
            }
        }
        stopped
    }

    /// Kills those who still have the device open.
    fn kill(mut self, still: &[ProcessUse]) {
        let same = |one: &ProcessUse, two: &ProcessUse| {
            (one.pid, one.start_time) == (two.pid, two.start_time)
        };
        let users = std::mem::take(&mut self.users);
        for user in users {
            let killed = still.iter().any(|it| same(it, &user))
                && match self.signal(&user, Signal::KILL) {
                    Ok(()) => true,
                    Err(refusal) => {
                        tracing::warn!(pid = user.pid, why = refusal.message, "kill");
                        false
                    }
                };
            if !killed {
                self.users.push(user);
            }
        }
    }

    fn signal(&self, user: &ProcessUse, signal: Signal) -> Result<(), Box<Refusal>> {
        // The start time is that of the process that was looked at, so that a later one with its
        // pid is never meant.
        let act = Act::Kill { pid: user.pid, start_time: user.start_time, signal: signal.as_raw() };
        self.tools.perform(&act, self.device).map(drop)
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        for user in &self.users {
            for _ in 0..CONTINUES {
                let Err(refusal) = self.signal(user, Signal::CONT) else { break };
                tracing::warn!(pid = user.pid, why = refusal.message, "continue");
            }
        }
    }
}

/// Whether the act may still be done.
fn refusal_is_late(refusal: &Refusal) -> bool {
    matches!(refusal.reason, Reason::Wedged | Reason::HelperFailed)
}

/// What siblings have too, the domain with shared and the iommufd of one token, is left to them:
/// there the kill alone cuts.
fn unmap(tools: &Tools, job: &Job) {
    if job.policy == Policy::Shared {
        return;
    }
    let Some(context) = tools.runtime.context(&job.context) else { return };
    if job.delivery.holder_owns_domain() {
        if !hand_over::siblings(tools, job).is_empty() {
            return;
        }
        until_nothing_is_left(|| context.context.unmap_everything());
        return;
    }
    for domain in context.domains() {
        until_nothing_is_left(|| domain.space.unmap_all());
    }
}

/// Until a pass finds nothing: a map that was under way lands after the first.
fn until_nothing_is_left<E: std::fmt::Display>(mut unmap: impl FnMut() -> Result<u64, E>) {
    for _ in 0..16 {
        match unmap() {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "unmapping for a revoke");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

fn still_there(job: &Job, users: &[ProcessUse]) -> Box<Refusal> {
    let named: Vec<String> =
        users.iter().map(|user| format!("{} ({})", user.name, user.pid)).collect();
    Refusal::new(
        Reason::HolderDraining,
        &job.reservation,
        format!(
            "{} still has a device open that is or may be of {}",
            named.join(", "),
            job.reservation
        ),
    )
    .with_resolve(vec![format!(
        "end what has it open, then berth release {} --force",
        job.reservation
    )])
}

/// Start time of a process in clock ticks since boot, field 22 of its stat.
pub(crate) fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything, so count from its end.
    let rest = stat.rsplit_once(')')?.1;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::start_time;

    #[test]
    fn start_times_are_read_and_absent_processes_have_none() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(own).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_time(i32::MAX), None);
    }
}
