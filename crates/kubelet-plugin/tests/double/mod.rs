//! A kubelet's double, and the real daemon on a simulated host.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]
#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod container;
pub(crate) mod more;

use std::{
    collections::BTreeMap,
    ops::Deref,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use berth_host::sim::{SimHost, Topology};
use berth_kubelet_double::{Kubelet, PATIENCE};
#[allow(unused_imports, reason = "each test binary uses a part")]
pub(crate) use berth_kubelet_double::{dial, until};
use berth_kubelet_plugin::{config::Config, run::run};
use berthd::{
    config::{Args, Config as DaemonConfig},
    run::Daemon,
};
use clap::Parser as _;
use tokio::task::JoinHandle;

pub(crate) const RESOURCE: &str = "example.com/edu";

/// The node: daemon, kubelet, plugin.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) sim: Arc<SimHost>,
    daemon: Option<Daemon>,
    kubelet: Kubelet,
    plugin: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Deref for Node {
    type Target = Kubelet;

    fn deref(&self) -> &Kubelet {
        &self.kubelet
    }
}

impl Node {
    /// On the topology `small`, whose edu devices are the resource.
    pub(crate) async fn start() -> Self {
        Self::on("small", "class = \"00\"").await
    }

    pub(crate) async fn on(topology: &str, selector: &str) -> Self {
        let mut node = Self::without_plugin(topology, selector).await;
        node.start_plugin();
        node
    }

    pub(crate) async fn without_plugin(topology: &str, selector: &str) -> Self {
        let sim = SimHost::from_topology(Topology::builtin(topology).unwrap());
        Self::on_host(Arc::new(sim), selector).await
    }

    /// The same on a machine that is there already.
    pub(crate) async fn on_host(sim: Arc<SimHost>, selector: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        std::fs::write(at("berthd.toml"), "").unwrap();
        let backend = if selector.contains("backend") { "" } else { "backend = \"type1\"\n" };
        let text = format!(
            "berthd = {:?}\nhandover = {:?}\nkubelet_dir = {:?}\ncdi_dir = {:?}\n\
             state_dir = {:?}\ncgroup_root = {:?}\nsocket_dir = {:?}\n\
             settle_ms = 400\nrelease_ms = 100\n\
             [[resource]]\nname = \"{RESOURCE}\"\n{backend}{selector}\n",
            at("berthd.sock"),
            at("handover.sock"),
            at("kubelet"),
            at("cdi"),
            at("plugin"),
            at("cgroup"),
            at("sockets"),
        );
        std::fs::write(at("plugin.toml"), text).unwrap();
        let daemon = daemon(dir.path(), &sim).await;
        let kubelet = Kubelet::start(&dir.path().join("kubelet"), RESOURCE);
        Self { dir, sim, daemon: Some(daemon), kubelet, plugin: None }
    }

    pub(crate) fn start_kubelet(&mut self) {
        self.kubelet.restart();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Another `berthd` on the same machine and state.
    pub(crate) async fn restart_daemon(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.stop().await;
        }
        self.daemon = Some(daemon(self.dir.path(), &self.sim).await);
    }

    pub(crate) fn start_plugin(&mut self) {
        let config = Config::load(&self.path("plugin.toml")).unwrap();
        self.plugin = Some(tokio::spawn(run(config)));
    }

    pub(crate) async fn stop_plugin(&mut self) {
        if let Some(plugin) = self.plugin.take() {
            plugin.abort();
            let _ = plugin.await;
        }
    }

    /// The live reservations of `berthd`: (holder, groups).
    pub(crate) async fn reservations(&self) -> Vec<berth_proto::v1::Reservation> {
        let channel = dial(&self.path("berthd.sock"));
        let mut client = berth_proto::v1::reservations_client::ReservationsClient::new(channel);
        let request = berth_proto::v1::ListReservationsRequest {};
        client.list_reservations(request).await.unwrap().into_inner().reservations
    }

    /// The state of the only reservation.
    pub(crate) async fn state(&self) -> berth_proto::v1::reservation::State {
        let held = self.reservations().await;
        assert_eq!(held.len(), 1);
        held[0].state()
    }

    /// The kernel's number of a group.
    pub(crate) async fn group_number(&self, id: &str) -> u32 {
        let channel = dial(&self.path("berthd.sock"));
        let mut client = berth_proto::v1::groups_client::GroupsClient::new(channel);
        let request = berth_proto::v1::GetGroupRequest { group: id.to_owned() };
        client.get_group(request).await.unwrap().into_inner().number
    }

    /// The plugin as a program of its own.
    pub(crate) fn program(&self) -> std::process::Child {
        std::process::Command::new(env!("CARGO_BIN_EXE_berth-kubelet-plugin"))
            .arg("--config")
            .arg(self.path("plugin.toml"))
            .env("BERTH_LOG", "error")
            .spawn()
            .unwrap()
    }

    /// The CDI files by name.
    pub(crate) fn cdi(&self) -> BTreeMap<String, serde_json::Value> {
        let Ok(entries) = std::fs::read_dir(self.path("cdi")) else { return BTreeMap::new() };
        entries
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
            })
            .collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(plugin) = &self.plugin {
            plugin.abort();
        }
    }
}

async fn daemon(dir: &Path, sim: &Arc<SimHost>) -> Daemon {
    let at = |name: &str| dir.join(name).display().to_string();
    let unix = |name: &str| format!("unix:{}", at(name));
    let words = [
        "berthd".to_owned(),
        "--host".to_owned(),
        "sim:small".to_owned(),
        "--config".to_owned(),
        at("berthd.toml"),
        "--state-dir".to_owned(),
        at("state"),
        "--listen-grpc".to_owned(),
        unix("berthd.sock"),
        "--listen-http".to_owned(),
        unix("http.sock"),
        "--listen-handover".to_owned(),
        unix("handover.sock"),
    ];
    let mut config = DaemonConfig::load(&Args::try_parse_from(words).unwrap()).unwrap();
    config.timeouts.drain_ms = 5_000;
    // A call that was cut off as the last one stopped holds the store for as long as it waits.
    let begin = std::time::Instant::now();
    loop {
        match Daemon::start(&config, Arc::clone(sim) as Arc<dyn berth_host::Host>).await {
            Ok(daemon) => return daemon,
            Err(error) => assert!(begin.elapsed() < PATIENCE, "berthd doesn't start: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
