//! A whole run: programs built and staged, each kernel and machine booted once, results collected.

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    initramfs,
    kernel::{Kernel, Kind},
    machine::{Accel, Console, RunFiles},
    packages::{self, Tool},
    report::{Line, Report},
    root,
    session::Session,
    side_by_side, tracer,
};
use crate::wire::{GuestConfig, Message, Mode, Profile, Verdict};

/// Programs that the guest gets when they were built: name and package.
pub(super) const PROGRAMS: &[(&str, &str)] = &[
    ("berth-testvm-guest", "berth-testvm"),
    ("berthd", "berthd"),
    ("berth-helper", "berth-helper"),
    ("berth", "berth"),
    ("berth-kubelet-plugin", "berth-kubelet-plugin"),
    ("berth-kubelet-double", "berth-kubelet-double"),
];

/// Writes packages of the programs in the first directory to the second.
pub type MakePackages = fn(&Path, &Path) -> Result<()>;

/// The example of `berthd` that is the release after this one.
pub const NEXT_RELEASE: &str = "next_release";

/// What to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The workspace.
    pub root: PathBuf,
    /// Cargo's target directory.
    pub target: PathBuf,
    /// Where each kernel and machine has a directory of logs.
    pub logs: PathBuf,
    /// Parts of the scenarios' names, with commas between; empty for all.
    pub filter: String,
    /// The kernels.
    pub kernels: Vec<Kind>,
    /// The machines.
    pub profiles: Vec<Profile>,
    /// Where the programs are; without it they are built.
    pub programs: Option<PathBuf>,
    /// Makes packages of the programs in a directory, for the machine with systemd.
    pub packages: Option<MakePackages>,
    /// Whether scenarios should also do what takes long.
    pub long: bool,
    /// Whether skips of what a kernel should have are failures.
    pub strict: bool,
}

/// Everything that is the same for all boots of a run.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) qemu: PathBuf,
    takes_descriptors: bool,
    init: PathBuf,
    /// The programs of the guest.
    pub(super) stage: tempfile::TempDir,
    pub(super) accel: Accel,
    /// For machines that have a root of their own: that of each kernel, or why there is none.
    roots: Vec<(Kind, Result<PathBuf, String>)>,
}

/// Runs the matching scenarios on every kernel and machine, as many guests at a time as the host has
/// processors and memory for.
///
/// # Errors
/// Something that all boots need is missing. Failures of one machine are lines of the report.
pub fn scenarios(options: &Options) -> Result<Report> {
    let prepared = prepare(options)?;
    let kernels: Vec<Kernel> =
        options.kernels.iter().map(|kind| kind.provide()).collect::<Result<_>>()?;
    let machines: Vec<(&Kernel, Profile)> = options
        .profiles
        .iter()
        .flat_map(|&profile| kernels.iter().map(move |kernel| (kernel, profile)))
        .collect();
    let lines = side_by_side::each(&machines, |&(kernel, profile)| {
        let mut lines = Vec::new();
        if let Err(error) = one_boot(options, &prepared, kernel, profile, &mut lines) {
            let verdict = Verdict::Fail { reason: format!("{error:#}") };
            let name = "boot".to_owned();
            lines.push(Line { kernel: kernel.kind, profile, name, verdict, seconds: 0.0 });
        }
        lines
    });
    let mut report = Report { lines: lines.into_iter().flatten().collect() };
    if options.strict {
        report.make_strict();
    }
    Ok(report)
}

/// Gives a shell in the guest, on this terminal. `raw` is called when everything was built and the
/// guest is about to start; what it gives is dropped when the guest has ended.
///
/// # Errors
/// The guest can't be started.
pub fn shell<T>(
    options: &Options,
    term: &str,
    rows: u16,
    columns: u16,
    raw: impl FnOnce() -> T,
) -> Result<()> {
    let prepared = prepare(options)?;
    let kind = *options.kernels.first().context("no kernel was chosen")?;
    let profile = *options.profiles.first().context("no profile was chosen")?;
    let kernel = kind.provide()?;
    let mode = Mode::Shell { term: term.to_owned(), rows, columns };
    let (_dir, files) = files_for(options, &prepared, &kernel, profile, mode)?;
    let _raw = raw();
    let mut session =
        Session::boot(&prepared.qemu, &kernel, profile, prepared.accel, Console::Terminal, files)?;
    session.wait()
}

pub(super) fn prepare(options: &Options) -> Result<Prepared> {
    let accel = Accel::choose()?;
    let qemu = packages::ensure_qemu()?;
    let takes_descriptors = packages::takes_descriptors(&qemu)?;
    // The guest has the host's programs. Without one of these, or without the tracer below, a scenario
    // is a named skip.
    for (package, proof) in [("strace", "strace"), ("iproute2", "vdpa")] {
        if let Err(error) = packages::ensure(&[Tool { package, proof }]) {
            eprintln!("{error:#}");
        }
    }
    let init = build_init(options)?;
    let vm = options.target.join("vm");
    let stage = own_dir(&vm, "stage-")?;
    let source = match &options.programs {
        Some(dir) => dir.clone(),
        None => {
            build_programs(&options.root)?;
            options.target.join("debug")
        }
    };
    for (name, _) in PROGRAMS {
        stage_program(&source.join(name), &stage.path().join(name))?;
    }
    if !stage.path().join("berth-testvm-guest").exists() {
        bail!("there is no berth-testvm-guest in {}", source.display());
    }
    if let Err(error) = tracer::stage(&options.root, stage.path()) {
        eprintln!("{error:#}");
    }
    stage_deploy(&options.root.join("deploy"), &stage.path().join("deploy"))?;
    // The guest's unprivileged processes reach the programs through the 9p share, as themselves.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(stage.path(), open)?;
    stage_packages(options, &source, stage.path());
    let own_root = options.profiles.contains(&Profile::Systemd);
    // Without it the other machines go on.
    let provide = |kind| (kind, root::provide(kind).map_err(|error| format!("{error:#}")));
    let kernels = options.kernels.iter().filter(|_| own_root);
    let roots = kernels.map(|&kind| provide(kind)).collect();
    Ok(Prepared { qemu, takes_descriptors, init, stage, accel, roots })
}

/// A directory with our process id in its name, removed when dropped; those of processes that were
/// killed before they could remove theirs go now.
fn own_dir(parent: &Path, prefix: &str) -> Result<tempfile::TempDir> {
    for entry in fs::read_dir(parent)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(prefix).and_then(|rest| rest.split('-').next());
        let Some(pid) = pid.and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            // Somebody else may be removing it too, or may own it.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("{prefix}{}-", std::process::id());
    tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(parent)
        .with_context(|| format!("make a directory in {}", parent.display()))
}

/// Keeps a program as it is now, though cargo may write it anew while the guest runs.
pub(super) fn stage_program(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(drop))
        .with_context(|| format!("stage {}", from.display()))
}

/// Without them a scenario is a named skip.
fn stage_packages(options: &Options, programs: &Path, stage: &Path) {
    let Some(make) = options.packages.filter(|_| options.profiles.contains(&Profile::Systemd))
    else {
        return;
    };
    if let Err(error) = make(programs, &stage.join("packages")) {
        eprintln!("no packages: {error:#}");
    }
}

/// Keeps what is installed beside the programs.
fn stage_deploy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let entries = fs::read_dir(from).with_context(|| format!("read {}", from.display()))?;
    for entry in entries.flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            stage_deploy(&path, &target)?;
        } else {
            fs::copy(&path, &target).with_context(|| format!("stage {}", path.display()))?;
        }
    }
    Ok(())
}

/// This cargo, in a workspace.
pub fn cargo(root: &Path) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root);
    // What cargo says of this program to it is not for others: some of it makes build scripts run again,
    // and all that is above them be built anew.
    for (name, _) in env::vars_os() {
        let of_this =
            |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|it| name.starts_with(it));
        if name.to_str().is_some_and(of_this) {
            command.env_remove(name);
        }
    }
    command
}

pub(super) fn succeed(mut command: Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed ({status})");
    }
    Ok(())
}

/// The init runs before any file system with libraries is mounted, so it is linked statically; a
/// target directory of its own keeps that flag from invalidating everything else.
fn build_init(options: &Options) -> Result<PathBuf> {
    let target = options.target.join("vm/build");
    fs::create_dir_all(&target)?;
    let mut command = cargo(&options.root);
    command.args(["rustc", "--quiet", "-p", "berth-testvm", "--no-default-features"]);
    command.args(["--bin", "berth-testvm-init", "--target-dir"]).arg(&target);
    command.args(["--", "-C", "target-feature=+crt-static"]);
    succeed(command)?;
    Ok(target.join("debug/berth-testvm-init"))
}

/// Builds what guests get, and the next release of `berthd`, which packages of it are made of: all at
/// once, since what a crate is built with depends on what is built beside it.
///
/// # Errors
/// It doesn't build.
pub fn build_programs(root: &Path) -> Result<()> {
    let mut command = cargo(root);
    command.args(["build", "--quiet", "--example", NEXT_RELEASE]);
    for (name, package) in PROGRAMS {
        command.args(["-p", package, "--bin", name]);
    }
    succeed(command)
}

/// A guest's directory and what it is told.
pub(super) fn files_for(
    options: &Options,
    prepared: &Prepared,
    kernel: &Kernel,
    profile: Profile,
    mode: Mode,
) -> Result<(tempfile::TempDir, RunFiles)> {
    // Under the system's temporary directory: socket paths must stay short.
    let dir = own_dir(&env::temp_dir(), "berth-vm-")?;
    let of_kernel = prepared.roots.iter().find(|(kind, _)| *kind == kernel.kind);
    let root = of_kernel.filter(|_| profile == Profile::Systemd).map(|(_, root)| root.clone());
    let root = root.transpose().map_err(anyhow::Error::msg)?;
    let roomy = matches!(mode, Mode::Bench { .. });
    let files = RunFiles { dir: dir.path().to_owned(), root, roomy };
    let names = kernel.modules.iter().filter_map(|m| Some(m.file_name()?.to_str()?.to_owned()));
    let config = GuestConfig {
        kernel: kernel.kind.to_string(),
        profile,
        mode,
        bin_dir: prepared.stage.path().to_owned(),
        qemu: prepared.takes_descriptors.then(|| prepared.qemu.clone()),
        slow: prepared.accel == Accel::Tcg,
        long: options.long,
        modules: names.collect(),
        env: guest_env(),
    };
    fs::write(files.initramfs(), initramfs::pack(&prepared.init, kernel, &config)?)?;
    Ok((dir, files))
}

/// Variables named `BERTH_GUEST_X` reach the scenarios as `X`.
fn guest_env() -> BTreeMap<String, String> {
    env::vars()
        .filter_map(|(name, value)| Some((name.strip_prefix("BERTH_GUEST_")?.to_owned(), value)))
        .collect()
}

fn one_boot(
    options: &Options,
    prepared: &Prepared,
    kernel: &Kernel,
    profile: Profile,
    lines: &mut Vec<Line>,
) -> Result<()> {
    let mode = Mode::Scenarios { filter: options.filter.clone() };
    let (_dir, files) = files_for(options, prepared, kernel, profile, mode)?;
    let logs = options.logs.join(format!("{}-{profile}", kernel.kind));
    fs::create_dir_all(&logs)?;
    let accel = prepared.accel;
    let session =
        Session::boot(&prepared.qemu, kernel, profile, accel, Console::Log, files.clone());
    let outcome = session.and_then(|mut session| {
        let mut collector = Collector { kernel: kernel.kind, profile, logs: logs.clone(), lines };
        collector.collect(&mut session, accel)?;
        session.powered_off(Duration::from_secs(60))
    });
    // The console is of use most of all when the boot failed.
    let _ = fs::copy(files.console(), logs.join("console.log"));
    let _ = fs::copy(files.qemu_log(), logs.join("qemu.log"));
    outcome
}

/// How long a guest may take until its first word.
pub(super) const fn boot_patience(accel: Accel) -> Duration {
    Duration::from_secs(match accel {
        Accel::Tcg => 400,
        Accel::Kvm => 120,
    })
}

struct Collector<'a> {
    kernel: Kind,
    profile: Profile,
    logs: PathBuf,
    lines: &'a mut Vec<Line>,
}

impl Collector<'_> {
    fn collect(&mut self, session: &mut Session, accel: Accel) -> Result<()> {
        let boot = boot_patience(accel);
        let mut patience = boot;
        let mut log: Option<fs::File> = None;
        let mut running: Option<String> = None;
        loop {
            let message = session.next(patience).with_context(|| match &running {
                Some(name) => format!("while {name} ran"),
                None => "between scenarios".to_owned(),
            })?;
            match message {
                Message::Boot { release, uptime_seconds, capabilities, scenarios } => {
                    let has: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
                    println!(
                        "{}/{} {accel:?}: Linux {release}, first scenario {:.1} s after QEMU's start \
                         ({uptime_seconds:.1} s of the guest); has {}",
                        self.kernel,
                        self.profile,
                        session.started().elapsed().as_secs_f64(),
                        has.join(" ")
                    );
                    if scenarios == 0 {
                        bail!(
                            "no scenario has that name on the machine {}; those about systemd run \
                             on the machine systemd, all others on the others",
                            self.profile
                        );
                    }
                }
                Message::Start { name, timeout_seconds } => {
                    // The guest gives a scenario up by itself; this is for a guest that hangs.
                    patience = Duration::from_secs(timeout_seconds) + boot;
                    log = Some(fs::File::create(self.logs.join(format!("{name}.log")))?);
                    running = Some(name);
                }
                Message::Log { line, .. } => {
                    if let Some(log) = &mut log {
                        writeln!(log, "{line}")?;
                    }
                }
                Message::Done { name, verdict, seconds } => {
                    self.done(name, verdict, seconds);
                    running = None;
                }
                Message::End => return Ok(()),
                Message::Broken { reason } => bail!("the guest's runner failed: {reason}"),
                Message::Rows { .. } => bail!("the guest sent what nobody asked to be measured"),
            }
        }
    }

    fn done(&mut self, name: String, verdict: Verdict, seconds: f64) {
        let line = Line { kernel: self.kernel, profile: self.profile, name, verdict, seconds };
        let mut one = Report { lines: vec![line] };
        print!("{}", one.table());
        self.lines.append(&mut one.lines);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::own_dir;

    #[test]
    fn what_the_dead_left_is_removed_and_what_the_living_use_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let dir = |name: &str| parent.path().join(name);
        // No process has a number above the kernel's limit of 2^22.
        for name in ["x-4294967295-a", "x-1-b", "x-odd", "y-4294967295-c"] {
            fs::create_dir(dir(name)).unwrap();
        }
        let mine = own_dir(parent.path(), "x-").unwrap();
        assert!(!dir("x-4294967295-a").exists());
        assert!(dir("x-1-b").exists() && dir("x-odd").exists() && dir("y-4294967295-c").exists());
        let path = mine.path().to_owned();
        drop(mine);
        assert!(!path.exists());
    }
}
