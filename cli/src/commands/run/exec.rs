//! Becoming the program.

use std::{
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
};

use berth_handover::{FdInfo, FdKind, Fetched};
use rustix::io::{FdFlags, fcntl_setfd};
use serde::Serialize;

use crate::error::CliError;

/// One descriptor, for the program's environment.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Passed<'a> {
    fd: i32,
    kind: FdKind,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ioas_id: Option<u32>,
}

impl<'a> Passed<'a> {
    fn of((info, fd): &'a (FdInfo, OwnedFd)) -> Self {
        Self {
            fd: fd.as_raw_fd(),
            kind: info.kind,
            address: info.address.as_deref(),
            device_id: info.device_id,
            ioas_id: info.ioas_id,
        }
    }
}

/// Takes the place of this process, with what was handed over. Answers only where that fails: the
/// hand-over ends with the process then.
pub(super) fn become_program(words: &[String], reservation: &str, fetched: Fetched) -> CliError {
    let Some((program, arguments)) = words.split_first() else {
        return CliError::Usage("there is no program to run".to_owned());
    };
    let mut command = Command::new(program);
    command.args(arguments);
    match environment(reservation, &fetched) {
        Ok(variables) => command.envs(variables),
        Err(error) => return CliError::failed(format!("write the environment: {error}")),
    };
    // Closed again where the program can't be started.
    for (info, fd) in &fetched.fds {
        if let Err(errno) = fcntl_setfd(fd, FdFlags::empty()) {
            return CliError::failed(format!("pass descriptor {} on: {errno}", info.index));
        }
    }
    let error = command.exec();
    drop(fetched);
    CliError::failed(format!("run {program}: {error}; {reservation} is handed back"))
}

fn environment(
    reservation: &str,
    fetched: &Fetched,
) -> Result<Vec<(&'static str, String)>, serde_json::Error> {
    let fds: Vec<Passed<'_>> = fetched.fds.iter().map(Passed::of).collect();
    let epoch = fetched.reply.epoch.unwrap_or_default();
    let mut variables = vec![
        ("BERTH_RESERVATION", reservation.to_owned()),
        ("BERTH_EPOCH", epoch.to_string()),
        ("BERTH_FDS", serde_json::to_string(&fds)?),
    ];
    if !fetched.nodes().is_empty() {
        variables.push(("BERTH_NODES", serde_json::to_string(fetched.nodes())?));
    }
    if let Some(tokens) = &fetched.reply.vf_tokens {
        variables.push(("BERTH_VF_TOKENS", serde_json::to_string(tokens)?));
    }
    Ok(variables)
}
