//! Who does the privileged acts: a program that berthd starts, or whoever listens at a socket.

use std::path::{Path, PathBuf};

use berth_helper::client::SOCKET;
use toml::Spanned;

use super::{Args, ConfigError, Helper, check, error::Source, raw::RawConfig, system};

/// What berthd is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Machine {
    /// The one that it runs on.
    This,
    /// What another directory shows of one.
    Tree,
    /// None: nobody does privileged acts.
    Simulated,
}

/// The helper that arguments and file name, arguments first; else the one behind the usual socket,
/// where there is one.
pub(super) fn resolve(
    raw: &RawConfig,
    source: &Source<'_>,
    args: &Args,
    machine: Machine,
) -> Result<Helper, ConfigError> {
    if args.helper.is_some() {
        return Ok(Helper::Forked(args.helper.clone()));
    }
    if let Some(path) = &args.helper_socket {
        return usable(path, machine).map_err(|(message, way_out)| ConfigError::Argument {
            argument: format!("--helper-socket {}", path.display()),
            message,
            way_out: way_out.to_owned(),
        });
    }
    match (&raw.helper, &raw.helper_socket) {
        (Some(_), Some(socket)) => {
            let message = "the file names a helper, too";
            let way_out = "remove helper or helper_socket";
            Err(source.error(Some(socket.span()), "helper_socket", message, way_out))
        }
        (Some(program), None) => {
            Ok(Helper::Forked(Some(check::absolute(program, "helper", source)?)))
        }
        (None, Some(socket)) => from_file(socket, source, machine),
        (None, None) if machine == Machine::This && system::is_socket(Path::new(SOCKET)) => {
            Ok(Helper::Socket(PathBuf::from(SOCKET)))
        }
        (None, None) => Ok(Helper::Forked(None)),
    }
}

fn from_file(
    socket: &Spanned<PathBuf>,
    source: &Source<'_>,
    machine: Machine,
) -> Result<Helper, ConfigError> {
    let path = check::absolute(socket, "helper_socket", source)?;
    usable(&path, machine).map_err(|(message, way_out)| {
        source.error(Some(socket.span()), "helper_socket", message, way_out)
    })
}

/// The helper behind a socket that was named, or what is wrong and the way out.
fn usable(path: &Path, machine: Machine) -> Result<Helper, (String, &'static str)> {
    match machine {
        Machine::Tree => {
            let message = "a helper behind a socket acts on this machine, not on another tree";
            return Err((
                message.to_owned(),
                "name a program with helper, or use sysfs_root = \"/\"",
            ));
        }
        Machine::This if !system::is_socket(path) => {
            let message = format!("there is no socket {}", path.display());
            return Err((message, "start it: systemctl start berth-helper.socket"));
        }
        Machine::This | Machine::Simulated => {}
    }
    Ok(Helper::Socket(path.to_owned()))
}
