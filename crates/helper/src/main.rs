//! berth-helper: the privileged acts, one process per request.
//!
//! Reads one request from the socket that is its standard input, does it, answers and exits:
//! 0 when the act was tried or nothing was asked, 2 when what came was no request or from somebody who
//! may not ask, 1 when the socket failed.
#![forbid(unsafe_code)]

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use berth_helper::{
    confine,
    serve::{Served, serve},
};
use clap::{CommandFactory as _, Parser};

/// Does one privileged act for berthd, which asks for it on standard input.
///
/// Started by berthd, or by systemd for each connection to berth-helper.socket. It answers root and
/// the owner of its socket, and nobody else. What an act doesn't need it gives up before the act.
#[derive(Debug, Parser)]
#[command(name = "berth-helper", version)]
struct Args {
    /// Act on `sys` and `proc` below this directory.
    #[arg(long, value_name = "DIR", default_value = "/")]
    sysfs_root: PathBuf,
    /// Keep the rights that the act doesn't need: for a machine where giving them up is in its way.
    #[arg(long)]
    unconfined: bool,
    /// Write the man page to a directory, then exit.
    #[arg(long, value_name = "DIR")]
    man: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Why a driver can't be loaded is said there; standard error is the daemon's.
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let served = match &args.man {
        Some(dir) => return berth_manual::write(Args::command(), dir),
        None => serve_one(&args),
    };
    match served {
        Ok(Served::Tried | Served::Unasked) => ExitCode::SUCCESS,
        Ok(Served::Refused) => ExitCode::from(2),
        Err(error) => {
            eprintln!("berth-helper: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve_one(args: &Args) -> anyhow::Result<Served> {
    let confine = |act: &berth_host::Act| {
        if !args.unconfined {
            confine::enter(&args.sysfs_root, act);
        }
    };
    serve(rustix::stdio::stdin(), &args.sysfs_root, confine)
        .context("serve the request on standard input")
}
