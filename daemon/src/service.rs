//! What the API's calls do, behind gRPC and REST alike: authorize, validate, decide, wait, show.

mod adopt;
mod authorize;
mod config;
mod devices;
mod domains;
mod events;
mod find;
mod groups;
mod host;
mod memory;
mod orders;
mod parse;
mod quota;
mod rehearse;
mod request;
mod reservations;
mod reserve;
mod select;
mod served;
mod sriov;
mod tenant;
mod wait;
mod watch;
mod web;
mod what_if;

use std::sync::{Arc, OnceLock};

pub(crate) use authorize::heard;
pub(crate) use parse::is_name;
pub(crate) use served::served;

use berth_host::{BackendKind, Host};
use berth_ownership::{ContextId, DomainId};

use crate::{
    ledger::LedgerHandle,
    model::{ApiError, Call, Caller, ConfigState, DmaLatencies, DomainNow, Live, Snapshot},
    websession::WebSessions,
};

/// Defaults of the calls, from the configuration.
#[derive(Debug, Clone)]
pub struct ServiceConfig {
    /// How long a call waits for kernel work when it doesn't say.
    pub wait_ms: u64,
    /// The longest wait that a call may ask for.
    pub max_wait_ms: u64,
    /// Where the state is, for `capabilities`.
    pub state_dir: String,
    /// What must come of a reset, where the request leaves it open: by class code prefix (`02`,
    /// `0302`), longest first match; then [`Self::reset_default`].
    pub reset_by_class: Vec<(String, berth_ownership::ResetPolicy)>,
    /// Which devices may be given away.
    pub devices: crate::model::DeviceRules,
    /// What must come of a reset for every other class.
    pub reset_default: berth_ownership::ResetPolicy,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            wait_ms: 30_000,
            max_wait_ms: 600_000,
            state_dir: String::new(),
            reset_by_class: Vec::new(),
            devices: crate::model::DeviceRules::default(),
            reset_default: berth_ownership::ResetPolicy::AllowSameLabel,
        }
    }
}

/// What the host offers, asked once: it doesn't change while a kernel runs.
#[derive(Debug)]
struct Offers {
    backends: Vec<BackendKind>,
    kernel_hold: bool,
    memory_bytes: Option<u64>,
}

/// The API's calls: one method each.
#[derive(Debug, Clone)]
pub struct Service {
    ledger: LedgerHandle,
    host: Arc<dyn Host>,
    config: Live<ServiceConfig>,
    in_force: Live<ConfigState>,
    offers: Arc<OnceLock<Offers>>,
    web: Arc<WebSessions>,
}

impl Service {
    /// The service over a ledger and a host.
    #[must_use]
    pub fn new(ledger: LedgerHandle, host: Arc<dyn Host>, config: ServiceConfig) -> Self {
        Self {
            ledger,
            host,
            config: Live::new(config),
            in_force: Live::default(),
            offers: Arc::default(),
            web: Arc::default(),
        }
    }

    /// The same with the sessions of browsers that its daemon has.
    #[must_use]
    pub fn with_web_sessions(self, web: Arc<WebSessions>) -> Self {
        Self { web, ..self }
    }

    /// The sessions of browsers.
    #[must_use]
    pub fn web_sessions(&self) -> &WebSessions {
        &self.web
    }

    /// Defaults of the calls, which may change.
    #[must_use]
    pub fn settings(&self) -> &Live<ServiceConfig> {
        &self.config
    }

    /// What is in force of the configuration.
    #[must_use]
    pub fn in_force(&self) -> &Live<ConfigState> {
        &self.in_force
    }

    /// What is published now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.ledger.snapshot()
    }

    /// What is published now, for a caller who may read it.
    ///
    /// # Errors
    /// The caller may not.
    pub(crate) fn published(&self, caller: &Caller) -> Result<Arc<Snapshot>, ApiError> {
        authorize::require(caller, Call::ReadPublished)?;
        Ok(self.snapshot())
    }

    /// The ledger.
    #[must_use]
    pub fn ledger(&self) -> &LedgerHandle {
        &self.ledger
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &Arc<dyn Host> {
        &self.host
    }

    fn offers(&self) -> &Offers {
        self.offers.get_or_init(|| Offers {
            backends: self.host.backends(),
            kernel_hold: self.host.kernel_hold(),
            memory_bytes: self.host.memory_bytes(),
        })
    }

    /// What the daemon sees of a domain now.
    fn domain_now(&self, domain: &DomainId) -> Option<DomainNow> {
        self.ledger.executor().and_then(|executor| executor.domain(domain))
    }

    /// The domains that the daemon has open, with their contexts and what it sees of them.
    pub(crate) fn open_domains(&self) -> Vec<(DomainId, ContextId, DomainNow)> {
        let snapshot = self.snapshot();
        let domains = snapshot.state.domains();
        let open = domains.filter_map(|record| {
            let now = self.domain_now(&record.id)?;
            Some((record.id.clone(), record.context.clone(), now))
        });
        open.collect()
    }

    /// How long mapping and unmapping client memory took since the start.
    pub(crate) fn dma_latencies(&self) -> Option<DmaLatencies> {
        self.ledger.executor()?.dma_latencies()
    }

    /// Runs something that reads the host, off the runtime's threads.
    async fn on_host<T: Send + 'static>(
        &self,
        what: &'static str,
        read: impl FnOnce(&dyn Host) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let host = Arc::clone(&self.host);
        tokio::task::spawn_blocking(move || read(&*host))
            .await
            .map_err(|error| ApiError::internal(what, format!("{what} ended early: {error}")))
    }
}
