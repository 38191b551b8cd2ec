//! `berth`: the command line of Berth, a gRPC client of `berthd`.
#![forbid(unsafe_code)]

mod address;
mod args;
mod client;
mod commands;
mod complete;
mod error;
mod handover;
mod progress;
mod quantity;
mod render;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{args::Cli, error::CliError, render::Output};

fn main() -> ExitCode {
    complete::answer();
    let cli = Cli::parse();
    let output = Output::new(cli.global.output);
    match run(cli, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.print();
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli, output: &Output) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("start the runtime: {error}")))?;
    let seconds = cli.global.timeout;
    runtime.block_on(async {
        let work = commands::run(cli, output);
        match seconds {
            None => work.await,
            Some(limit) => tokio::time::timeout(limit, work)
                .await
                .unwrap_or_else(|_| Err(CliError::TimedOut(limit))),
        }
    })
}
