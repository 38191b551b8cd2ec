//! A container that only has the environment that the kubelet gives it.

use std::{
    process::{Child, Command},
    time::{Duration, Instant},
};

use berth_kubelet_double::PATIENCE;
use berth_kubelet_plugin::api::v1beta1 as api;

/// Ends with the value.
pub(crate) struct Container(Child);

impl Container {
    /// Comes back once `/proc` shows its environment: the kernel tells who spawned it of the exec
    /// before that.
    pub(crate) fn start(answer: &api::ContainerAllocateResponse) -> Self {
        let child = Command::new("sleep").arg("600").envs(&answer.envs).spawn().unwrap();
        let (environ, begin) = (format!("/proc/{}/environ", child.id()), Instant::now());
        while std::fs::read(&environ).unwrap().is_empty() {
            assert!(begin.elapsed() < PATIENCE, "{environ} stays empty");
            std::thread::sleep(Duration::from_millis(1));
        }
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
