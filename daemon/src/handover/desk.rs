//! What a request comes to. Everything here blocks, so it runs on threads for blocking work.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use berth_handover::{
    FdInfo, FdKind, Iova, MAX_ANSWER_FDS, NodeInfo, NodeKind, Reply, Request, VfToken, VfTokenInfo,
};
use berth_host::{BackendKind, Node};
use berth_ownership::{Epoch, HolderProcess, Order, Reason, Refusal, ReservationId};

use super::peer::{Named, Peer, named};
use crate::{
    acts::{
        Engine,
        fetch::{HandOver, Handed},
        memory,
        runtime::Sending,
    },
    audit,
    model::{ApiError, Call, Role, Snapshot, Transport, Verdict},
};

const SEND_A_PIDFD: &str =
    "send a pidfd of a process of the user that the reservation is for, or none";

/// An answer with its descriptors.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) reply: Reply,
    pub(super) fds: Vec<OwnedFd>,
    /// Lives until the descriptors are sent.
    pub(super) sending: Option<Sending>,
    /// The hand-over that began with this answer, and to whom.
    pub(super) began: Option<(ReservationId, HolderProcess)>,
}

/// The answer that says no.
pub(super) fn refusal(error: &ApiError) -> Answer {
    let refusal = Some(super::refusal::refusal(error.refusal()));
    Answer { reply: Reply { ok: false, refusal, ..Reply::default() }, ..Answer::default() }
}

/// Answers one request.
pub(super) fn answer(
    engine: &Engine,
    peer: &Peer,
    request: Request,
    fds: Vec<OwnedFd>,
) -> Result<Answer, ApiError> {
    let id = ReservationId::new(request.reservation());
    if let Err(error) = check_role(peer, &id, call_of(&request)) {
        refused(peer, &id, &error);
        return Err(error);
    }
    if let Err(error) = check_label(engine, peer, &id) {
        refused(peer, &id, &error);
        return Err(error);
    }
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
            tracing::debug!(reservation = %id, uid = peer.uid, pid = peer.pid(), "served")
        }
        Err(error) => refused(peer, &id, error),
    }
    answer
}

fn refused(peer: &Peer, id: &ReservationId, error: &ApiError) {
    let standing = peer.standing();
    let who = audit::AtHandOver {
        listener: peer.at(),
        uid: peer.uid,
        pid: peer.pid(),
        role: standing.role.map_or("none", Role::name),
        ground: &standing.ground,
    };
    audit::refused_at_hand_over(who, id.as_str(), error);
}

/// What a request has to be allowed.
fn call_of(request: &Request) -> Call {
    match request {
        Request::Fetch { .. } => Call::Fetch,
        Request::Register { .. } => Call::Register,
        Request::Unregister { .. } => Call::Unregister,
        Request::ShowToken { .. } => Call::ShowToken,
    }
}

fn may(peer: &Peer, call: Call) -> bool {
    let verdict = peer.role().map(|role| call.decide(role, Transport::Unix, None));
    verdict == Some(Verdict::Allowed)
}

/// A fetch by the process that is the holder already, where nothing has to be waited for.
pub(super) fn at_once(
    engine: &Engine,
    peer: &Peer,
    request: &Request,
    fds: &[OwnedFd],
) -> Option<Answer> {
    let Request::Fetch { reservation, epoch } = request else { return None };
    let id = ReservationId::new(reservation.as_str());
    let fits = check_role(peer, &id, Call::Fetch).and_then(|()| check_label(engine, peer, &id));
    if !fds.is_empty() || fits.is_err() {
        return None;
    }
    let epoch = (*epoch != 0).then_some(Epoch(*epoch));
    let again = engine.hand_over_again(&id, peer.uid, epoch, peer.identity()?, MAX_ANSWER_FDS)?;
    Some(match again.handed {
        Ok(handed) => handed_over(&again.snapshot, &id, again.holder, handed),
        Err(error) => refusal(&error),
    })
}

fn who<'a>(peer: &'a Peer, id: &ReservationId) -> Result<&'a HolderProcess, ApiError> {
    peer.process().map_err(|errno| kernel(id, &format!("look at process {}", peer.pid()), errno))
}

fn fetch(
    engine: &Engine,
    peer: &Peer,
    id: &ReservationId,
    epoch: u64,
    mut fds: Vec<OwnedFd>,
) -> Result<Answer, ApiError> {
    let pidfd = fds.pop();
    if !fds.is_empty() {
        return Err(one_fd(id, "a fetch takes at most a pidfd"));
    }
    let holder = pidfd.map(|pidfd| holder_of(id, &pidfd)).transpose()?;
    let snapshot = may_fetch(engine, peer, id, holder.as_ref())?;
    let own = || peer.pidfd().map_err(|errno| kernel(id, "dup of a pidfd", errno));
    let asks = who(peer, id)?;
    let (process, pidfd, fetcher) = match holder {
        None => (asks.clone(), own()?, None),
        Some(holder) if holder.process == *asks => (holder.process, holder.pidfd, None),
        Some(holder) => (holder.process, holder.pidfd, Some(own()?)),
    };
    let epoch = (epoch != 0).then_some(Epoch(epoch));
    let order = Order { reservation: id.clone(), epoch };
    let handed = engine.hand_over(&snapshot, order, &process, pidfd, MAX_ANSWER_FDS)?;
    // Nodes don't pass through who fetched: the holder is let in, and opens them when it likes.
    let passes_on = handed.began && handed.has_descriptors();
    if let Some(fetcher) = fetcher.filter(|_| passes_on) {
        engine.watch_fetcher(id, &process, fetcher);
    }
    Ok(handed_over(&snapshot, id, process, handed))
}

fn holder_of(id: &ReservationId, pidfd: &OwnedFd) -> Result<Named, ApiError> {
    named(pidfd).map_err(|unfit| {
        let text = format!("the descriptor does not name a holder: {unfit}");
        ApiError::invalid_argument(id, text, SEND_A_PIDFD)
    })
}

/// Whoever the reservation is for may fetch, for itself and for another process of its user. An
/// operator may for a process of any user: what is reserved for that user, and what is reserved for
/// the operator, who vouches for the process then.
fn may_fetch(
    engine: &Engine,
    peer: &Peer,
    id: &ReservationId,
    holder: Option<&Named>,
) -> Result<Arc<Snapshot>, ApiError> {
    let Some(holder) = holder else { return engine.reservation_for(id, peer.uid) };
    if may(peer, Call::FetchForOther) {
        return engine
            .reservation_for(id, holder.uid)
            .or_else(|refused| engine.reservation_for(id, peer.uid).map_err(|_| refused));
    }
    let (pid, uid) = (holder.process.pid, holder.uid);
    let snapshot = engine.reservation_for(id, peer.uid)?;
    if uid == peer.uid {
        return Ok(snapshot);
    }
    let text = format!("process {pid} is of uid:{uid}, not of uid:{}", peer.uid);
    Err(ApiError::invalid_argument(id, text, SEND_A_PIDFD))
}

fn handed_over(
    snapshot: &Snapshot,
    id: &ReservationId,
    process: HolderProcess,
    handed: HandOver,
) -> Answer {
    let mut answer = reply(id, Reply::default());
    let (mut infos, mut nodes, mut vf_tokens) = (Vec::new(), Vec::new(), Vec::new());
    for item in handed.items {
        match describe(infos.len(), item) {
            Described::Fd(info, fd) => {
                infos.push(info);
                answer.fds.push(fd);
            }
            Described::Node(info) => nodes.push(info),
            Described::VfToken(info) => vf_tokens.push(info),
        }
    }
    if let Some(record) = snapshot.state.reservation(id) {
        answer.reply.epoch = Some(record.epoch.0);
        answer.reply.policy = Some(record.policy.to_string());
        answer.reply.delivery = Some(record.delivery.to_string());
        answer.reply.backend = Some(record.backend.to_string());
    }
    answer.reply.fds = Some(infos);
    answer.reply.nodes = (!nodes.is_empty()).then_some(nodes);
    answer.reply.vf_tokens = (!vf_tokens.is_empty()).then_some(vf_tokens);
    answer.sending = Some(handed.sending);
    answer.began = handed.began.then(|| (id.clone(), process));
    answer
}

enum Described {
    Fd(FdInfo, OwnedFd),
    Node(NodeInfo),
    VfToken(VfTokenInfo),
}

fn describe(index: usize, item: Handed) -> Described {
    match item {
        Handed::Device { address, device_id, ioas, fd } => {
            let info = FdInfo {
                address: Some(address.to_string()),
                device_id: Some(device_id),
                ioas_id: Some(ioas),
                ..FdInfo::new(index, FdKind::Device)
            };
            Described::Fd(info, fd)
        }
        Handed::Cdev { address, fd } => {
            let address = Some(address.to_string());
            Described::Fd(FdInfo { address, ..FdInfo::new(index, FdKind::Cdev) }, fd)
        }
        Handed::Context { backend, ioas, fd } => {
            let kind = match backend {
                BackendKind::Iommufd => FdKind::Iommufd,
                BackendKind::Type1 => FdKind::Container,
            };
            Described::Fd(FdInfo { ioas_id: ioas, ..FdInfo::new(index, kind) }, fd)
        }
        Handed::Node { node, path, devices } => {
            let (kind, address) = match node {
                Node::Cdev(device) => (NodeKind::Cdev, Some(device.to_string())),
                Node::Group(_) => (NodeKind::Group, None),
                Node::Iommu => (NodeKind::Iommufd, None),
                Node::Container => (NodeKind::Container, None),
            };
            let devices = devices.iter().map(ToString::to_string).collect();
            Described::Node(NodeInfo { kind, path, address, devices })
        }
        Handed::VfToken { address, token } => {
            let (address, vf_token) = (address.to_string(), VfToken::new(token.text()));
            Described::VfToken(VfTokenInfo { address, vf_token })
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
    let pidfd = if fds.len() == 2 { fds.pop() } else { None };
    let (Some(memory), true) = (fds.pop(), fds.is_empty()) else {
        return Err(one_fd(id, "a registration takes exactly one memfd, and at most a pidfd"));
    };
    let holder = pidfd.map(|pidfd| holder_of(id, &pidfd)).transpose()?;
    may_fetch(engine, peer, id, holder.as_ref())?;
    let (process, pidfd) = match holder {
        Some(holder) => (holder.process, holder.pidfd),
        None => {
            let own = peer.pidfd().map_err(|errno| kernel(id, "dup of a pidfd", errno))?;
            (who(peer, id)?.clone(), own)
        }
    };
    let iova = engine.register(id, (&process, pidfd, &peer.payer()), memory.as_fd(), wanted)?;
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
        ..Answer::default()
    }
}

fn none(id: &ReservationId, fds: &[OwnedFd]) -> Result<(), ApiError> {
    if fds.is_empty() { Ok(()) } else { Err(one_fd(id, "this request takes no descriptor")) }
}

/// What is under another label than the one that a peer is confined to isn't there, for that peer.
///
/// # Errors
/// `NOT_FOUND`.
fn check_label(engine: &Engine, peer: &Peer, id: &ReservationId) -> Result<(), ApiError> {
    let Some(tenant) = peer.standing().tenant else { return Ok(()) };
    let snapshot = engine.tools().records.snapshot();
    match snapshot.state.reservation(id) {
        Some(record) if record.label.as_str() != tenant => {
            Err(ApiError::not_found(id, format!("there is no reservation {id}")))
        }
        _ => Ok(()),
    }
}

/// # Errors
/// `PERMISSION_DENIED` for those whom the socket's rules let do less than fetch what is theirs.
fn check_role(peer: &Peer, id: &ReservationId, call: Call) -> Result<(), ApiError> {
    if may(peer, call) {
        return Ok(());
    }
    let role = peer.role().map_or("none", Role::name);
    let text = format!(
        "the hand-over needs role {}; uid:{} has role {role} at this socket",
        call.row().least,
        peer.uid
    );
    let way_out = format!("give uid {} the role holder in a rule of this listener", peer.uid);
    let refusal = Refusal::new(Reason::PermissionDenied, id, text);
    Err(ApiError::Refused(refusal.with_resolve(vec![way_out])))
}

fn one_fd(id: &ReservationId, message: &str) -> ApiError {
    ApiError::invalid_argument(id, message, "see docs/handover.md for what each request carries")
}

fn kernel(id: &ReservationId, what: &str, errno: rustix::io::Errno) -> ApiError {
    ApiError::new(Reason::KernelRefused, id, format!("{what}: {errno}"))
}
