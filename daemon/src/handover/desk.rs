//! What a request comes to. Everything here blocks, so it runs on threads for blocking work.

use std::os::fd::{AsFd, OwnedFd};

use berth_host::BackendKind;
use berth_ownership::{Epoch, Order, Reason, ReservationId};

use super::{
    peer::{Peer, named},
    wire::{FdInfo, FdKind, Iova, MAX_ANSWER_FDS, Reply, Request},
};
use crate::{
    acts::{Engine, holder::Handed, memory},
    model::ApiError,
};

/// An answer with its descriptors.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    pub(super) fds: Vec<OwnedFd>,
}

/// The answer that says no.
pub(super) fn refusal(error: &ApiError) -> Answer {
    let refusal = serde_json::to_value(error.refusal()).ok();
    Answer { reply: Reply { ok: false, refusal, ..Reply::default() }, fds: Vec::new() }
}

/// Answers one request.
pub(super) fn answer(
    engine: &Engine,
    peer: &Peer,
    request: Request,
    fds: Vec<OwnedFd>,
) -> Result<Answer, ApiError> {
    let id = ReservationId::new(request.reservation());
    let answer = match request {
        Request::Fetch { epoch, .. } => fetch(engine, peer, &id, epoch, fds),
        Request::Register { iova, length_bytes, offset, write, read, .. } => {
            let iova = iova.map(|iova| iova.0);
            let wanted = memory::Wanted { iova, offset, length_bytes, read, write };
            register(engine, peer, &id, wanted, fds)
        }
        Request::Unregister { iova, length_bytes, .. } => {
            none(&id, &fds)?;
            engine.reservation_for(&id, peer.uid)?;
            let bytes = engine.unregister(&id, iova.0, length_bytes)?;
            Ok(reply(&id, Reply { unmapped_bytes: Some(bytes), ..Reply::default() }))
        }
        Request::ShowToken { .. } => show_token(engine, peer, &id, fds),
    };
    match &answer {
        Ok(_) => {
            tracing::debug!(reservation = %id, uid = peer.uid, pid = peer.process.pid, "served")
        }
        Err(error) => tracing::info!(
            reservation = %id,
            uid = peer.uid,
            pid = peer.process.pid,
            reason = error.reason().name(),
            "refused"
        ),
    }
    answer
}

fn fetch(
    engine: &Engine,
    peer: &Peer,
    id: &ReservationId,
    epoch: u64,
    mut fds: Vec<OwnedFd>,
) -> Result<Answer, ApiError> {
    let snapshot = engine.reservation_for(id, peer.uid)?;
    let (process, pidfd) = match (fds.pop(), fds.is_empty()) {
        (None, _) => {
            let pidfd = peer.pidfd().map_err(|errno| kernel(id, "dup of a pidfd", errno))?;
            (peer.process.clone(), pidfd)
        }
        (Some(pidfd), true) => named(&pidfd, peer.uid).map_err(|errno| {
            ApiError::invalid_argument(
                id,
                format!("the descriptor does not name a living process of yours: {errno}"),
                "send a pidfd of a process of the same user, or none",
            )
        })?,
        (Some(_), false) => return Err(one_fd(id, "a fetch takes at most a pidfd")),
    };
    let epoch = (epoch != 0).then_some(Epoch(epoch));
    let order = Order { reservation: id.clone(), epoch };
    let handed = engine.hand_over(&snapshot, order, &process, pidfd, MAX_ANSWER_FDS)?;
    let mut answer = reply(id, Reply::default());
    let mut infos = Vec::new();
    for (index, item) in handed.into_iter().enumerate() {
        let (info, fd) = describe(index, item);
        infos.push(info);
        answer.fds.push(fd);
    }
    if let Some(record) = snapshot.state.reservation(id) {
        answer.reply.epoch = Some(record.epoch.0);
        answer.reply.policy = Some(record.policy.to_string());
        answer.reply.delivery = Some(record.delivery.to_string());
        answer.reply.backend = Some(record.backend.to_string());
    }
    answer.reply.fds = Some(infos);
    Ok(answer)
}

fn describe(index: usize, item: Handed) -> (FdInfo, OwnedFd) {
    match item {
        Handed::Device { address, device_id, ioas, fd } => {
            let info = FdInfo {
                index,
                kind: FdKind::Device,
                address: Some(address.to_string()),
                device_id: Some(device_id),
                ioas_id: Some(ioas),
            };
            (info, fd)
        }
        Handed::Context { backend, ioas, fd } => {
            let kind = match backend {
                BackendKind::Iommufd => FdKind::Iommufd,
                BackendKind::Type1 => FdKind::Container,
            };
            (FdInfo { index, kind, address: None, device_id: None, ioas_id: Some(ioas) }, fd)
        }
    }
}

fn register(
    engine: &Engine,
    peer: &Peer,
    id: &ReservationId,
    wanted: memory::Wanted,
    mut fds: Vec<OwnedFd>,
) -> Result<Answer, ApiError> {
    let (Some(memory), true) = (fds.pop(), fds.is_empty()) else {
        return Err(one_fd(id, "a registration takes exactly one memfd"));
    };
    engine.reservation_for(id, peer.uid)?;
    let pidfd = peer.pidfd().map_err(|errno| kernel(id, "dup of a pidfd", errno))?;
    let iova = engine.register(id, (&peer.process, pidfd), memory.as_fd(), wanted)?;
    Ok(reply(id, Reply { iova: Some(Iova(iova)), ..Reply::default() }))
}

fn show_token(
    engine: &Engine,
    peer: &Peer,
    id: &ReservationId,
    mut fds: Vec<OwnedFd>,
) -> Result<Answer, ApiError> {
    let (Some(shown), true) = (fds.pop(), fds.is_empty()) else {
        return Err(one_fd(id, "showing a token takes exactly one iommufd"));
    };
    let snapshot = engine.reservation_for(id, peer.uid)?;
    if !engine.same_context(&snapshot, id, &shown)? {
        let owner = snapshot.state.reservation(id).map(|record| record.holder.to_string());
        return Err(ApiError::new(
            Reason::GroupOwned,
            id,
            format!(
                "the descriptor is not the open file that owns the groups of {id}, held for {}",
                owner.unwrap_or_default()
            ),
        ));
    }
    let token = snapshot.state.reservation(id).map(|record| record.token.to_string());
    Ok(reply(id, Reply { token, ..Reply::default() }))
}

fn reply(id: &ReservationId, reply: Reply) -> Answer {
    Answer {
        reply: Reply { ok: true, reservation: Some(id.to_string()), ..reply },
        fds: Vec::new(),
    }
}

fn none(id: &ReservationId, fds: &[OwnedFd]) -> Result<(), ApiError> {
    if fds.is_empty() { Ok(()) } else { Err(one_fd(id, "this request takes no descriptor")) }
}

fn one_fd(id: &ReservationId, message: &str) -> ApiError {
    ApiError::invalid_argument(id, message, "see docs/handover.md for what each request carries")
}

fn kernel(id: &ReservationId, what: &str, errno: rustix::io::Errno) -> ApiError {
    ApiError::new(Reason::KernelRefused, id, format!("{what}: {errno}"))
}
