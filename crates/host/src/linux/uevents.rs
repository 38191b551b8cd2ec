//! The kernel's messages of devices: `NETLINK_KOBJECT_UEVENT`.
//!
//! # Source
//! `netlink(7)`; `lib/kobject_uevent.c`. Group 1 is the kernel's own, group 2 is udev's.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind,
        netlink::{KOBJECT_UEVENT, SocketAddrNetlink},
        recvfrom, socket_with, sockopt,
    },
};

use super::tree::file_error;
use crate::{HostError, News, PciAddress, Uevent, Uevents};

/// The kernel's multicast group.
const KERNEL: u32 = 1;

/// What waits unread: a switch with hundreds of functions tells some hundred bytes of each.
const RECEIVE_BYTES: usize = 1 << 20;

/// The longest message: 2 KiB of variables (`UEVENT_BUFFER_SIZE`), a path and the action.
const MESSAGE_BYTES: usize = 8192;

/// How many messages are taken together.
const MOST: usize = 1024;

/// Where messages come from, in words.
const SOURCE: &str = "netlink kobject-uevent";

/// A subscription to the kernel's messages.
#[derive(Debug)]
pub(super) struct KernelUevents {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

impl KernelUevents {
    /// Subscribes.
    pub(super) fn open() -> Result<Self, HostError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let failed = |op| move |errno| file_error(op, SOURCE, errno);
        let family = AddressFamily::NETLINK;
        let socket = socket_with(family, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))
            .map_err(failed("socket"))?;
        // The default holds some dozen messages. More than the host's limit is cut to that.
        sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BYTES)
            .map_err(failed("setsockopt"))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL)).map_err(failed("bind"))?;
        Ok(Self { socket, buffer: vec![0; MESSAGE_BYTES] })
    }

    /// Waits until there is something to read; false when the time is over.
    fn wait(&self, patience: Duration) -> Result<bool, Errno> {
        let end = Instant::now() + patience;
        loop {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))
                .map_err(|_| Errno::INVAL)?;
            let mut waits = [PollFd::new(&self.socket, PollFlags::IN)];
            match poll(&mut waits, Some(&left)) {
                Ok(count) => return Ok(count > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The next message that is the kernel's and about a PCI function; `Ok(None)` for another one.
    fn receive(&mut self) -> Result<Option<Uevent>, Errno> {
        let (_, length, sender) =
            recvfrom(&self.socket, self.buffer.as_mut_slice(), RecvFlags::TRUNC)?;
        // Processes have a port id; they may send here with CAP_NET_ADMIN.
        let kernel = sender
            .and_then(|sender| SocketAddrNetlink::try_from(sender).ok())
            .is_some_and(|sender| sender.pid() == 0 && sender.groups() == KERNEL);
        let message = self.buffer.get(..length);
        Ok(message.filter(|_| kernel).and_then(parse))
    }
}

impl Uevents for KernelUevents {
    fn next(&mut self, patience: Duration) -> Result<News, HostError> {
        let failed = |errno| file_error("recvmsg", SOURCE, errno);
        if !self.wait(patience).map_err(failed)? {
            return Ok(News::Uevents(Vec::new()));
        }
        let mut found = Vec::new();
        for _ in 0..MOST {
            match self.receive() {
                Ok(uevent) => found.extend(uevent),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(Errno::NOBUFS) => return Ok(News::Dropped),
                Err(errno) => return Err(failed(errno)),
            }
        }
        Ok(News::Uevents(found))
    }
}

/// `ACTION@DEVPATH`, then `KEY=VALUE`, each ended by a zero byte. `None` for what isn't about a PCI
/// function.
pub(super) fn parse(message: &[u8]) -> Option<Uevent> {
    let mut texts = message.split(|byte| *byte == 0).map(std::str::from_utf8);
    texts.next()?.ok()?.split_once('@')?;
    let (mut action, mut subsystem, mut device) = (None, None, None);
    for text in texts {
        match text.ok()?.split_once('=') {
            Some(("ACTION", value)) => action = Some(value),
            Some(("SUBSYSTEM", value)) => subsystem = Some(value),
            Some(("PCI_SLOT_NAME", value)) => device = value.parse::<PciAddress>().ok(),
            _ => {}
        }
    }
    let device = device.filter(|_| subsystem == Some("pci"))?;
    Some(Uevent { action: action?.to_owned(), device })
}

#[cfg(test)]
mod tests {
    use super::{KernelUevents, parse};
    use crate::{News, Uevent, Uevents as _};
    use std::time::Duration;

    #[test]
    fn a_message_of_a_function_is_read() {
        let message = b"unbind@/devices/pci0000:00/0000:00:03.0/0000:01:00.0\0ACTION=unbind\0\
            DEVPATH=/devices/pci0000:00/0000:00:03.0/0000:01:00.0\0SUBSYSTEM=pci\0\
            PCI_CLASS=10802\0PCI_ID=1B36:0010\0PCI_SLOT_NAME=0000:01:00.0\0SEQNUM=2091\0";
        let device = "0000:01:00.0".parse().unwrap();
        assert_eq!(parse(message), Some(Uevent { action: "unbind".to_owned(), device }));
    }

    #[test]
    fn what_is_not_about_a_function_is_left_out() {
        let others: [&[u8]; 6] = [
            b"",
            b"add@/devices/virtual/net/x\0ACTION=add\0SUBSYSTEM=net\0",
            b"add@/devices/x\0ACTION=add\0SUBSYSTEM=pci\0PCI_SLOT_NAME=../../etc\0",
            b"add@/devices/x\0SUBSYSTEM=pci\0PCI_SLOT_NAME=0000:01:00.0\0",
            b"libudev\0\xfe\xed\xca\xfe\0SUBSYSTEM=pci\0",
            b"add@/x\0ACTION=\xff\0SUBSYSTEM=pci\0PCI_SLOT_NAME=0000:01:00.0\0",
        ];
        for message in others {
            assert_eq!(parse(message), None, "{}", String::from_utf8_lossy(message));
        }
    }

    #[test]
    fn a_subscription_waits_as_long_as_it_is_told() {
        let mut uevents = KernelUevents::open().unwrap();
        // What this machine's own devices do meanwhile is as good.
        assert!(matches!(uevents.next(Duration::from_millis(10)), Ok(News::Uevents(_))));
    }
}
