//! Another configuration, while the plugin runs.

use super::Config;

impl Config {
    /// What is in force after `new` was read: all of it but what needs a restart, which is named.
    #[must_use]
    pub fn reloaded(&self, new: Self) -> (Self, Vec<&'static str>) {
        let mut next = new;
        let mut restart = Vec::new();
        let mut keep = |key, now: &std::path::PathBuf, next: &mut std::path::PathBuf| {
            if now != next {
                next.clone_from(now);
                restart.push(key);
            }
        };
        keep("berthd", &self.berthd, &mut next.berthd);
        keep("handover", &self.handover, &mut next.handover);
        keep("kubelet_dir", &self.device_plugins, &mut next.device_plugins);
        next.pod_resources.clone_from(&self.pod_resources);
        keep("cdi_dir", &self.cdi_dir, &mut next.cdi_dir);
        keep("socket_dir", &self.socket_dir, &mut next.socket_dir);
        keep("state_dir", &self.state_dir, &mut next.state_dir);
        keep("cgroup_root", &self.cgroup_root, &mut next.cgroup_root);
        (next, restart)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Config {
        Config::parse(std::path::Path::new("p.toml"), text).unwrap()
    }

    #[test]
    fn what_needs_a_restart_stays_and_is_named() {
        let now = parse("[[resource]]\nname = \"a.b/c\"\n");
        let new = "kubelet_dir = \"/k\"\nstate_dir = \"/s\"\nsettle_ms = 200\n\
                   [[resource]]\nname = \"a.b/d\"\n";
        let (next, restart) = now.reloaded(parse(new));
        assert_eq!(restart, ["kubelet_dir", "state_dir"]);
        assert_eq!((&next.state_dir, &next.pod_resources), (&now.state_dir, &now.pod_resources));
        assert_eq!((next.settle_ms, next.resources[0].name.as_str()), (200, "a.b/d"));
    }
}
