//! One packet of a `SOCK_SEQPACKET` socket, with at most one descriptor.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

/// A packet that was received.
#[derive(Debug)]
pub(crate) struct Packet {
    pub bytes: Vec<u8>,
    pub fd: Option<OwnedFd>,
}

/// Receives a packet of at most `limit` bytes; an empty one means that the peer closed.
///
/// # Errors
/// EMSGSIZE for a longer one.
pub(crate) fn receive(socket: impl AsFd, limit: usize) -> Result<Packet, Errno> {
    let mut bytes = vec![0; limit];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg(&socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            answer => break answer?,
        }
    };
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Err(Errno::MSGSIZE);
    }
    bytes.truncate(message.bytes);
    Ok(Packet { bytes, fd })
}

/// Sends a packet.
pub(crate) fn send(socket: impl AsFd, bytes: &[u8], fd: Option<&OwnedFd>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            Ok(count) if count == bytes.len() => return Ok(()),
            Ok(_) => return Err(Errno::MSGSIZE),
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn a_packet_carries_a_descriptor() {
        let (here, there) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(&here, b"hello", Some(&writer)).unwrap();
        drop(writer);
        let packet = receive(&there, 100).unwrap();
        assert_eq!(packet.bytes, b"hello");
        rustix::io::write(packet.fd.unwrap(), b"x").unwrap();
        let mut byte = [0; 1];
        rustix::io::read(&reader, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn long_packets_are_refused_and_a_closed_peer_is_empty() {
        let (here, there) = pair();
        send(&here, &[b'x'; 101], None).unwrap();
        assert_eq!(receive(&there, 100).unwrap_err(), Errno::MSGSIZE);
        send(&here, &vec![b'x'; crate::wire::MAX_RESPONSE_BYTES], None).unwrap();
        assert!(receive(&there, crate::wire::MAX_RESPONSE_BYTES).is_ok());
        drop(here);
        assert!(receive(&there, 100).unwrap().bytes.is_empty());
    }
}
