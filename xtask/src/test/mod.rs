//! `cargo xtask test`: every test, in stages that can be run alone.

mod api;
mod cargo;
mod clients;
mod daemon;
mod dist;
mod docs;
mod orders;
mod python;
mod sanitize;
mod space;
mod web;

use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

use crate::{check, tally::Tally, vm, workspace};

/// A stage of the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// Format, lints, dependency arrows, sizes, documentation.
    Check,
    /// Tests inside the crates, documentation examples, and every order of threads that share.
    Unit,
    /// The daemon, command line and helper against the simulated host.
    Sim,
    /// Scenarios on real kernels in a virtual machine.
    Vm,
    /// The page in a headless browser.
    Web,
    /// Packages, alert rules, and the numbers that these ask for.
    Dist,
    /// README and docs: links, the commands of the tours, the clients, and the API by its document.
    Docs,
}

const ALL: [Stage; 7] =
    [Stage::Check, Stage::Unit, Stage::Sim, Stage::Docs, Stage::Web, Stage::Dist, Stage::Vm];

/// What to test.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these stages; all when none is named.
    #[arg(value_enum)]
    stages: Vec<Stage>,
    /// Also what takes longer than a change should wait for.
    #[arg(long)]
    long: bool,
}

/// Runs the stages, all of them even after a failure, and closes with one line of counts.
pub(crate) fn run(args: &Args) -> Result<()> {
    space::look(&workspace::target());
    let stages = if args.stages.is_empty() { &ALL[..] } else { &args.stages[..] };
    let mut total = Tally::default();
    let mut lines = Vec::new();
    for stage in stages {
        println!("\n=== {stage:?}");
        let start = Instant::now();
        let tally = one(*stage, args.long).unwrap_or_else(|error| {
            println!("stage {stage:?} could not run: {error:#}");
            Tally::one(false)
        });
        let seconds = start.elapsed().as_secs();
        lines.push(format!("{:<6} {:>5} s  {}", format!("{stage:?}"), seconds, tally.line()));
        total += tally;
    }
    println!("\n{}", lines.join("\n"));
    println!("{}", total.line());
    total.verdict()
}

fn one(stage: Stage, long: bool) -> Result<Tally> {
    match stage {
        Stage::Check => check::run(),
        Stage::Unit => cargo::unit(long),
        Stage::Sim => cargo::sim(long),
        Stage::Vm => vm::test(long),
        Stage::Web => web::run(),
        Stage::Docs => docs::run(),
        Stage::Dist => dist::run(),
    }
}
