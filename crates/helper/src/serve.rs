//! The helper's side: one request, one act, one response.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use berth_host::{Act, ActOutcome, HostError, linux::acts};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::{
    packet, peer,
    wire::{
        Answer, Done, Failure, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, Request, Response, VERSION,
    },
};

/// How serving a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// The act was tried, and answered.
    Tried,
    /// What came was no request, or not from somebody who may ask; that was answered.
    Refused,
    /// It was closed before a request came: whoever had it waiting has ended.
    Unasked,
}

/// Reads one request from a socket, does the act below `root` and answers. What nobody waits for
/// any more is not begun: whoever asked has given up, and others may have been told otherwise.
/// `confine` is called before the act is done, to give up what it doesn't need.
///
/// # Errors
/// Of the socket; ENOTCONN when it was closed before the request was begun.
pub fn serve(socket: impl AsFd, root: &Path, confine: impl FnOnce(&Act)) -> Result<Served, Errno> {
    let received = match packet::receive(&socket, MAX_REQUEST_BYTES) {
        Err(Errno::MSGSIZE) => Err(format!("request is longer than {MAX_REQUEST_BYTES} bytes")),
        Err(errno) => return Err(errno),
        Ok(packet) if packet.bytes.is_empty() => return Ok(Served::Unasked),
        Ok(packet) => match peer::refusal(&socket)? {
            Some(message) => Err(message),
            None => parse(&packet.bytes),
        },
    };
    match received {
        Ok(_) if is_abandoned(&socket)? => Err(Errno::NOTCONN),
        Ok(act) => {
            acts::prepare(root, &act);
            confine(&act);
            answer(&socket, acts::perform_prepared(root, &act))?;
            Ok(Served::Tried)
        }
        Err(message) => {
            respond(&socket, Answer::Error(Failure::Helper(message)), None)?;
            Ok(Served::Refused)
        }
    }
}

/// Whether the other end was closed.
fn is_abandoned(socket: impl AsFd) -> Result<bool, Errno> {
    let mut fds = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::empty())];
    match poll(&mut fds, Some(&Timespec::default())) {
        Ok(_) => Ok(fds[0].revents().contains(PollFlags::HUP)),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn parse(bytes: &[u8]) -> Result<Act, String> {
    let request: Request =
        serde_json::from_slice(bytes).map_err(|error| format!("not a request: {error}"))?;
    match request.v {
        VERSION => Ok(request.act),
        other => Err(format!("request has version {other}, this helper speaks {VERSION}")),
    }
}

fn answer(socket: impl AsFd, outcome: Result<ActOutcome, HostError>) -> Result<(), Errno> {
    match outcome {
        Ok(outcome) => {
            let (done, fd) = Done::of(outcome);
            respond(socket, Answer::Ok(done), fd.as_ref())
        }
        Err(error) => respond(socket, Answer::Error(Failure::of(&error)), None),
    }
}

/// Answers that the act couldn't be tried.
///
/// # Errors
/// Of the socket.
pub(crate) fn fail(socket: impl AsFd, message: String) -> Result<(), Errno> {
    respond(socket, Answer::Error(Failure::Helper(message)), None)
}

fn respond(socket: impl AsFd, mut answer: Answer, fd: Option<&OwnedFd>) -> Result<(), Errno> {
    loop {
        let response = Response { v: VERSION, answer };
        let bytes = serde_json::to_vec(&response).map_err(|_| Errno::INVAL)?;
        if bytes.len() <= MAX_RESPONSE_BYTES {
            return packet::send(socket, &bytes, fd);
        }
        answer = shortened(response.answer).ok_or(Errno::MSGSIZE)?;
    }
}

/// Half of a list of holders: the first ones are enough to name.
fn shortened(answer: Answer) -> Option<Answer> {
    match answer {
        Answer::Ok(Done::Holders(mut holders)) if holders.len() > 1 => {
            holders.truncate(holders.len() / 2);
            Some(Answer::Ok(Done::Holders(holders)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_host::{
        ProcessUse,
        linux::testing::{ConfigBytes, FakeDevice, FakeTree},
    };
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    fn response(socket: &OwnedFd) -> Response {
        let packet = packet::receive(socket, MAX_RESPONSE_BYTES).unwrap();
        serde_json::from_slice(&packet.bytes).unwrap()
    }

    #[test]
    fn garbage_is_refused_with_an_answer() {
        for garbage in [&b"garbage"[..], b"{\"v\":2,\"act\":{\"verb\":\"open-iommu\"}}", b"\xff"] {
            let (here, there) = pair();
            packet::send(&here, garbage, None).unwrap();
            assert_eq!(serve(&there, Path::new("/nonexistent"), |_| ()), Ok(Served::Refused));
            assert!(matches!(response(&here).answer, Answer::Error(Failure::Helper(_))));
        }
    }

    #[test]
    fn a_socket_that_closes_asks_nothing() {
        let (here, there) = pair();
        drop(here);
        assert_eq!(serve(&there, Path::new("/nonexistent"), |_| ()), Ok(Served::Unasked));
    }

    #[test]
    fn what_nobody_waits_for_is_not_begun() {
        let dir = tempfile::tempdir().unwrap();
        let tree = FakeTree::at(dir.path()).unwrap();
        let config = ConfigBytes::conventional(0x1234, 0x11e8, 0x00_ff_00);
        let device = "0000:00:05.0".parse().unwrap();
        tree.add(&FakeDevice::new(device, &config).group(8)).unwrap();
        let set = Act::Override { device, driver: Some("vfio-pci".to_owned()) };
        let request = serde_json::to_vec(&Request { v: VERSION, act: set }).unwrap();
        let attribute = tree.root().join("sys/bus/pci/devices/0000:00:05.0/driver_override");
        let text = || std::fs::read_to_string(&attribute).unwrap();

        let (here, there) = pair();
        packet::send(&here, &request, None).unwrap();
        drop(here);
        assert_eq!(serve(&there, tree.root(), |_| ()), Err(Errno::NOTCONN));
        assert_eq!(text(), "(null)\n");

        let (here, there) = pair();
        packet::send(&here, &request, None).unwrap();
        assert_eq!(serve(&there, tree.root(), |_| ()), Ok(Served::Tried));
        assert_eq!(text(), "vfio-pci");
    }

    #[test]
    fn a_list_that_is_too_long_is_shortened() {
        let (here, there) = pair();
        let one = ProcessUse {
            parent: 0,
            pid: 1,
            start_time: 7,
            name: "x".repeat(15),
            what: "/dev/vfio/8".to_owned(),
            reservation: String::new(),
            uid: None,
            unit: String::new(),
        };
        answer(&here, Ok(ActOutcome::Holders(vec![one; 10_000]))).unwrap();
        let Answer::Ok(Done::Holders(holders)) = response(&there).answer else { panic!() };
        assert!(holders.len() > 100 && holders.len() < 10_000);
    }

    #[test]
    fn descriptors_go_beside_the_answer() {
        let (here, there) = pair();
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        answer(&here, Ok(ActOutcome::Fd(reader))).unwrap();
        let packet = packet::receive(&there, MAX_RESPONSE_BYTES).unwrap();
        assert!(packet.fd.is_some());
        let response: Response = serde_json::from_slice(&packet.bytes).unwrap();
        assert_eq!(response.answer, Answer::Ok(Done::Fd));
    }
}
