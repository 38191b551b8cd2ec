//! berthd: the daemon.
#![forbid(unsafe_code)]

use std::{
    io::{ErrorKind, IsTerminal as _, Write as _},
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
    fdstore::{FdStore, SystemdStore, manager},
    fdtable, hardening, listen, notify,
    run::{self, Daemon, Manager},
};
use clap::{CommandFactory as _, Parser as _};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{
    EnvFilter, Registry, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// What one thread allocates another mostly frees: what is decided, written and answered.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    if let Some([program, root]) = args.spawn_helpers.as_deref() {
        return spawn_helpers(program, root);
    }
    if let Some(dir) = &args.man {
        return berth_manual::write(Args::command(), dir);
    }
    let config = match Config::load(&args) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("berthd: {error}");
            return ExitCode::FAILURE;
        }
    };
    if args.check_config {
        return match std::io::stdout().write_all(config_text(&config).as_bytes()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                eprintln!("berthd: tell what the configuration comes to: {error}");
                ExitCode::FAILURE
            }
            // Whoever reads no further has what it wanted.
            Ok(()) | Err(_) => ExitCode::SUCCESS,
        };
    }
    match run(&args, &config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berthd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What a configuration comes to.
fn config_text(config: &Config) -> String {
    let mut lines = vec![match &config.file {
        Some(file) => format!("{}: ok", file.display()),
        None => "no configuration file: the defaults are used".to_owned(),
    }];
    lines.push(format!("state at {}", config.state_dir.display()));
    match &config.helper {
        Helper::Socket(path) => lines.push(format!("helper behind {}", path.display())),
        Helper::Forked(Some(program)) => lines.push(format!("helper {}", program.display())),
        Helper::Forked(None) => {}
    }
    let listeners = config.listen.iter();
    lines.extend(listeners.map(|it| format!("{} at {}", it.serve.word(), it.endpoint)));
    lines.push(
        "a reload (SIGHUP) takes all of it but host, sysfs_root, state_dir, helper, helper_socket, \
         path, address, mode, group, hosts and tls of listeners, timeouts.act_ms, \
         timeouts.rescan_ms, retention, condition, hardening, limits.body_bytes and \
         limits.waiting_commands\n"
            .to_owned(),
    );
    lines.join("\n")
}

fn run(args: &Args, config: &Config) -> Result<()> {
    // Before anything else is opened.
    let (passed, kept) = listen::passed()?;
    let (filter, log) = reload::Layer::new(filter_of(config));
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry().with(filter).with(lines).init();
    run::make_directories(config)?;
    let privileged = match config.host {
        HostChoice::Linux => Some(privileged(config)?),
        HostChoice::Sim(_) => None,
    };
    // What follows is slower without, and no more than that.
    if let Err(errno) = fdtable::make_room(std::io::stderr()) {
        tracing::warn!(%errno, "no room is made for open files");
    }
    // Before the first thread, and after the last program that is started.
    if config.hardening != NOT_AT_ALL {
        hardening::enter(config);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("berthd")
        .build()
        .context("start the runtime")?;
    let manager = Manager { passed, kept, store: None };
    let result = runtime.block_on(serve(args, config, privileged, manager, &log));
    // Kernel work that hangs must not keep the process from ending.
    runtime.shutdown_background();
    result
}

/// What the log's filter is turned by.
type Log = reload::Handle<EnvFilter, Registry>;

/// What is logged: as the environment says, else as the file does.
fn filter_of(config: &Config) -> EnvFilter {
    EnvFilter::try_from_env("BERTH_LOG").unwrap_or_else(|_| EnvFilter::new(&config.log))
}

async fn serve(
    args: &Args,
    config: &Config,
    privileged: Option<Arc<dyn Privileged>>,
    manager: Manager,
    log: &Log,
) -> Result<()> {
    // From the first moment on: a signal during start-up ends it cleanly, too.
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    // Else it would end the daemon.
    let mut hangup = signal(SignalKind::hangup()).context("watch for SIGHUP")?;
    let host = host(config, privileged)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        kernel = host.kernel_release(),
        simulated = host.topology(),
        state = %config.state_dir.display(),
        "starting"
    );
    let store = store(&*host);
    let manager = Manager { store, ..manager };
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
    loop {
        tokio::select! {
            _ = terminate.recv() => {
                tracing::info!("SIGTERM: stopping");
                break;
            }
            _ = interrupt.recv() => {
                tracing::info!("SIGINT: stopping");
                break;
            }
            Some(()) = hangup.recv() => load_again(args, &daemon, log),
        }
    }
    tell(&["STOPPING=1"]);
    daemon.stop().await;
    tracing::info!("stopped");
    Ok(())
}

/// SIGHUP: another configuration is put in force, or the last one stays.
fn load_again(args: &Args, daemon: &Daemon, log: &Log) {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let usec = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
    tell(&["RELOADING=1", &format!("MONOTONIC_USEC={usec}")]);
    match Config::load(args) {
        Ok(config) => {
            if let Err(error) = log.reload(filter_of(&config)) {
                tracing::warn!(%error, "the log's filter stays");
            }
            for what in daemon.dials().turn(&config) {
                tracing::warn!("SIGHUP: needs a restart: {what}");
            }
            tracing::info!("SIGHUP: the configuration is in force");
            tell(&["READY=1", "STATUS=ready"]);
        }
        Err(error) => {
            daemon.dials().refuse(&error);
            tracing::error!("SIGHUP: the last configuration stays in force: {error}");
            tell(&["READY=1", &format!("STATUS=the last configuration stays in force: {error}")]);
        }
    }
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
