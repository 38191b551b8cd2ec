//! berthd: the daemon.
#![forbid(unsafe_code)]

use std::{
    io::IsTerminal as _,
    path::Path,
    process::{Command, ExitCode},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use berth_helper::{
    client::{Connected, Deadlines, Forked, Spawned, beside_exe},
    spawner,
};
use berth_host::{
    Host, Privileged,
    linux::{LinuxConfig, LinuxHost},
    sim::{SimHost, Topology},
};
use berthd::{
    config::{Args, Config, Hardening, Helper, HostChoice, SimTopology, Strictness},
    fdstore::{FdStore, KeptFd, SystemdStore, manager},
    hardening,
    listen::{self, Passed},
    notify,
    run::{self, Daemon, Manager},
};
use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some([program, root]) = args.spawn_helpers.as_deref() {
        return spawn_helpers(program, root);
    }
    let config = match Config::load(&args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("berthd: {error}");
            return ExitCode::FAILURE;
        }
    };
    if args.check_config {
        print_config(&config);
        return ExitCode::SUCCESS;
    }
    match run(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berthd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn print_config(config: &Config) {
    match &config.file {
        Some(file) => println!("{}: ok", file.display()),
        None => println!("no configuration file: the defaults are used"),
    }
    println!("state at {}", config.state_dir.display());
    match &config.helper {
        Helper::Socket(path) => println!("helper behind {}", path.display()),
        Helper::Forked(Some(program)) => println!("helper {}", program.display()),
        Helper::Forked(None) => {}
    }
    for listener in &config.listen {
        println!("{} at {}", listener.serve.word(), listener.endpoint);
    }
}

fn run(config: &Config) -> Result<()> {
    // Before anything else is opened.
    let (passed, kept) = listen::passed()?;
    let filter = EnvFilter::try_from_env("BERTH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    run::make_directories(config)?;
    let privileged = match config.host {
        HostChoice::Linux => Some(privileged(config)?),
        HostChoice::Sim(_) => None,
    };
    // Before the first thread, and after the last program that is started.
    if config.hardening != NOT_AT_ALL {
        hardening::enter(config);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("berthd")
        .build()
        .context("start the runtime")?;
    let result = runtime.block_on(serve(config, privileged, passed, kept));
    // Kernel work that hangs must not keep the process from ending.
    runtime.shutdown_background();
    result
}

async fn serve(
    config: &Config,
    privileged: Option<Arc<dyn Privileged>>,
    passed: Vec<Passed>,
    kept: Vec<KeptFd>,
) -> Result<()> {
    // From the first moment on: a signal during start-up ends it cleanly, too.
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let host = host(config, privileged)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        kernel = host.kernel_release(),
        simulated = host.topology(),
        state = %config.state_dir.display(),
        "starting"
    );
    let store = store(&*host);
    let manager = Manager { passed, store, kept };
    let started = tokio::select! {
        daemon = Daemon::start_in(config, host, manager) => Some(daemon?),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    let Some(daemon) = started else {
        tell(&["STOPPING=1"]);
        return Ok(());
    };
    for address in daemon.tcp_addresses() {
        tracing::info!("the page is at http://{address}/");
    }
    tracing::info!("ready");
    tell(&["READY=1"]);
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
    }
    tell(&["STOPPING=1"]);
    daemon.stop().await;
    tracing::info!("stopped");
    Ok(())
}

/// Where descriptors are kept beyond this process. Those of a simulated host stand for nothing
/// without it.
fn store(host: &dyn Host) -> Option<Arc<dyn FdStore>> {
    let store = SystemdStore::of_this_service().filter(|_| !host.simulated());
    let Some(store) = store else {
        tracing::info!(
            "no file descriptor store: what is attached for delivery held ends with this process, \
             and what was handed over is with its holder alone then; run it as a systemd service \
             with FileDescriptorStoreMax= to keep it"
        );
        return None;
    };
    tracing::info!(room = store.room(), "what is open is kept in the file descriptor store");
    Some(Arc::new(store))
}

fn tell(state: &[&str]) {
    if let Err(error) = notify::service_manager(state) {
        tracing::warn!(%error, "the service manager was not told");
    }
}

fn host(config: &Config, privileged: Option<Arc<dyn Privileged>>) -> Result<Arc<dyn Host>> {
    Ok(match &config.host {
        HostChoice::Sim(SimTopology::Builtin(name)) => Arc::new(SimHost::builtin(name)?),
        HostChoice::Sim(SimTopology::File(path)) => {
            Arc::new(SimHost::from_topology(Topology::load(path)?))
        }
        HostChoice::Linux => {
            let root = config.sysfs_root.clone();
            let privileged = privileged.context("nobody does privileged acts")?;
            let host = LinuxHost::new(LinuxConfig { root, privileged });
            match manager().filter(|_| SystemdStore::of_this_service().is_some()) {
                Some(process) => Arc::new(host.kept_by(process)),
                None => Arc::new(host),
            }
        }
    })
}

/// Who does the privileged acts: a helper process for each.
fn privileged(config: &Config) -> Result<Arc<dyn Privileged>> {
    let act_ms = config.timeouts.act_ms;
    let deadlines = Deadlines { bind_ms: act_ms, other_ms: act_ms, ..Deadlines::default() };
    let program = match &config.helper {
        Helper::Socket(path) => {
            tracing::info!(at = %path.display(), "privileged acts are done behind a socket");
            return Ok(Arc::new(Connected::new(path, deadlines)));
        }
        Helper::Forked(Some(program)) => program.clone(),
        Helper::Forked(None) => beside_exe().context(
            "find berth-helper: name it with --helper or `helper` in the file, or start \
             berth-helper.socket",
        )?,
    };
    if config.hardening == NOT_AT_ALL {
        return Ok(Arc::new(Forked::new(program, &config.sysfs_root, deadlines)));
    }
    let exe = std::env::current_exe().context("find berthd's own program")?;
    let mut command = Command::new(exe);
    command.arg("--spawn-helpers").arg(program).arg(&config.sysfs_root);
    let spawned = Spawned::start(command, deadlines).context("start who starts helpers")?;
    Ok(Arc::new(spawned))
}

/// berthd starts its helpers itself, then.
const NOT_AT_ALL: Hardening = Hardening { seccomp: Strictness::Off, landlock: Strictness::Off };

/// Starts helpers for the berthd at the other end of standard input, until that ends.
fn spawn_helpers(program: &Path, root: &Path) -> ExitCode {
    match spawner::run(rustix::stdio::stdin(), program, root) {
        Ok(()) => ExitCode::SUCCESS,
        Err(errno) => {
            eprintln!("berthd --spawn-helpers: {errno}");
            ExitCode::FAILURE
        }
    }
}
