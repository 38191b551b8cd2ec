//! Revoke: a holder that won't let go is stopped, its DMA is cut, it is killed, and that is proven.
//!
//! Unmapping alone isn't enough, as the holder would map again at once; so it is stopped first.

use std::time::{Duration, Instant};

use berth_host::{Act, PciAddress, ProcessUse};
use berth_ownership::{Policy, Reason, Refusal};
use rustix::process::Signal;

use super::{job::Job, tools::Tools};

/// How long a killed process may take to close its descriptors.
const PATIENCE: Duration = Duration::from_secs(20);

/// Ends every process that has a device of the reservation open.
///
/// # Errors
/// `HOLDER_DRAINING` when one is still there in the end.
pub(crate) fn run(tools: &Tools, intent: u64, job: &Job) -> Result<(), Box<Refusal>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut users = tools.users_of(job)?;
        if users.is_empty() {
            return Ok(());
        }
        let all = users.clone();
        // Nobody is killed on a guess: an older kernel doesn't tell whose device it is.
        users.retain(|user| user.is_certain() || tools.is_holder(job, user));
        let Some(first) = users.first().filter(|_| Instant::now() < deadline) else {
            return Err(still_there(job, &all));
        };
        let device = job.devices().next().ok_or_else(|| still_there(job, &users))?;
        tools.note(intent, "revoke", format!("{} ({})", first.name, first.pid))?;
        signal_all(tools, &users, Signal::STOP, device)?;
        unmap(tools, job);
        signal_all(tools, &users, Signal::KILL, device)?;
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal_all(
    tools: &Tools,
    users: &[ProcessUse],
    signal: Signal,
    device: PciAddress,
) -> Result<(), Box<Refusal>> {
    for user in users {
        let act = Act::Kill {
            pid: user.pid,
            start_time: start_time(user.pid).unwrap_or_else(|| scripted_start(user.pid)),
            signal: signal.as_raw(),
        };
        match tools.perform(&act, device) {
            Ok(_) => {}
            // It may be gone by now; the next look tells.
            Err(refusal) => tracing::warn!(pid = user.pid, why = refusal.message, "signal"),
        }
    }
    Ok(())
}

/// With shared, the domain is the siblings' too: there the kill alone cuts.
fn unmap(tools: &Tools, job: &Job) {
    if job.policy == Policy::Shared {
        return;
    }
    let Some(context) = tools.runtime.context(&job.context) else { return };
    for domain in context.domains() {
        // Until a pass finds nothing: a map that was under way lands after the first.
        for _ in 0..16 {
            match domain.space.unmap_all() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "unmapping for a revoke");
                    break;
                }
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

/// Scripted processes of the simulated host are not in /proc; their start time is their pid. For a
/// real process that is gone, any number is as wrong as another.
fn scripted_start(pid: i32) -> u64 {
    u64::try_from(pid).unwrap_or_default()
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
