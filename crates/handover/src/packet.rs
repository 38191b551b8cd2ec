//! One packet with descriptors, over a `SOCK_SEQPACKET` socket: both ends of the conversation.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};

use crate::wire::{MAX_ANSWER_BYTES, MAX_ANSWER_FDS, MAX_FDS, MAX_PACKET_BYTES};

/// The most bytes and descriptors of a request.
pub const REQUEST: (usize, usize) = (MAX_PACKET_BYTES, MAX_FDS);

/// The most bytes and descriptors of an answer.
pub const ANSWER: (usize, usize) = (MAX_ANSWER_BYTES, MAX_ANSWER_FDS);

/// What one receive brought.
#[derive(Debug)]
pub enum Received {
    /// A packet.
    Packet(Vec<u8>, Vec<OwnedFd>),
    /// A packet that is over a limit. Its descriptors are closed already.
    TooMuch(&'static str),
    /// The peer closed its end.
    End,
}

/// Sends one packet.
///
/// # Errors
/// EAGAIN when the peer doesn't read and `flags` say not to wait; EPIPE when it is gone; EMSGSIZE
/// when there are more descriptors than one message takes.
pub fn send(
    socket: impl AsFd,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<(), Errno> {
    if fds.len() > MAX_ANSWER_FDS {
        return Err(Errno::MSGSIZE);
    }
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(fds.len()))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE);
    }
    let sent = rustix::io::retry_on_intr(|| {
        sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags | SendFlags::NOSIGNAL)
    })?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
}

/// Receives one packet. Descriptors are close-on-exec; those of a packet with more than `max_fds`
/// are closed; one of more than `max_bytes` is cut.
///
/// # Errors
/// EAGAIN when there is none and `flags` say not to wait, or a receive time-out passed.
pub fn receive(
    socket: impl AsFd,
    flags: RecvFlags,
    (max_bytes, max_fds): (usize, usize),
) -> Result<Received, Errno> {
    let mut bytes = vec![0; max_bytes];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(max_fds))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::io::retry_on_intr(|| {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        recvmsg(&socket, &mut parts, &mut control, flags | RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            fds.extend(rights);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) || fds.len() > max_fds {
        return Ok(Received::TooMuch("the packet carries too many descriptors"));
    }
    if message.flags.contains(ReturnFlags::TRUNC) {
        return Ok(Received::TooMuch("the packet has too many bytes"));
    }
    if message.bytes == 0 {
        return Ok(Received::End);
    }
    bytes.truncate(message.bytes);
    Ok(Received::Packet(bytes, fds))
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn memfd() -> OwnedFd {
        rustix::fs::memfd_create("packet", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn descriptors_arrive_close_on_exec_with_their_packet() {
        let (a, b) = pair();
        let sent = memfd();
        rustix::io::write(&sent, b"berth").unwrap();
        send(&a, b"one", &[sent.as_fd()], SendFlags::empty()).unwrap();
        send(&a, b"two", &[], SendFlags::empty()).unwrap();
        let Received::Packet(bytes, fds) = receive(&b, RecvFlags::empty(), REQUEST).unwrap() else {
            panic!("no packet");
        };
        assert_eq!(bytes, b"one");
        assert_eq!(rustix::fs::fstat(&fds[0]).unwrap().st_size, 5);
        let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let Received::Packet(bytes, fds) = receive(&b, RecvFlags::empty(), REQUEST).unwrap() else {
            panic!("no packet");
        };
        assert_eq!((bytes.as_slice(), fds.len()), (b"two".as_slice(), 0));
        drop(a);
        assert!(matches!(receive(&b, RecvFlags::empty(), REQUEST).unwrap(), Received::End));
    }

    #[test]
    fn too_many_descriptors_are_closed_not_leaked() {
        let (a, b) = pair();
        let many: Vec<OwnedFd> = (0..MAX_FDS + 1).map(|_| memfd()).collect();
        let borrowed: Vec<BorrowedFd<'_>> = many.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        sendmsg(&a, &[IoSlice::new(b"many")], &mut control, SendFlags::empty()).unwrap();
        let before: Vec<_> = many.iter().map(|fd| rustix::fs::fstat(fd).unwrap().st_ino).collect();
        assert!(matches!(receive(&b, RecvFlags::empty(), REQUEST).unwrap(), Received::TooMuch(_)));
        drop(many);
        let leaked = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::metadata(entry.ok()?.path()).ok())
            .filter(|meta| before.contains(&std::os::unix::fs::MetadataExt::ino(meta)))
            .count();
        assert_eq!(leaked, 0);
    }

    #[test]
    fn a_packet_over_the_limit_is_said_to_be() {
        let (a, b) = pair();
        send(&a, &vec![b' '; MAX_PACKET_BYTES + 1], &[], SendFlags::empty()).unwrap();
        assert!(matches!(receive(&b, RecvFlags::empty(), REQUEST).unwrap(), Received::TooMuch(_)));
        assert_eq!(
            send(&a, b"x", &[a.as_fd(); MAX_ANSWER_FDS + 1], SendFlags::empty()),
            Err(Errno::MSGSIZE)
        );
    }
}
