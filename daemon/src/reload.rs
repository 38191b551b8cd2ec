//! Another configuration, while the daemon runs: rules, quotas, rates, limits and defaults count at
//! once. What needs a restart stays as it is, and is named.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    config::{Access, Config, ConfigError, Endpoint, Limits, Listener, Serve},
    listen,
    model::{ConfigState, Live},
    run::service_config,
    service::Service,
};

/// A listener that is served, and its rules.
pub(crate) type Rules = (Serve, String, Live<Access>);

/// All that can be turned while the daemon runs.
#[derive(Debug, Clone)]
pub struct Dials {
    shared: listen::Shared,
    service: Arc<Service>,
    rules: Arc<[Rules]>,
    /// What the daemon was started with; what needs a restart is still so.
    started: Arc<Config>,
    turning: Arc<Mutex<()>>,
}

impl Dials {
    pub(crate) fn new(
        config: &Config,
        shared: &listen::Shared,
        service: &Arc<Service>,
        rules: Vec<Rules>,
    ) -> Self {
        let since_unix_ms = now_unix_ms();
        let file = config.file.clone();
        service.in_force().set(ConfigState { file, since_unix_ms, ..ConfigState::default() });
        Self {
            shared: shared.clone(),
            service: Arc::clone(service),
            rules: rules.into(),
            started: Arc::new(config.clone()),
            turning: Arc::default(),
        }
    }

    /// Puts a configuration in force, as far as that goes without a restart. Gives back what needs
    /// one.
    pub fn turn(&self, config: &Config) -> Vec<String> {
        let _alone = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        let needs_restart = needs_restart(&self.started, config);
        for (serve, at, access) in &*self.rules {
            let same = |it: &&Listener| it.serve == *serve && it.endpoint.to_string() == *at;
            if let Some(listener) = config.listen.iter().find(same) {
                access.set(listener.access.clone());
            }
        }
        self.service.ledger().quotas().set(config.quotas.clone());
        self.shared.meters.set(config.rates.clone());
        self.shared.asks_for_groups.set(asks_for_groups(config));
        self.shared.limits.set(Limits {
            body_bytes: self.started.limits.body_bytes,
            waiting_commands: self.started.limits.waiting_commands,
            ..config.limits
        });
        self.shared.timeouts.set(config.timeouts);
        self.shared.web.settings().set(config.web);
        let state_dir = self.service.settings().get().state_dir.clone();
        let settings = service_config(config);
        self.service.settings().set(crate::service::ServiceConfig { state_dir, ..settings });
        // Last: whoever is connected is looked at by the rules that count now.
        self.shared.rules.send_replace(());
        self.service.in_force().set(ConfigState {
            file: config.file.clone(),
            since_unix_ms: now_unix_ms(),
            refused: None,
            needs_restart: needs_restart.clone(),
        });
        needs_restart
    }

    /// How long things may take, at the listeners.
    #[must_use]
    pub fn timeouts(&self) -> &Live<crate::config::Timeouts> {
        &self.shared.timeouts
    }

    /// A configuration can't be used: the last one stays in force.
    pub fn refuse(&self, error: &ConfigError) {
        let _alone = self.turning.lock().unwrap_or_else(PoisonError::into_inner);
        let before = ConfigState::clone(&self.service.in_force().get());
        let refused = Some((now_unix_ms(), error.to_string()));
        self.service.in_force().set(ConfigState { refused, ..before });
    }
}

/// Whether something beside the listeners' rules is about groups.
pub(crate) fn asks_for_groups(config: &Config) -> bool {
    config.quotas.asks_for_groups() || config.rates.asks_for_groups()
}

/// What one configuration says otherwise than another that only a restart changes.
fn needs_restart(old: &Config, new: &Config) -> Vec<String> {
    let mut found = Vec::new();
    let mut differs = |key: &str, old: String, new: String| {
        if old != new {
            found.push(format!("{key}: {new} (runs with {old})"));
        }
    };
    let debug = |it: &dyn std::fmt::Debug| format!("{it:?}");
    differs("host", debug(&old.host), debug(&new.host));
    differs("sysfs_root", show(&old.sysfs_root), show(&new.sysfs_root));
    differs("state_dir", show(&old.state_dir), show(&new.state_dir));
    differs("helper", debug(&old.helper), debug(&new.helper));
    differs("hardening", debug(&old.hardening), debug(&new.hardening));
    differs("condition", debug(&old.condition), debug(&new.condition));
    for (key, of) in [
        ("timeouts.act_ms", (|it| it.timeouts.act_ms) as fn(&Config) -> u64),
        ("timeouts.rescan_ms", |it| it.timeouts.rescan_ms),
        ("retention.events", |it| it.retention.events),
        ("limits.body_bytes", |it| number(it.limits.body_bytes)),
        ("limits.waiting_commands", |it| number(it.limits.waiting_commands)),
    ] {
        differs(key, of(old).to_string(), of(new).to_string());
    }
    found.extend(moved(&old.listen, &new.listen));
    found
}

/// Listeners that came, went, or are opened otherwise.
fn moved(old: &[Listener], new: &[Listener]) -> Vec<String> {
    let name = |it: &Listener| format!("{} at {}", it.serve.word(), it.endpoint);
    let mut found = Vec::new();
    for listener in new {
        match old.iter().find(|it| name(it) == name(listener)) {
            None => found.push(format!("listen: {} is new", name(listener))),
            Some(before) if before.endpoint != listener.endpoint => {
                let what = match listener.endpoint {
                    Endpoint::Unix { .. } => "mode or group",
                    Endpoint::Tcp { .. } => "hosts or tls",
                };
                found.push(format!("listen: {} has another {what}", name(listener)));
            }
            Some(_) => {}
        }
    }
    let gone = old.iter().filter(|it| !new.iter().any(|listener| name(listener) == name(it)));
    found.extend(gone.map(|it| format!("listen: {} is gone", name(it))));
    found
}

fn show(path: &std::path::Path) -> String {
    path.display().to_string()
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn now_unix_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
