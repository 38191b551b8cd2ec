//! What is tested on the real kernel.
//!
//! # Adding a scenario
//!
//! 1. Write `fn my_thing(ctx: &mut Ctx) -> Result<Outcome>` in the file of its topic, or in a new
//!    file with `pub(super) const SCENARIOS: &[Scenario]`, which is then named in `TOPICS`.
//! 2. Add `Scenario::new("topic_my_thing", &[Capability::Iommufd], my_thing)` to that list. What it
//!    needs is named there, not asked for inside: then a lack of it is a named skip.
//! 3. `cargo xtask vm topic_my_thing`.
//!
//! A scenario is decided by what the kernel and the device show: bytes that were moved, a link in
//! sysfs, the errno of an independent [`probe`](crate::guest::probe), a DMA fault line
//! ([`Kmsg`](crate::guest::kmsg::Kmsg)); never by what `berthd` says of itself. Devices are named by
//! the constants of [`topology`](crate::topology). Each scenario runs in a process of its own; what
//! it leaves running is killed, and a device it leaves on another driver than before makes it fail.

mod berthd_adopt;
mod berthd_alive;
mod berthd_condition;
mod berthd_crash;
mod berthd_daemonize;
mod berthd_dry_run;
mod berthd_exclusive;
mod berthd_group;
mod berthd_handed;
mod berthd_held;
mod berthd_host_use;
mod berthd_hotplug;
mod berthd_in_flight;
mod berthd_injected;
mod berthd_kubelet;
mod berthd_labels;
mod berthd_leaks;
mod berthd_libvirt;
mod berthd_lives_on;
mod berthd_memlock;
mod berthd_private;
mod berthd_regions;
mod berthd_regroup;
mod berthd_revoke;
mod berthd_run;
mod berthd_run_restarts;
mod berthd_seen;
mod berthd_shared;
mod berthd_sriov;
mod berthd_tools;
mod berthd_vf_token;
mod berthd_wedged;
mod berthd_what_if;
mod conformance;
mod daemon;
mod dma;
mod dma_kinds;
mod dma_large;
mod dma_model;
mod dma_nvme;
mod dma_random;
mod host;
mod host_handed;
mod raw;
mod systemd;
mod systemd_failures;
mod systemd_helper;
mod systemd_package;
mod systemd_store;
mod topology;
mod uapi;
mod uapi_vf_token;

use crate::guest::Scenario;

/// One list per topic, in the order in which they run.
const TOPICS: &[&[Scenario]] = &[
    topology::SCENARIOS,
    daemon::SCENARIOS,
    raw::SCENARIOS,
    uapi::SCENARIOS,
    uapi_vf_token::SCENARIOS,
    dma::SCENARIOS,
    dma_kinds::SCENARIOS,
    dma_large::SCENARIOS,
    dma_model::SCENARIOS,
    dma_nvme::SCENARIOS,
    dma_random::SCENARIOS,
    host::SCENARIOS,
    host_handed::SCENARIOS,
    conformance::SCENARIOS,
    berthd_exclusive::SCENARIOS,
    berthd_shared::SCENARIOS,
    berthd_sriov::SCENARIOS,
    berthd_vf_token::SCENARIOS,
    berthd_group::SCENARIOS,
    berthd_host_use::SCENARIOS,
    berthd_dry_run::SCENARIOS,
    berthd_hotplug::SCENARIOS,
    berthd_private::SCENARIOS,
    berthd_held::SCENARIOS,
    berthd_handed::SCENARIOS,
    berthd_adopt::SCENARIOS,
    berthd_in_flight::SCENARIOS,
    berthd_alive::SCENARIOS,
    berthd_lives_on::SCENARIOS,
    berthd_wedged::SCENARIOS,
    berthd_revoke::SCENARIOS,
    berthd_labels::SCENARIOS,
    berthd_memlock::SCENARIOS,
    berthd_regions::SCENARIOS,
    berthd_regroup::SCENARIOS,
    berthd_run::SCENARIOS,
    berthd_libvirt::SCENARIOS,
    berthd_run_restarts::SCENARIOS,
    berthd_daemonize::SCENARIOS,
    berthd_crash::SCENARIOS,
    berthd_injected::SCENARIOS,
    berthd_leaks::SCENARIOS,
    berthd_condition::SCENARIOS,
    berthd_kubelet::SCENARIOS,
    berthd_what_if::SCENARIOS,
    // The first there: it looks for a machine without Berth, and leaves one.
    systemd_package::SCENARIOS,
    systemd::SCENARIOS,
    systemd_helper::SCENARIOS,
    systemd_failures::SCENARIOS,
    systemd_store::SCENARIOS,
];

/// Every scenario.
#[must_use]
pub fn all() -> Vec<&'static Scenario> {
    TOPICS.iter().copied().flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_fit_for_file_names() {
        let mut seen = HashSet::new();
        for scenario in super::all() {
            assert!(seen.insert(scenario.name), "{} is there twice", scenario.name);
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(scenario.name.chars().all(plain), "{}", scenario.name);
        }
    }
}
