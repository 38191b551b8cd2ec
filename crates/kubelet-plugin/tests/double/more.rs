//! What some tests need beside: other resources, another configuration, the metrics.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use berth_host::sim::{SimHost, Topology};
use rustix::process::{Pid, Signal, kill_process};

use super::Node;

impl Node {
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

    /// As a kubelet starts, first half.
    pub(crate) fn kubelet_goes(&mut self) {
        self.kubelet.go();
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
