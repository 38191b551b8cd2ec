//! berth-helper: the privileged acts, one process per request.
//!
//! Reads one request from the socket that is its standard input, does it, answers and exits:
//! 0 when the act was tried or nothing was asked, 2 when what came was no request or from somebody who
//! may not ask, 1 when the socket failed.
#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use berth_helper::{
    confine,
    serve::{Served, serve},
};

fn main() -> ExitCode {
    // Why a driver can't be loaded is said there; standard error is the daemon's.
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    match run() {
        Ok(Served::Tried | Served::Unasked) => ExitCode::SUCCESS,
        Ok(Served::Refused) => ExitCode::from(2),
        Err(error) => {
            eprintln!("berth-helper: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<Served> {
    let mut root = PathBuf::from("/");
    let mut confined = true;
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--sysfs-root") => root = args.next().context("--sysfs-root needs a path")?.into(),
            // For a machine where that is in an act's way.
            Some("--unconfined") => confined = false,
            _ => bail!("unknown argument {}", arg.display()),
        }
    }
    let confine = |act: &berth_host::Act| {
        if confined {
            confine::enter(&root, act);
        }
    };
    serve(rustix::stdio::stdin(), &root, confine).context("serve the request on standard input")
}
