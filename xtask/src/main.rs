//! Developer commands: run, test, bench, vm, check, fuzz, mutants, dist, sbom, docs.
#![forbid(unsafe_code)]

mod bench;
mod check;
mod dist;
mod docs;
mod fuzz;
mod mutants;
mod run;
mod sbom;
mod tally;
mod test;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use berth_testvm::host::packages::{self, Tool};
use clap::{Parser, Subcommand};

/// Developer commands of this workspace.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start the daemon and its page; simulated where there is no IOMMU.
    Run(run::Args),
    /// Run tests: all tiers, or one.
    Test(test::Args),
    /// Measure, beside a peer.
    Bench(bench::Arguments),
    /// Run scenarios in a guest with a virtual IOMMU, or give a shell in one.
    Vm(vm::Arguments),
    /// Run the fuzzers of fuzz/, each for ten minutes.
    Fuzz(fuzz::Arguments),
    /// Put small bugs into the ownership state machine and the table of roles: tests catch them.
    Mutants(mutants::Arguments),
    /// Format, lints, dependency arrows, sizes, docs.
    Check,
    /// Make packages for Debian and RPM systems.
    Dist(dist::Arguments),
    /// Write what the installed programs are made of (CycloneDX).
    Sbom(sbom::Arguments),
    /// Write docs/api anew, from the protocol and the routes.
    Docs,
}

/// What building the workspace takes beside Rust and a C compiler: `berthd`'s allocator is made with it.
const BUILD: &[Tool] = &[Tool { package: "make", proof: "make" }];

fn main() -> ExitCode {
    let verb = Arguments::parse().verb;
    match packages::ensure(BUILD).and_then(|()| start(verb)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(verb: Verb) -> Result<()> {
    match verb {
        Verb::Run(arguments) => run::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Bench(arguments) => bench::main(&arguments),
        Verb::Vm(arguments) => vm::main(&arguments),
        Verb::Fuzz(arguments) => fuzz::main(&arguments),
        Verb::Mutants(arguments) => mutants::main(&arguments),
        Verb::Dist(arguments) => dist::main(&arguments),
        Verb::Sbom(arguments) => sbom::main(&arguments),
        Verb::Docs => docs::run(),
        Verb::Check => check::run().and_then(|tally| tally.verdict()),
    }
}
