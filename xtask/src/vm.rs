//! `cargo xtask vm`: scenarios on the real kernel, and a shell there.

use std::{env, path::PathBuf};

use anyhow::Result;
use berth_testvm::{
    host::{
        kernel::Kind,
        report::Counts,
        run::{self, Options},
    },
    wire::Profile,
};
use rustix::termios::{self, OptionalActions, Termios};

use crate::{tally::Tally, workspace};

/// Arguments of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Part of the scenarios' names (all without it), or `shell`.
    scenario: Option<String>,
    /// own, stock, path (the image that BERTH_VM_KERNEL names) or all.
    #[arg(long, default_value = "all")]
    kernel: String,
    /// default, no-intremap or all.
    #[arg(long, default_value = "default")]
    profile: String,
    /// Take the programs from this directory instead of building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Also what takes long.
    #[arg(long)]
    long: bool,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    let kernels = match arguments.kernel.as_str() {
        "all" => Kind::all(),
        one => vec![one.parse().map_err(anyhow::Error::msg)?],
    };
    let profiles = match arguments.profile.as_str() {
        "all" => Profile::ALL.to_vec(),
        one => vec![one.parse().map_err(anyhow::Error::msg)?],
    };
    let options = Options {
        root: workspace::root(),
        target: workspace::target(),
        filter: arguments.scenario.clone().unwrap_or_default(),
        kernels,
        profiles,
        programs: arguments.programs.clone(),
        long: arguments.long,
        strict: workspace::in_ci(),
    };
    if arguments.scenario.as_deref() == Some("shell") {
        return shell(&Options { filter: String::new(), ..options });
    }
    run_scenarios(&options)?.verdict()
}

/// All kernels and all machines: the stage `vm` of `cargo xtask test`.
pub(crate) fn test(long: bool) -> Result<Tally> {
    run_scenarios(&Options {
        root: workspace::root(),
        target: workspace::target(),
        filter: String::new(),
        kernels: Kind::all(),
        profiles: Profile::ALL.to_vec(),
        programs: None,
        long,
        strict: workspace::in_ci(),
    })
}

fn run_scenarios(options: &Options) -> Result<Tally> {
    let report = run::scenarios(options)?;
    println!("\n{}\nlogs: {}/vm/\n{}", report.table(), options.target.display(), report.summary());
    let Counts { passed, failed, skipped } = report.counts();
    Ok(Tally { passed, failed, skipped })
}

fn shell(options: &Options) -> Result<()> {
    let term = env::var("TERM").unwrap_or_else(|_| "linux".to_owned());
    let stdin = std::io::stdin();
    let size = termios::tcgetwinsize(&stdin).ok();
    let (rows, columns) = size.map_or((24, 80), |size| (size.ws_row, size.ws_col));
    run::shell(options, &term, rows, columns, Raw::enter)
}

/// The terminal passes every key to the guest, until this is dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Self {
        let stdin = std::io::stdin();
        let Ok(before) = termios::tcgetattr(&stdin) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        let entered = termios::tcsetattr(&stdin, OptionalActions::Now, &raw).is_ok();
        Self(entered.then_some(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Nothing more can be done for a terminal that is gone.
            let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
