//! Who may ask a helper: root, the user that it runs as, and the owner of the socket's file.
//!
//! The file's mode keeps others out already; a unit that was changed to let everybody connect must
//! not make everybody root.

use std::{
    ffi::OsStr,
    fs,
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::PathBuf,
};

use rustix::{
    io::Errno,
    net::{SocketAddrUnix, getsockname, sockopt::socket_peercred},
    process::{Uid, geteuid},
};

/// Why whoever is at the other end may not ask; `None` when it may.
///
/// # Errors
/// ENOTSOCK and others: it can't be known who that is.
pub(crate) fn refusal(socket: impl AsFd) -> Result<Option<String>, Errno> {
    let peer = socket_peercred(&socket)?.uid;
    // A pair has no file, and came from a process of ours.
    let file = path(&socket)?;
    let owner = file.as_ref().and_then(|path| fs::symlink_metadata(path).ok());
    let owner = owner.map(|found| Uid::from_raw(found.uid()));
    if may_ask(peer, geteuid(), owner) {
        return Ok(None);
    }
    let place = file.map_or_else(String::new, |path| format!(" of {}", path.display()));
    let peer = peer.as_raw();
    Ok(Some(format!("uid {peer} may not ask: only root and the owner{place} may (SocketUser=)")))
}

fn may_ask(peer: Uid, own: Uid, owner: Option<Uid>) -> bool {
    peer.is_root() || peer == own || owner == Some(peer)
}

fn path(socket: impl AsFd) -> Result<Option<PathBuf>, Errno> {
    let address = SocketAddrUnix::try_from(getsockname(socket)?)?;
    Ok(address.path().map(|path| PathBuf::from(OsStr::from_bytes(path.to_bytes()))))
}

#[cfg(test)]
mod tests {
    use super::may_ask;
    use rustix::process::Uid;

    #[test]
    fn root_our_own_user_and_the_owner_may_ask_and_nobody_else() {
        let [root, berth, other] = [0, 990, 1000].map(Uid::from_raw);
        for (peer, own, owner, may) in [
            (root, root, Some(berth), true),
            (berth, root, Some(berth), true),
            (other, root, Some(berth), false),
            (berth, root, None, false),
            (other, other, None, true),
            (other, berth, Some(root), false),
        ] {
            assert_eq!(may_ask(peer, own, owner), may, "{peer:?} asks {own:?} behind {owner:?}");
        }
    }
}
