//! Telling the service manager how far the daemon is: `sd_notify` without its library.

use std::{
    env,
    ffi::OsString,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::BorrowedFd,
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Sends lines such as `READY=1` to the socket that `NOTIFY_SOCKET` names. Without one nobody
/// wants to know.
///
/// # Errors
/// What the system answers.
///
/// # Source
/// <https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html>
pub fn service_manager(state: &[&str]) -> io::Result<()> {
    service_manager_with(state, &[])
}

/// The same with descriptors.
///
/// # Errors
/// What the system answers.
pub(crate) fn service_manager_with(state: &[&str], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(&name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("one message carries one descriptor"));
    }
    let text = state.join("\n");
    sendmsg(&socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Within which time the service manager wants to hear `WATCHDOG=1` again and again; `None` when it
/// doesn't, or from another process.
///
/// # Errors
/// What it set is no time. That is named, with the variable.
///
/// # Source
/// <https://www.freedesktop.org/software/systemd/man/latest/sd_watchdog_enabled.html>
pub fn watchdog_period() -> Result<Option<Duration>, String> {
    period(env::var_os)
}

fn period(variable: impl Fn(&'static str) -> Option<OsString>) -> Result<Option<Duration>, String> {
    let number = |name: &'static str| {
        let Some(value) = variable(name).filter(|value| !value.is_empty()) else { return Ok(None) };
        let parsed = value.to_str().and_then(|text| text.parse::<u64>().ok());
        parsed.map(Some).ok_or_else(|| format!("{name}={} is no number", value.display()))
    };
    let Some(microseconds) = number("WATCHDOG_USEC")? else { return Ok(None) };
    if number("WATCHDOG_PID")?.is_some_and(|pid| pid != u64::from(std::process::id())) {
        return Ok(None);
    }
    if microseconds == 0 {
        return Err("WATCHDOG_USEC=0 is no time".to_owned());
    }
    Ok(Some(Duration::from_micros(microseconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(usec: Option<&str>, pid: Option<&str>) -> Result<Option<Duration>, String> {
        period(|name| match name {
            "WATCHDOG_USEC" => usec.map(OsString::from),
            _ => pid.map(OsString::from),
        })
    }

    #[test]
    fn a_watchdog_that_wants_to_hear_of_us_says_how_often() {
        let me = std::process::id().to_string();
        let half_a_minute = Ok(Some(Duration::from_secs(30)));
        assert_eq!(with(Some("30000000"), Some(&me)), half_a_minute);
        assert_eq!(with(Some("30000000"), None), half_a_minute);
        for nobody in [with(None, None), with(Some(""), None), with(Some("30000000"), Some("1"))] {
            assert_eq!(nobody, Ok(None));
        }
        for (usec, pid) in [("soon", None), ("0", None), ("-1", None), ("1", Some("me"))] {
            let error = with(Some(usec), pid).expect_err(usec);
            assert!(error.starts_with("WATCHDOG_"), "{error}");
        }
    }
}
