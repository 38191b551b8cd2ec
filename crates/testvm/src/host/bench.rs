//! Benches on the real kernel: each boots a guest, in which the programs that measure run.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    kernel::Kind,
    machine::Console,
    run::{Options, Prepared, boot_patience, files_for, prepare, stage_program},
    session::Session,
};
use crate::wire::{Measuring, Message, Mode, Profile};

/// How long a line may take: it is many processes of an emulated machine.
const LINE: Duration = Duration::from_secs(1800);

/// What one kernel gave.
#[derive(Debug)]
pub struct Measured {
    /// The kernel.
    pub kernel: Kind,
    /// The rows, as JSON, each text a list: also of a run that failed later.
    pub rows: Vec<String>,
    /// How it ended.
    pub outcome: Result<()>,
}

/// The back end that a kernel is there for: the distribution's has no other, and what somebody brings
/// has this one for sure.
const fn backend(kernel: Kind) -> &'static str {
    match kernel {
        Kind::Own => "iommufd",
        Kind::Stock | Kind::Path => "type1",
    }
}

/// Runs these on every kernel, with the peers of a directory. The programs are those of the options.
/// Their lines are printed as they come.
///
/// # Errors
/// Something that all boots need is missing.
pub fn bench(options: &Options, runs: &[Measuring], peers: &Path) -> Result<Vec<Measured>> {
    let prepared = prepare(options)?;
    let programs = options.programs.as_deref().context("benches need programs that were built")?;
    for Measuring { program, .. } in runs {
        stage_program(&programs.join(program), &prepared.stage.path().join(program))?;
    }
    let staged = prepared.stage.path().join("peers");
    fs::create_dir_all(&staged).context("stage the peers")?;
    for entry in fs::read_dir(peers).with_context(|| format!("read {}", peers.display()))? {
        let entry = entry?;
        if entry.path().is_file() && entry.path().extension().is_none() {
            stage_program(&entry.path(), &staged.join(entry.file_name()))?;
        }
    }
    let measured = options.kernels.iter().map(|&kernel| {
        let mut rows = Vec::new();
        let outcome = one(options, &prepared, kernel, runs, &mut rows);
        Measured { kernel, rows, outcome }
    });
    Ok(measured.collect())
}

fn one(
    options: &Options,
    prepared: &Prepared,
    kind: Kind,
    runs: &[Measuring],
    rows: &mut Vec<String>,
) -> Result<()> {
    let kernel = kind.provide()?;
    let mut runs = runs.to_vec();
    for run in &mut runs {
        run.words.extend(["--backend", backend(kind)].map(str::to_owned));
    }
    let profile = Profile::Default;
    let (_dir, files) = files_for(options, prepared, &kernel, profile, Mode::Bench { runs })?;
    let accel = prepared.accel;
    let session =
        Session::boot(&prepared.qemu, &kernel, profile, accel, Console::Log, files.clone());
    let outcome = session.and_then(|mut session| {
        let mut patience = boot_patience(accel);
        loop {
            match session.next(patience)? {
                Message::Log { line, .. } => {
                    say(kind, session.started(), &line);
                    patience = LINE;
                }
                Message::Rows { text } => rows.push(text),
                Message::End => return session.powered_off(Duration::from_secs(60)),
                Message::Broken { reason } => bail!("in the guest: {reason}"),
                other => bail!("the guest sent {other:?}"),
            }
        }
    });
    let logs = options.logs.join(format!("{kind}-bench"));
    fs::create_dir_all(&logs)?;
    // The console is of use most of all when the boot failed.
    let _ = fs::copy(files.console(), logs.join("console.log"));
    let _ = fs::copy(files.qemu_log(), logs.join("qemu.log"));
    outcome
}

fn say(kernel: Kind, started: Instant, line: &str) {
    eprintln!("{kernel} {:>4.0} s: {line}", started.elapsed().as_secs_f64());
}
