//! What some tests need beside: other resources, another configuration, the metrics.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use berth_host::sim::{SimHost, Topology};
use berth_kubelet_plugin::api::v1beta1 as api;
use rustix::process::{Pid, Signal, kill_process};

use super::{Node, Plugin, dial};

impl Node {
    /// The kubelet's list of a resource: (id, healthy). None where it was never registered.
    pub(crate) fn list_of(&self, resource: &str) -> Option<Vec<(String, bool)>> {
        let shared = self.shared.lock().unwrap();
        let (list, _) = shared.lists.get(resource)?;
        Some(list.iter().map(|one| (one.id.clone(), one.health == "Healthy")).collect())
    }

    /// The client of a resource's socket.
    pub(crate) fn plugin_of(&self, resource: &str) -> Plugin {
        let name = format!("berth-{}.sock", resource.replace('/', "_"));
        Plugin::new(dial(&self.plugins().join(name)))
    }

    /// PreStartContainer of any resource.
    pub(crate) async fn pre_start_of(&self, resource: &str, ids: &[&str]) -> Result<(), String> {
        let devices_ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let request = api::PreStartContainerRequest { devices_ids };
        let answer = self.plugin_of(resource).pre_start_container(request).await;
        answer.map(drop).map_err(|status| status.message().to_owned())
    }

    /// Changes the plugin's configuration.
    pub(crate) fn edit(&self, from: &str, to: &str) {
        let file = self.path("plugin.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        std::fs::write(file, text.replacen(from, to, 1)).unwrap();
    }

    /// The plugin as a program that logs everything into its pipe.
    pub(crate) fn logging_program(&self) -> Child {
        Command::new(env!("CARGO_BIN_EXE_berth-kubelet-plugin"))
            .arg("--config")
            .arg(self.path("plugin.toml"))
            .env("BERTH_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// The page of the metrics, at `metrics.sock`; empty while nobody serves it.
    pub(crate) fn metrics(&self) -> String {
        let Ok(mut stream) = UnixStream::connect(self.path("metrics.sock")) else {
            return String::new();
        };
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        let mut text = String::new();
        let asked = stream.write_all(request.as_bytes());
        if asked.and_then(|()| stream.read_to_string(&mut text)).is_err() {
            return String::new();
        }
        text
    }

    /// The configuration's line for [`Node::metrics`].
    pub(crate) fn with_metrics(&self) {
        let line = format!("metrics = \"unix:{}\"\nsettle_ms", self.path("metrics.sock").display());
        self.edit("settle_ms", &line);
    }

    /// A node with so many groups of one device.
    pub(crate) async fn large(groups: u32, selector: &str) -> Self {
        let sim = SimHost::from_topology(Topology::generated(groups));
        Self::on_host(Arc::new(sim), selector).await
    }
}

/// Sends SIGHUP.
pub(crate) fn hang_up(program: &Child) {
    kill_process(Pid::from_child(program), Signal::HUP).unwrap();
}

impl Node {
    /// Whether the kubelet lists a device as healthy; none while it doesn't list it.
    pub(crate) fn is_healthy(&self, id: &str) -> Option<bool> {
        let shared = self.shared.lock().unwrap();
        let (list, _) = shared.lists.get(super::RESOURCE)?;
        list.iter().find(|one| one.id == id).map(|one| one.health == "Healthy")
    }

    /// As a kubelet starts, first half: it is away, and every socket in its directory with it.
    pub(crate) fn kubelet_goes(&mut self) {
        self.kubelet.drain(..).for_each(|task| task.abort());
        for (_, (_, follower)) in std::mem::take(&mut self.shared.lock().unwrap().lists) {
            follower.abort();
        }
        for entry in std::fs::read_dir(self.plugins()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "sock") {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
}
