//! Starting helpers for somebody who can't any more.
//!
//! What `berthd` gives up when it has started (system calls, files) is given up by all that it
//! starts, too, and a helper needs both. So `berthd` starts this process before: it reads one packet
//! for each helper from its control socket, with the socket that is to be the helper's standard
//! input, and ends with the last other end of the control socket.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{Command, Stdio},
    thread,
};

use rustix::io::Errno;

use crate::{packet, serve, wire::MAX_REQUEST_BYTES};

/// What a request to start one says; the descriptor beside it is what counts.
pub(crate) const START: &[u8] = b"start";

/// Starts `program` for acts on the tree at `root`, as often as is asked on `control`.
///
/// # Errors
/// Of the control socket.
pub fn run(control: impl AsFd, program: &Path, root: &Path) -> Result<(), Errno> {
    loop {
        let packet = packet::receive(&control, START.len())?;
        match packet.fd {
            _ if packet.bytes.is_empty() => return Ok(()),
            Some(socket) => start(program, root, socket),
            None => {}
        }
    }
}

/// Answers whatever is asked, once it is: what is closed with a request unread resets the connection.
fn refuse(socket: &OwnedFd, message: String) {
    if packet::receive(socket, MAX_REQUEST_BYTES).is_ok_and(|packet| !packet.bytes.is_empty()) {
        // Nobody waits any more, where that fails.
        let _ = serve::fail(socket, message);
    }
}

/// Starts one. Whoever waits for its answer is told when that fails.
fn start(program: &Path, root: &Path, socket: OwnedFd) {
    let Ok(input) = socket.try_clone() else { return };
    // Its own process group: a ^C on the daemon's terminal must not cut an act short.
    let started = Command::new(program)
        .arg("--sysfs-root")
        .arg(root)
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::from(input))
        .stdout(Stdio::null())
        .spawn();
    match started {
        Ok(mut child) => {
            let waiting = thread::Builder::new().name("berth-reaper".to_owned());
            // Without a thread it stays a zombie until this process ends; that does no harm.
            drop(waiting.spawn(move || child.wait()));
        }
        Err(error) => {
            let message = format!("start {}: {error}", program.display());
            let answering = thread::Builder::new().name("berth-answer".to_owned());
            // Without a thread the socket is closed unanswered.
            drop(answering.spawn(move || refuse(&socket, message)));
        }
    }
}
