//! Runs scenarios inside the test guest.
#![forbid(unsafe_code)]

use std::{env, process::ExitCode};

use anyhow::{Result, bail};
use berth_testvm::{
    guest::{bench, holder, runner, shell, unpriv},
    wire::Mode,
};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-testvm-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        None => {
            let config = runner::config()?;
            match config.mode {
                Mode::Scenarios { .. } => runner::run_all(&config),
                Mode::Shell { .. } => shell::run(&config),
                Mode::Bench { .. } => bench::run(&config),
            }
        }
        Some((runner::VERB, [name])) => runner::run_here(name),
        Some((holder::VERB, [])) => holder::serve(),
        Some((unpriv::VERB, rest)) => unpriv::become_unprivileged(rest),
        Some((other, _)) => bail!("no such verb: {other}"),
    }
}
