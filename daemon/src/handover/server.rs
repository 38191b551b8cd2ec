//! The socket: one task per connection, one request at a time, limits on all of it.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use berth_handover::{
    Request,
    asynchronous::{deliver, next, ready, send_now, would_block},
    packet::{REQUEST, Received, receive},
};
use berth_ownership::{Reason, Refusal};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, SocketFlags, UCred, accept_with, sockopt::socket_peercred},
};
use tokio::io::{Interest, unix::AsyncFd};

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

/// How long a thread waits for the next request of a peer whom it has just answered.
const SOON: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

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
pub async fn serve(listener: OwnedFd, engine: Engine, access: Access) -> io::Result<()> {
    serve_in(listener, engine, House::of(access)).await
}

/// The same with rules and limits that may change.
///
/// # Errors
/// As [`serve`].
pub async fn serve_in(listener: OwnedFd, engine: Engine, house: House) -> io::Result<()> {
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
    fn begin(socket: OwnedFd, caller: &UCred, engine: &Engine, house: &House) -> io::Result<Self> {
        let quotas = engine.tools().records.quotas();
        let peer = Peer::of(&socket, caller, house, &quotas.get())?;
        let came = first(&socket, engine, &peer)?;
        Ok(Self { socket, peer: Arc::new(peer), came })
    }

    async fn converse(self, engine: &Engine) -> io::Result<()> {
        let Self { socket, peer, mut came } = self;
        let served = Arc::new(());
        let mut socket = watched(socket)?;
        loop {
            let received = match came.take() {
                Some(received) => received,
                None => next(&socket).await?,
            };
            let Some(turn) = turn_of(engine, &peer, received) else { return Ok(()) };
            let unsent = match turn {
                Turn::Answer(answer) => Some(answer),
                Turn::Work(request, fds) => {
                    let conversation = Conversation {
                        engine: engine.clone(),
                        peer: Arc::clone(&peer),
                        // Not watched meanwhile: each packet would wake the hand-over's thread, too.
                        socket: socket.into_inner(),
                        served: Arc::clone(&served),
                    };
                    let work = move || (conversation.go_on(request, fds), conversation.socket);
                    let (ended, back) =
                        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?;
                    socket = watched(back)?;
                    match ended {
                        Ended::Over(result) => return result,
                        Ended::Quiet => None,
                        Ended::Unsent(answer) => Some(answer),
                    }
                }
            };
            if let Some(answer) = unsent {
                let delivered = deliver(&socket, &answer.reply, &answer.fds).await;
                close_answer(engine, *answer, &delivered);
                delivered?;
            }
        }
    }
}

fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    ready(socket, Interest::READABLE | Interest::WRITABLE)
}

/// What comes next on a connection.
enum Turn {
    /// Something to be said that needed no work.
    Answer(Box<Answer>),
    /// A request whose answer may take a while.
    Work(Request, Vec<OwnedFd>),
}

/// What a packet asks for; `None` at the end of the connection.
fn turn_of(engine: &Engine, peer: &Peer, received: Received) -> Option<Turn> {
    let (bytes, fds) = match received {
        Received::End => return None,
        Received::TooMuch(what) => return Some(Turn::Answer(refused("packet", what).into())),
        Received::Packet(bytes, fds) => (bytes, fds),
    };
    let request: Request = match serde_json::from_slice(&bytes) {
        Ok(request) => request,
        Err(error) => {
            let text = format!("the request can't be read: {error}");
            return Some(Turn::Answer(refused("packet", &text).into()));
        }
    };
    Some(match desk::at_once(engine, peer, &request, &fds) {
        Some(answer) => Turn::Answer(answer.into()),
        None => Turn::Work(request, fds),
    })
}

/// What follows when an answer was sent, or could not be.
fn close_answer(engine: &Engine, answer: Answer, delivered: &io::Result<()>) {
    let Answer { fds, sending, began, .. } = answer;
    drop(fds);
    // What was not sent is closed by now, so it can be told whether somebody has it.
    drop(sending);
    if let (Err(_), Some((id, process))) = (delivered, began) {
        engine.not_received(&id, &process);
    }
}

/// A connection on a thread for blocking work.
struct Conversation {
    engine: Engine,
    peer: Arc<Peer>,
    socket: OwnedFd,
    /// Shared with the connection's task, as long as that serves it.
    served: Arc<()>,
}

/// How it ended there.
enum Ended {
    /// The connection is over.
    Over(io::Result<()>),
    /// Nothing more came for a while.
    Quiet,
    /// The peer has no room for an answer.
    Unsent(Box<Answer>),
}

impl Conversation {
    /// Answers a request, and those that follow soon: who registers region after region finds the
    /// thread that answered the last one, and no other has to wake up in between.
    fn go_on(&self, request: Request, fds: Vec<OwnedFd>) -> Ended {
        let mut turn = Turn::Work(request, fds);
        loop {
            let answer = match turn {
                Turn::Answer(answer) => answer,
                Turn::Work(request, fds) => {
                    let answer = desk::answer(&self.engine, &self.peer, request, fds);
                    answer.unwrap_or_else(|error| desk::refusal(&error)).into()
                }
            };
            let sent = send_now(&self.socket, &answer.reply, &answer.fds);
            if would_block(&sent) {
                return Ended::Unsent(answer);
            }
            close_answer(&self.engine, *answer, &sent);
            if sent.is_err() {
                return Ended::Over(sent);
            }
            let received = match self.wait() {
                Ok(Some(received)) => received,
                Ok(None) => return Ended::Quiet,
                Err(errno) => return Ended::Over(Err(errno.into())),
            };
            if Arc::strong_count(&self.served) == 1 {
                return Ended::Over(Ok(()));
            }
            match turn_of(&self.engine, &self.peer, received) {
                Some(next) => turn = next,
                None => return Ended::Over(Ok(())),
            }
        }
    }

    /// The next packet, if it comes soon.
    fn wait(&self) -> Result<Option<Received>, Errno> {
        let socket = &self.socket;
        let mut fds = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut fds, Some(&SOON)) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
        match receive(socket, RecvFlags::DONTWAIT, REQUEST) {
            Ok(received) => Ok(Some(received)),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// Answers the request that is there already, mostly, if that needs no waiting: readiness is not even
/// asked for. Gives back what else came.
fn first(socket: &OwnedFd, engine: &Engine, peer: &Peer) -> io::Result<Option<Received>> {
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

fn refused(object: &str, message: &str) -> Answer {
    desk::refusal(&ApiError::invalid_argument(
        object,
        message,
        "see docs/handover.md for what each request carries",
    ))
}
