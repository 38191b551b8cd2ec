//! `cargo xtask vm`: scenarios on the real kernel, and a shell there.

use std::{env, path::PathBuf};

use anyhow::Result;
use berth_testvm::{
    host::{
        inverse,
        kernel::Kind,
        report::{Counts, Line, Report},
        run::{self, Options},
    },
    wire::{Profile, Verdict},
};
use rustix::termios::{self, OptionalActions, Termios};

use crate::{dist, tally::Tally, workspace};

/// Arguments of `cargo xtask vm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Parts of the scenarios' names with commas between (all without it), or `shell`.
    scenario: Option<String>,
    /// own, stock, path (the image that BERTH_VM_KERNEL names) or all.
    #[arg(long, default_value = "all")]
    kernel: String,
    /// default, no-intremap, systemd (with a Debian and its systemd as root) or all.
    #[arg(long, default_value = "default")]
    profile: String,
    /// Take the programs from this directory instead of building them.
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Run what lets a device move bytes with programs whose attach does nothing, on the own kernel:
    /// each must fail.
    #[arg(long, conflicts_with_all = ["scenario", "kernel", "profile", "programs"])]
    no_op_attach: bool,
    /// Also what takes long.
    #[arg(long)]
    long: bool,
}

pub(crate) fn main(arguments: &Arguments) -> Result<()> {
    if arguments.no_op_attach {
        return no_op_attach(arguments.long)?.verdict();
    }
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
        logs: logs(),
        filter: arguments.scenario.clone().unwrap_or_default(),
        kernels,
        profiles,
        programs: arguments.programs.clone(),
        packages: Some(dist::guests),
        long: arguments.long,
        strict: workspace::in_ci(),
    };
    if arguments.scenario.as_deref() == Some("shell") {
        return shell(&Options { filter: String::new(), ..options });
    }
    run_scenarios(&options)?.verdict()
}

/// All kernels and all machines, and the test of these tests: the stage `vm` of `cargo xtask test`.
pub(crate) fn test(long: bool) -> Result<Tally> {
    let options =
        Options { kernels: Kind::all(), profiles: Profile::ALL.to_vec(), ..options(long) };
    let mut report = run::scenarios(&options)?;
    try_again(&options, &mut report)?;
    let mut tally = show(&options, &report);
    tally += no_op_attach(long)?;
    Ok(tally)
}

/// What failed has one more try, each in a guest of its own that is booted anew: an emulated
/// processor can stall for longer than any patience. Both results are printed; what fails twice has
/// failed.
fn try_again(options: &Options, report: &mut Report) -> Result<()> {
    let failed: Vec<Line> = report
        .lines
        .iter()
        .filter(|line| matches!(line.verdict, Verdict::Fail { .. }))
        .cloned()
        .collect();
    for first in failed {
        let (kernel, profile, name) = (first.kernel, first.profile, &first.name);
        println!("{kernel}/{profile} {name}: {:?}; once more in a guest of its own", first.verdict);
        let whole = name == "boot";
        let second = run::scenarios(&Options {
            kernels: vec![kernel],
            profiles: vec![profile],
            filter: if whole { options.filter.clone() } else { name.clone() },
            logs: options.logs.join("second-try"),
            programs: options.programs.clone(),
            root: options.root.clone(),
            target: options.target.clone(),
            ..*options
        })?;
        if whole {
            report.lines.retain(|line| !(line.kernel == kernel && line.profile == profile));
            report.lines.extend(second.lines);
            continue;
        }
        let again = second.lines.into_iter().find(|line| line.name == *name);
        let same = |line: &&mut Line| {
            line.kernel == kernel && line.profile == profile && line.name == *name
        };
        if let (Some(again), Some(line)) = (again, report.lines.iter_mut().find(same)) {
            *line = again;
        }
    }
    Ok(())
}

/// One test for each scenario that lets a device move bytes: it must fail where attach does nothing.
fn no_op_attach(long: bool) -> Result<Tally> {
    let profiles = vec![Profile::Default, Profile::Systemd];
    let options =
        Options { logs: logs().join("no-op-attach"), profiles, packages: None, ..options(long) };
    let report = inverse::scenarios(&options)?;
    let tally = show(&options, &report);
    let (red, ran) = inverse::red(&report);
    println!("{red} of {ran} scenarios turned red with an attach that does nothing, as they must");
    Ok(tally)
}

fn options(long: bool) -> Options {
    Options {
        root: workspace::root(),
        target: workspace::target(),
        logs: logs(),
        filter: String::new(),
        kernels: vec![Kind::Own],
        profiles: vec![Profile::Default],
        programs: None,
        packages: Some(dist::guests),
        long,
        strict: workspace::in_ci(),
    }
}

fn logs() -> PathBuf {
    workspace::target().join("vm")
}

fn run_scenarios(options: &Options) -> Result<Tally> {
    Ok(show(options, &run::scenarios(options)?))
}

fn show(options: &Options, report: &Report) -> Tally {
    println!("\n{}\nlogs: {}/\n{}", report.table(), options.logs.display(), report.summary());
    let Counts { passed, failed, skipped } = report.counts();
    Tally { passed, failed, skipped }
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
