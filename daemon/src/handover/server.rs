//! The socket: one task per connection, one request at a time, limits on all of it.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use berth_handover::{
    Request,
    asynchronous::{deliver, next, ready, send_now, would_block},
    packet::{REQUEST, Received, receive},
};
use berth_ownership::{Reason, Refusal};
use rustix::{
    io::Errno,
    net::{RecvFlags, SocketFlags, UCred, accept_with, sockopt::socket_peercred},
};
use tokio::io::Interest;

use super::{
    desk::{self, Answer},
    peer::Peer,
};
use crate::{
    acts::Engine,
    audit,
    config::{Access, Limits},
    listen::{Seat, Seats, Taker},
    model::{ApiError, Live},
};

/// What is asked of everybody who comes to a hand-over socket, and may change.
#[derive(Debug, Clone)]
pub struct House {
    /// Where it is, for people.
    pub at: Arc<str>,
    /// What each peer may.
    pub access: Live<Access>,
    /// How many there may be.
    pub limits: Live<Limits>,
    /// Who is connected.
    pub seats: Arc<Seats>,
}

impl House {
    /// With rules and limits that stay.
    #[must_use]
    pub fn of(access: Access) -> Self {
        let seats = Arc::default();
        Self { at: "hand-over".into(), access: Live::new(access), limits: Live::default(), seats }
    }

    /// A place for a caller; as a refusal where there is none.
    fn seat(&self, caller: &UCred) -> Result<Seat, Limits> {
        let limits = **self.limits.get();
        let uid = caller.uid.as_raw();
        let own = limits.handover_connections_per_uid;
        let seat = self.seats.try_seat(limits.handover_connections);
        let seat = seat.and_then(|mut seat| seat.is_for(Taker::Uid(uid), own).then_some(seat));
        seat.ok_or_else(|| {
            audit::too_many_connections(&self.at, &format!("uid:{uid}"), own);
            limits
        })
    }
}

/// Serves a listening `SOCK_SEQPACKET` socket until the task is dropped; `access` says what each peer
/// may there.
///
/// # Errors
/// What the listener answers when it is broken.
pub async fn serve(listener: OwnedFd, engine: Engine, access: Access) -> std::io::Result<()> {
    serve_in(listener, engine, House::of(access)).await
}

/// The same with rules and limits that may change.
///
/// # Errors
/// As [`serve`].
pub async fn serve_in(listener: OwnedFd, engine: Engine, house: House) -> std::io::Result<()> {
    rustix::io::ioctl_fionbio(&listener, true)?;
    let listener = ready(listener, Interest::READABLE)?;
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let mut guard = listener.readable().await?;
        let accepted = guard.try_io(|listener| {
            Ok(accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
        });
        while connections.try_join_next().is_some() {}
        match accepted {
            Err(_would_block) => {}
            Ok(Ok(socket)) => {
                let Ok(caller) = socket_peercred(&socket) else { continue };
                let seat = match house.seat(&caller) {
                    Ok(seat) => seat,
                    Err(limits) => {
                        no_seat(&socket, &limits);
                        continue;
                    }
                };
                // Before a task is made of it, as what is there is mostly answered at once.
                let begun = Connection::begin(socket, &caller, &engine, &house);
                let engine = engine.clone();
                connections.spawn(async move {
                    let ended = match begun {
                        Ok(connection) => connection.converse(&engine).await,
                        Err(error) => Err(error),
                    };
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a hand-over connection broke");
                    }
                    drop(seat);
                });
                // Else one that connects again and again takes the seats of its connections that are
                // closed by now, and nobody had the time to see that.
                tokio::task::yield_now().await;
            }
            Ok(Err(error)) => {
                // Out of descriptors or memory, or the peer is gone: the listener itself is fine.
                tracing::warn!(%error, "accept on the hand-over socket");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Tells a peer that there are too many; it isn't waited for that it reads.
fn no_seat(socket: &OwnedFd, limits: &Limits) {
    let (own, all) = (limits.handover_connections_per_uid, limits.handover_connections);
    let text = format!(
        "too many connections to the hand-over socket: one uid has {own} at a time, and all \
         together {all}"
    );
    let refusal = Refusal::new(Reason::Unavailable, "connection", text)
        .with_resolve(vec!["close connections that nobody uses, then connect again".to_owned()]);
    let Answer { reply, .. } = desk::refusal(&ApiError::Refused(refusal));
    if let Err(error) = send_now(socket, &reply, &[]) {
        tracing::debug!(%error, "a peer without a seat was not told");
    }
}

/// A connection, and what came on it that isn't answered yet.
struct Connection {
    socket: OwnedFd,
    peer: Arc<Peer>,
    came: Option<Received>,
}

impl Connection {
    /// Asks who it is, and answers what needs no waiting.
    fn begin(
        socket: OwnedFd,
        caller: &UCred,
        engine: &Engine,
        house: &House,
    ) -> std::io::Result<Self> {
        let quotas = engine.tools().records.quotas();
        let peer = Peer::of(&socket, caller, house, &quotas.get())?;
        let came = first(&socket, engine, &peer)?;
        Ok(Self { socket, peer: Arc::new(peer), came })
    }

    async fn converse(self, engine: &Engine) -> std::io::Result<()> {
        let Self { socket, peer, mut came } = self;
        let socket = ready(socket, Interest::READABLE | Interest::WRITABLE)?;
        loop {
            let received = match came.take() {
                Some(received) => received,
                None => next(&socket).await?,
            };
            let answer = match received {
                Received::End => return Ok(()),
                Received::TooMuch(what) => refused("packet", what),
                Received::Packet(bytes, fds) => serve_one(engine, &peer, &bytes, fds).await,
            };
            let delivered = deliver(&socket, &answer.reply, &answer.fds).await;
            let Answer { sending, began, .. } = answer;
            // What was not sent is closed by now, so it can be told whether somebody has it.
            drop(sending);
            if let (Err(_), Some((id, process))) = (&delivered, began) {
                engine.not_received(&id, &process);
            }
            delivered?;
        }
    }
}

/// Answers the request that is there already, mostly, if that needs no waiting: readiness is not even
/// asked for. Gives back what else came.
fn first(socket: &OwnedFd, engine: &Engine, peer: &Peer) -> std::io::Result<Option<Received>> {
    let received = match receive(socket, RecvFlags::DONTWAIT, REQUEST) {
        Ok(received) => received,
        Err(Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let Received::Packet(bytes, fds) = &received else { return Ok(Some(received)) };
    let request = serde_json::from_slice(bytes).ok();
    let answer = request.and_then(|request| desk::at_once(engine, peer, &request, fds));
    let Some(answer) = answer else { return Ok(Some(received)) };
    let sent = send_now(socket, &answer.reply, &answer.fds);
    if would_block(&sent) { Ok(Some(received)) } else { sent.map(|()| None) }
}

async fn serve_one(engine: &Engine, peer: &Arc<Peer>, bytes: &[u8], fds: Vec<OwnedFd>) -> Answer {
    let request: Request = match serde_json::from_slice(bytes) {
        Ok(request) => request,
        Err(error) => return refused("packet", &format!("the request can't be read: {error}")),
    };
    if let Some(answer) = desk::at_once(engine, peer, &request, &fds) {
        return answer;
    }
    let (engine, peer) = (engine.clone(), Arc::clone(peer));
    let work = move || desk::answer(&engine, &peer, request, fds);
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => desk::refusal(&error),
        Err(error) => desk::refusal(&ApiError::internal("packet", error.to_string())),
    }
}

fn refused(object: &str, message: &str) -> Answer {
    desk::refusal(&ApiError::invalid_argument(
        object,
        message,
        "see docs/handover.md for what each request carries",
    ))
}
