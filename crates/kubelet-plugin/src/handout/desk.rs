//! What a container's request comes to. It blocks, so it runs on threads for blocking work.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use berth_handover::{Client, ClientError, Refusal, Reply, Request};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{
    config::Config,
    core::{Allocation, Records},
    node::is_in_container,
};

/// How long `berthd` is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// What goes back, and the descriptors that go with it.
pub(super) type Answer = (Reply, Vec<OwnedFd>);

/// Where containers ask.
#[derive(Debug)]
pub(super) struct Desk {
    handover: PathBuf,
    cgroup_root: PathBuf,
    records: Arc<Records>,
}

/// Why not.
pub(super) fn refusal(reason: &str, object: &str, message: String, way_out: &str) -> Box<Refusal> {
    let (errno, name) = match reason {
        "NOT_FOUND" => (Errno::NOENT, "ENOENT"),
        "NOT_FOR_YOU" => (Errno::ACCESS, "EACCES"),
        "INVALID_ARGUMENT" => (Errno::INVAL, "EINVAL"),
        _ => (Errno::AGAIN, "EAGAIN"),
    };
    Box::new(Refusal {
        reason: reason.to_owned(),
        errno: errno.raw_os_error(),
        errno_name: name.to_owned(),
        object: object.to_owned(),
        message,
        resolve: vec![way_out.to_owned()],
        ..Refusal::default()
    })
}

/// The answer that says no.
pub(super) fn refused(refusal: Box<Refusal>) -> Answer {
    (Reply { ok: false, refusal: Some(refusal), ..Reply::default() }, Vec::new())
}

impl Desk {
    pub(super) fn new(config: &Config, records: Arc<Records>) -> Self {
        let (handover, cgroup_root) = (config.handover.clone(), config.cgroup_root.clone());
        Self { handover, cgroup_root, records }
    }

    /// Answers one request of a process that came by an allocation's socket.
    pub(super) fn answer(
        &self,
        allocation: &str,
        pid: Pid,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> Answer {
        match self.try_answer(allocation, pid, request, fds) {
            Ok(answer) => answer,
            Err(why) => {
                tracing::warn!(allocation, pid = pid.as_raw_nonzero().get(), %why, "refused");
                refused(why)
            }
        }
    }

    fn try_answer(
        &self,
        name: &str,
        pid: Pid,
        request: Request,
        mut fds: Vec<OwnedFd>,
    ) -> Result<Answer, Box<Refusal>> {
        let allocation = self.records.get(name);
        let reserved = allocation.as_ref().and_then(|known| known.reservation.clone());
        let (Some(allocation), Some(id)) = (allocation, reserved) else {
            let text = format!("{name} has no reservation");
            return Err(refusal("NOT_FOUND", name, text, "let the kubelet start the container"));
        };
        if ![name, &id].contains(&request.reservation()) {
            let asked = request.reservation();
            let text = format!("this socket is that of {name} ({id}), not of {asked}");
            return Err(refusal("NOT_FOUND", asked, text, &format!("ask for {name}")));
        }
        let process = self.process(&allocation, pid)?;
        match request {
            Request::Fetch { .. } if fds.is_empty() => fds.push(process),
            Request::Fetch { .. } => {
                let text = "in a container the process that asks is the holder".to_owned();
                let way_out =
                    "ask without a descriptor, in the process that is to hold the devices";
                return Err(refusal("INVALID_ARGUMENT", &id, text, way_out));
            }
            Request::Register { .. } => fds.push(process),
            Request::Unregister { .. } | Request::ShowToken { .. } => {}
        }
        let fetches = matches!(request, Request::Fetch { .. });
        let answer = self.forward(&request.of_reservation(&id), &fds, fetches)?;
        if fetches {
            let pid = pid.as_raw_nonzero().get();
            tracing::info!(allocation = name, reservation = id, pid, "handed over");
        }
        Ok(answer)
    }

    /// The process, if it is in the allocation's container, by a descriptor that no later process of
    /// the same number can be behind.
    fn process(&self, allocation: &Allocation, pid: Pid) -> Result<OwnedFd, Box<Refusal>> {
        let number = pid.as_raw_nonzero().get();
        let stranger = |text: String| {
            let way_out = "ask in a process of the container that the devices were allocated to";
            refusal("NOT_FOR_YOU", &allocation.name, text, way_out)
        };
        let gone = |errno: Errno| stranger(format!("process {number}: {errno}"));
        let process = pidfd_open(pid, PidfdFlags::empty()).map_err(gone)?;
        if !is_in_container(number.unsigned_abs(), allocation, &self.cgroup_root) {
            let title = allocation.title();
            return Err(stranger(format!("process {number} is not in the container of {title}")));
        }
        // What was read by the number was about this process if it hasn't ended since.
        let mut ended = [PollFd::new(&process, PollFlags::IN)];
        match poll(&mut ended, Some(&Timespec::default())) {
            Ok(0) => Ok(process),
            Ok(_) => Err(gone(Errno::SRCH)),
            Err(errno) => Err(gone(errno)),
        }
    }

    fn forward(
        &self,
        request: &Request,
        fds: &[OwnedFd],
        fetches: bool,
    ) -> Result<Answer, Box<Refusal>> {
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        let asked = Client::connect(&self.handover).and_then(|client| {
            client.wait_at_most(PATIENCE)?;
            client.ask(request, &borrowed)
        });
        asked.map_err(|error| match error {
            ClientError::Refused(mut refusal) => {
                if fetches && matches!(refusal.reason.as_str(), "INVALID_ARGUMENT" | "NOT_FOR_YOU")
                {
                    refusal.resolve.push(OPERATOR.to_owned());
                }
                refusal
            }
            error => {
                let way_out = "ask again once berthd runs";
                refusal("UNAVAILABLE", request.reservation(), error.to_string(), way_out)
            }
        })
    }
}

/// Without it `berthd` lets the plugin name processes of its own user alone.
const OPERATOR: &str =
    "give the plugin's user the role operator in a rule of berthd's hand-over listener";
