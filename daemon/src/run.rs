//! The daemon's life: open, catch up with the kernel, serve, drain.

use std::{
    fs, io,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use berth_host::Host;
use berth_ownership::{DomainId, Reason, ReservationId, Table};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic_health::server::HealthReporter;

use crate::{
    acts::{Engine, EngineConfig, LedgerRecords},
    config::{Config, Endpoint, Listener, Serve},
    fdstore::{FdStore, KeptFd},
    grpc, handover, heartbeat,
    ledger::{self, LedgerConfig, LedgerHandle, Opened, Survey, Told},
    listen::{self, Behind, BindError, Bound, Meters, Passed, SocketFile},
    model::{
        ApiError, DmaLatencies, DomainNow, Executor, Gone, Intent, Live, Meta, OpenIntent, Snapshot,
    },
    notify, reconcile,
    reload::{self, Dials},
    rest::{self, Front, Metrics},
    service::{Service, ServiceConfig},
    websession::{House, WebSessions},
};

/// The daemon can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory or a file of its own.
    #[error("create {path}: {}; make it writable, or name another with --state-dir",
        error.to_string().to_lowercase())]
    StateDir {
        /// The directory.
        path: String,
        /// What the system says.
        error: io::Error,
    },
    /// A listener.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The ledger, the store or the host.
    #[error("{what}: {error}")]
    Part {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        error: ApiError,
    },
    /// Processes or descriptors.
    #[error("serve the hand-over socket: {0}; see `ulimit -n` and the limit of tasks")]
    Thread(io::Error),
    /// The build is broken.
    #[error("{0}")]
    Build(String),
    /// What the service manager set in the environment.
    #[error("{0}; let a service manager set it, or unset it")]
    Environment(String),
}

/// What a service manager has to do with a daemon.
#[derive(Debug, Default)]
pub struct Manager {
    /// Sockets that it opened.
    pub passed: Vec<Passed>,
    /// Where it keeps descriptors for the next daemon.
    pub store: Option<Arc<dyn FdStore>>,
    /// What it kept of the last one.
    pub kept: Vec<KeptFd>,
}

/// A daemon that runs.
#[derive(Debug)]
pub struct Daemon {
    service: Arc<Service>,
    engine: Arc<Engine>,
    shared: listen::Shared,
    dials: Dials,
    tcp: Vec<SocketAddr>,
    ready: watch::Receiver<bool>,
    health: HealthReporter,
    listeners: JoinSet<()>,
    handover: HandOver,
    /// Leases, looks at the host, heartbeats.
    chores: JoinSet<()>,
    ledger: JoinHandle<()>,
}

/// The engine as the ledger sees it. The engine holds the ledger; held in turn, neither would end.
/// An intent that comes when the engine is gone stays on record for the next start.
#[derive(Debug)]
struct Hands(Weak<Engine>);

impl Executor for Hands {
    fn submit(&self, intent: Intent, snapshot: Arc<Snapshot>) {
        if let Some(engine) = self.0.upgrade() {
            engine.submit(intent, snapshot);
        }
    }

    fn gone(&self, devices: &[Gone]) {
        if let Some(engine) = self.0.upgrade() {
            engine.gone(devices);
        }
    }

    fn domain(&self, domain: &DomainId) -> Option<DomainNow> {
        self.0.upgrade()?.domain(domain)
    }

    fn dma_entries(&self) -> Vec<(ReservationId, u64)> {
        self.0.upgrade().map(|engine| engine.dma_entries()).unwrap_or_default()
    }

    fn dma_latencies(&self) -> Option<DmaLatencies> {
        self.0.upgrade()?.dma_latencies()
    }
}

/// How long stopping waits for the store to be closed.
const CLOSING: Duration = Duration::from_secs(1);

/// How long start-up waits for kernel work that the last daemon left; what takes longer goes on
/// beside.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the last daemon left.
struct Left {
    intents: Vec<OpenIntent>,
    kept: Vec<KeptFd>,
    previous_boot: Option<String>,
}

/// A thread that serves a socket, and the socket's file.
type Served = (handover::Serving, Option<SocketFile>);

type HandOverSocket = (OwnedFd, Option<SocketFile>, handover::House);

/// The hand-over, once it is served.
#[derive(Debug, Clone, Default)]
struct HandOver(Arc<Mutex<Vec<Served>>>);

impl HandOver {
    fn open(&self, sockets: Vec<HandOverSocket>, engine: &Arc<Engine>) -> io::Result<()> {
        for (socket, file, house) in sockets {
            let serving = handover::Serving::start(socket, Engine::clone(engine), house)?;
            self.all().push((serving, file));
        }
        Ok(())
    }

    fn serving(&self) -> Vec<handover::Serving> {
        self.all().iter().map(|(serving, _)| serving.clone()).collect()
    }

    fn close(&self) {
        self.all().clear();
    }

    fn all(&self) -> MutexGuard<'_, Vec<Served>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is bound before anything else, so that a second daemon does no harm.
struct Sockets {
    /// Of gRPC and HTTP.
    doors: Vec<Bound>,
    handover: Vec<HandOverSocket>,
}

impl Daemon {
    /// Starts on a host: binds, restores the record, catches up with the kernel, serves. When it
    /// returns the daemon is ready.
    ///
    /// # Errors
    /// What is in the way, and the way out.
    pub async fn start(config: &Config, host: Arc<dyn Host>) -> Result<Self, StartError> {
        Self::start_in(config, host, Manager::default()).await
    }

    /// The same with what a service manager has to do with this process.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_in(
        config: &Config,
        host: Arc<dyn Host>,
        manager: Manager,
    ) -> Result<Self, StartError> {
        let rules = &config.condition;
        let table = Table::standard().with_conditions(rules.refuse_degraded, rules.refuse_failed);
        Self::start_with(config, host, manager, table).await
    }

    /// The same on sockets that were passed to this process, under a table of decisions that tests
    /// may flip a cell of.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_on(
        config: &Config,
        host: Arc<dyn Host>,
        passed: Vec<Passed>,
        table: Table,
    ) -> Result<Self, StartError> {
        Self::start_with(config, host, Manager { passed, ..Manager::default() }, table).await
    }

    async fn start_with(
        config: &Config,
        host: Arc<dyn Host>,
        manager: Manager,
        table: Table,
    ) -> Result<Self, StartError> {
        let Manager { passed, store, kept } = manager;
        let watchdog = notify::watchdog_period().map_err(StartError::Environment)?;
        create_state_dir(config)?;
        let shared = shared(config);
        let mut sockets = bind(config, passed, &shared).await?;
        // Before the first look, so that what happens after it is told.
        let told = Told::of(&*host);
        let (opened, survey) = open_ledger(config, &host, table).await?;
        let Opened { ledger, intents, previous_boot, task } = opened;
        let records = Arc::new(LedgerRecords::new(ledger.clone()));
        let engine =
            Arc::new(Engine::with_store(Arc::clone(&host), records, &engine_config(config), store));
        let service = service(config, &ledger, &host, &shared);
        let (now_ready, ready) = watch::channel(false);
        let front = front(config, &service, &shared, ready.clone());
        let http = rest::behind(&front).map_err(StartError::Build)?;
        let (grpc, health) =
            grpc::router(&front).await.map_err(|error| StartError::Build(error.to_string()))?;
        let doors = std::mem::take(&mut sockets.doors);
        let tcp = doors.iter().filter_map(Bound::tcp_address).collect();
        shared.web.serve(web_house(&doors, &shared));
        let rules = doors.iter().map(Bound::rules).chain(sockets.handover.iter().map(rules_of));
        let dials = Dials::new(config, &shared, &service, rules.collect());
        let mut listeners = Listeners { tasks: JoinSet::new(), grpc: grpc.into(), http };
        // Who comes to a socket that was passed waits in it for the daemon to be ready; with ours he
        // is told that it isn't.
        let (later, now): (Vec<_>, _) = doors.into_iter().partition(Bound::was_passed);
        listeners.open(now, &shared);
        let first = previous_boot.is_none();
        let left = Left { intents, kept, previous_boot };
        let late = match ledger.observe_survey(survey, Meta::internal("start")).await {
            Ok(_) => {
                catch_up(&engine, &ledger, left).await?;
                None
            }
            // What is on record is read meanwhile, and nothing is touched.
            Err(error) if error.reason() == Reason::StateUnwritable => Some(left),
            Err(error) => return Err(not_caught_up(error)),
        };
        // Nobody held it until now, so it can't fail.
        let _ = now_ready.send(true);
        grpc::set_serving(&health, true).await;
        listeners.open(later, &shared);
        let handover = HandOver::default();
        // Whoever comes to it meanwhile waits in its queue.
        let after = late.map(|left| (left, std::mem::take(&mut sockets.handover)));
        handover.open(sockets.handover, &engine).map_err(StartError::Thread)?;
        let serving = handover.serving();
        let heart = watchdog.map(|period| {
            let parts = heartbeat::parts(ledger.clone(), &engine, serving);
            heartbeat::feed_watchdog(parts, period)
        });
        let mut chores = chores(config, ledger.clone(), &engine, told, heart);
        chores.spawn(tell_manager(ledger.clone()));
        chores.spawn(ledger.clone().watch_condition(config.condition, first));
        if let Some((left, sockets)) = after {
            let (engine, handover) = (Arc::clone(&engine), handover.clone());
            chores.spawn(catch_up_later(engine, ledger, left, move |engine: &Arc<Engine>| {
                handover.open(sockets, engine)
            }));
        }
        Ok(Self {
            service,
            engine,
            shared,
            dials,
            tcp,
            ready,
            health,
            listeners: listeners.tasks,
            handover,
            chores,
            ledger: task,
        })
    }

    /// The API's calls.
    #[must_use]
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// What another configuration turns.
    #[must_use]
    pub fn dials(&self) -> &Dials {
        &self.dials
    }

    /// The engine that does the kernel work.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Where HTTP is really served, with the ports that the system chose.
    #[must_use]
    pub fn tcp_addresses(&self) -> &[SocketAddr] {
        &self.tcp
    }

    /// Whether the daemon serves.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Drains: accepts nothing more, lets running requests and kernel work end, and stops.
    pub async fn stop(mut self) {
        let patience = Duration::from_millis(self.shared.timeouts.get().drain_ms);
        grpc::set_serving(&self.health, false).await;
        self.shared.stopping.cancel();
        self.service.ledger().end_following();
        self.shared.connections.close();
        while self.listeners.join_next().await.is_some() {}
        if timeout(patience, self.shared.connections.wait()).await.is_err() {
            tracing::warn!("requests were cut off; what they recorded goes on at the next start");
        }
        self.chores.shutdown().await;
        self.handover.close();
        let engine = Arc::clone(&self.engine);
        let closed = tokio::task::spawn_blocking(move || engine.close(patience)).await;
        if !closed.unwrap_or(false) {
            tracing::warn!("kernel work is still under way; it is seen to at the next start");
        }
        drop(self.engine);
        drop((self.service, self.dials));
        // All that was answered is committed; what is waited for is the store being closed.
        if timeout(CLOSING, self.ledger).await.is_err() {
            tracing::debug!("the store is closed by the end of the process");
        }
    }
}

/// The API's calls.
fn service(
    config: &Config,
    ledger: &LedgerHandle,
    host: &Arc<dyn Host>,
    shared: &listen::Shared,
) -> Arc<Service> {
    let service = Service::new(ledger.clone(), Arc::clone(host), service_config(config));
    Arc::new(service.with_web_sessions(Arc::clone(&shared.web)))
}

/// What sessions of browsers have to know of the daemon.
fn web_house(doors: &[Bound], shared: &listen::Shared) -> House {
    House {
        pages: doors.iter().filter_map(Bound::page_address).collect(),
        rules: doors.iter().map(Bound::rules).map(|(_, at, access)| (at, access)).collect(),
        asks_for_groups: shared.asks_for_groups.clone(),
    }
}

/// What all listeners share.
fn shared(config: &Config) -> listen::Shared {
    listen::Shared {
        metrics: Arc::new(Metrics::default()),
        limits: Live::new(config.limits),
        timeouts: Live::new(config.timeouts),
        meters: Arc::new(Meters::new(config.rates.clone())),
        web: Arc::new(WebSessions::new(config.web)),
        doors: Arc::default(),
        rules: watch::Sender::new(()),
        asks_for_groups: Live::new(reload::asks_for_groups(config)),
        stopping: CancellationToken::new(),
        connections: TaskTracker::new(),
    }
}

/// What is behind them.
fn front(
    config: &Config,
    service: &Arc<Service>,
    shared: &listen::Shared,
    ready: watch::Receiver<bool>,
) -> Arc<Front> {
    Arc::new(Front {
        service: Arc::clone(service),
        metrics: Arc::clone(&shared.metrics),
        ready,
        stopping: shared.stopping.clone(),
        watchers: Arc::default(),
        limits: shared.limits.clone(),
        timeouts: shared.timeouts.clone(),
        meters: Arc::clone(&shared.meters),
        doors: Arc::clone(&shared.doors),
        body_bytes: config.limits.body_bytes,
    })
}

/// The listeners that are served, and what is behind them.
struct Listeners {
    tasks: JoinSet<()>,
    grpc: Behind,
    http: Behind,
}

impl Listeners {
    fn open(&mut self, doors: Vec<Bound>, shared: &listen::Shared) {
        for bound in doors {
            let behind = if bound.speaks() == Serve::Grpc { &self.grpc } else { &self.http };
            self.tasks.spawn(bound.serve(behind.clone(), shared.clone()));
        }
    }
}

/// Makes the directories that the daemon needs, which it can't once it is confined.
///
/// # Errors
/// As [`Daemon::start`].
pub fn make_directories(config: &Config) -> Result<(), StartError> {
    create_state_dir(config)?;
    for listener in &config.listen {
        if let Endpoint::Unix { path, .. } = &listener.endpoint {
            // Who binds there says what is in the way; a default one may not be bound at all.
            let _ = listen::make_directory(path);
        }
    }
    Ok(())
}

fn create_state_dir(config: &Config) -> Result<(), StartError> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(&config.state_dir).map_err(|error| StartError::StateDir {
        path: config.state_dir.display().to_string(),
        error,
    })
}

/// Listens where the configuration says, with the sockets that were passed where there are any.
async fn bind(
    config: &Config,
    passed: Vec<Passed>,
    shared: &listen::Shared,
) -> Result<Sockets, StartError> {
    let mut sockets = Sockets { doors: Vec::new(), handover: Vec::new() };
    for (listener, socket) in listen::assign(&config.listen, passed)? {
        let passed = socket.is_some();
        match (listener.serve, socket, &listener.endpoint) {
            (Serve::Handover, Some(socket), _) => {
                sockets.handover.push((socket, None, house(&listener, shared)));
            }
            (Serve::Handover, None, Endpoint::Unix { path, mode, gid }) => {
                let kind = listen::Kind::Packets;
                let (socket, file) = listen::bind_unix(path, *mode, *gid, kind)?;
                sockets.handover.push((socket, Some(file), house(&listener, shared)));
            }
            (Serve::Handover, None, Endpoint::Tcp { address, .. }) => {
                return Err(StartError::Build(format!("no hand-over over TCP at {address}")));
            }
            (_, Some(socket), _) => sockets.doors.push(Bound::adopt(&listener, socket)?),
            (_, None, _) => sockets.doors.push(Bound::bind(&listener).await?),
        }
        tracing::info!(serve = listener.serve.word(), at = %listener.endpoint, passed, "listening");
    }
    Ok(sockets)
}

/// What is asked of those who come to a hand-over socket.
fn house(listener: &Listener, shared: &listen::Shared) -> handover::House {
    let at = listener.endpoint.to_string();
    handover::House {
        seats: shared.doors.seats(Serve::Handover, &at),
        at: at.into(),
        access: Live::new(listener.access.clone()),
        limits: shared.limits.clone(),
    }
}

fn rules_of((_, _, house): &HandOverSocket) -> reload::Rules {
    (Serve::Handover, house.at.to_string(), house.access.clone())
}

/// Reads the record and, beside that, looks at the machine: neither needs the other. The directory
/// is taken before, so that no other daemon changes the machine meanwhile.
async fn open_ledger(
    config: &Config,
    host: &Arc<dyn Host>,
    table: Table,
) -> Result<(Opened, Survey), StartError> {
    let failed = |error| StartError::Part { what: "open the ledger", error };
    let mut settings = LedgerConfig { table, ..LedgerConfig::new(&config.state_dir) };
    settings.retain_events = config.retention.events;
    settings.queue = config.limits.waiting_commands;
    settings.quotas = Live::new(config.quotas.clone());
    let locked = ledger::lock(&settings).map_err(failed)?;
    let looked_at = Arc::clone(host);
    let survey = tokio::task::spawn_blocking(move || {
        let survey = ledger::survey(&*looked_at);
        // The look at reservations needs to know; the host remembers what it was asked.
        looked_at.kernel_hold();
        survey
    });
    let opened = ledger::open_locked(locked, settings, Arc::clone(host)).await.map_err(failed)?;
    Ok((opened, survey))
}

fn not_caught_up(error: ApiError) -> StartError {
    StartError::Part { what: "catch up with the kernel", error }
}

/// Settles what the last daemon left, now that the machine is recorded.
async fn catch_up(
    engine: &Arc<Engine>,
    ledger: &LedgerHandle,
    Left { intents, kept, previous_boot }: Left,
) -> Result<(), StartError> {
    ledger.set_executor(Arc::new(Hands(Arc::downgrade(engine)))).map_err(not_caught_up)?;
    let engine = Arc::clone(engine);
    tokio::task::spawn_blocking(move || {
        reconcile::run_with(&engine, intents, previous_boot.as_deref(), PATIENCE, kept);
    })
    .await
    .map_err(|error| not_caught_up(ApiError::internal("reconcile", error.to_string())))
}

/// The same once the state can be written; then the hand-over is opened.
async fn catch_up_later(
    engine: Arc<Engine>,
    ledger: LedgerHandle,
    left: Left,
    open: impl FnOnce(&Arc<Engine>) -> io::Result<()>,
) {
    loop {
        let mut health = ledger.watch_degraded();
        if health.wait_for(Option::is_none).await.is_err() {
            return;
        }
        match ledger.rescan(Meta::internal("start")).await {
            Ok(_) => break,
            Err(error) => tracing::warn!(%error, "catching up with the kernel waits"),
        }
        tokio::time::sleep(CLOSING).await;
    }
    if let Err(error) = catch_up(&engine, &ledger, left).await {
        tracing::error!(%error, "the record is behind the kernel: restart berthd");
        return;
    }
    if let Err(error) = open(&engine) {
        tracing::error!(%error, "nothing is handed over: restart berthd");
    }
}

/// Tells the service manager whenever the state can't be written, and when it can be again.
async fn tell_manager(ledger: LedgerHandle) {
    let mut health = ledger.watch_degraded();
    let mut said = false;
    loop {
        let degraded = health.borrow_and_update().clone();
        if degraded.is_some() || said {
            let line = degraded.map_or_else(|| "ready".to_owned(), |degraded| degraded.line());
            let told = tokio::task::spawn_blocking(move || {
                notify::service_manager(&[&format!("STATUS={line}")])
            });
            if let Ok(Err(error)) = told.await {
                tracing::warn!(%error, "the service manager was not told");
            }
            said = true;
        }
        if health.changed().await.is_err() {
            return;
        }
    }
}

/// What is done again and again beside requests.
fn chores(
    config: &Config,
    ledger: LedgerHandle,
    engine: &Engine,
    told: Option<Told>,
    heart: Option<impl Future<Output = ()> + Send + 'static>,
) -> JoinSet<()> {
    let every = Duration::from_millis(config.timeouts.rescan_ms);
    let mut chores = JoinSet::new();
    if let Some(beat) = heart {
        chores.spawn(beat);
    }
    chores.spawn(ledger.clone().follow_host(every, told));
    chores.spawn(engine.clone().watch_removals());
    chores.spawn(ledger.expire_leases());
    chores
}

/// An intent is several acts: it counts as wedged later than one of them.
fn engine_config(config: &Config) -> EngineConfig {
    let acts = Duration::from_millis(config.timeouts.act_ms.saturating_mul(3));
    EngineConfig { deadline: acts.max(EngineConfig::default().deadline) }
}

pub(crate) fn service_config(config: &Config) -> ServiceConfig {
    let mut settings = ServiceConfig {
        wait_ms: config.timeouts.wait_ms,
        state_dir: config.state_dir.display().to_string(),
        devices: config.devices.clone(),
        ..ServiceConfig::default()
    };
    for rule in &config.reset {
        match &rule.class {
            Some(prefix) => settings.reset_by_class.push((prefix.clone(), rule.policy)),
            None => settings.reset_default = rule.policy,
        }
    }
    settings
}
