//! Telling the service manager how far the daemon is: `sd_notify` without its library.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// Sends lines such as `READY=1` to the socket that `NOTIFY_SOCKET` names. Without one nobody
/// wants to know.
///
/// # Errors
/// What the system answers.
///
/// # Source
/// <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>
pub fn service_manager(state: &[&str]) -> io::Result<()> {
    let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(&name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.send_to_addr(state.join("\n").as_bytes(), &address)?;
    Ok(())
}
