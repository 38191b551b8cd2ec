//! A thousand groups: how soon the kubelet hears of an event, and what the plugin keeps in memory.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod double;

use std::{
    fs,
    time::{Duration, Instant},
};

use berth_proto::v1::{
    self, device_address::Kind, devices_client::DevicesClient, groups_client::GroupsClient,
};
use double::{Node, dial, until};

const GROUPS: u32 = 1_000;
const EVENTS: usize = 20;
/// Far more than it takes: a list that is made of the square of the groups is found, a busy machine
/// is not.
const MOST: Duration = Duration::from_secs(5);
const MOST_MIB: u64 = 96;

fn resident_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_groups_are_listed_soon_after_each_event_and_cost_little_memory() {
    let node = Node::large(GROUPS, "take_from_host = true").await;
    node.with_metrics();
    let began = Instant::now();
    let mut program = node.program();
    let ids = node.healthy(usize::try_from(GROUPS).unwrap()).await;
    let first = began.elapsed();
    let mut devices = DevicesClient::new(dial(&node.path("berthd.sock")));
    let mut groups = GroupsClient::new(dial(&node.path("berthd.sock")));
    let mut took = Vec::new();
    for id in ids.iter().step_by(ids.len() / EVENTS).take(EVENTS) {
        let request = v1::GetGroupRequest { group: id.clone() };
        let group = groups.get_group(request).await.unwrap().into_inner();
        let device = group.devices[0].address.clone();
        assert!(matches!(device.as_ref().unwrap().kind, Some(Kind::Pci(_))));
        let began = Instant::now();
        devices.cordon(v1::CordonRequest { device, ..Default::default() }).await.unwrap();
        until("the kubelet knows", async || node.is_healthy(id).filter(|healthy| !healthy)).await;
        took.push(began.elapsed());
    }
    took.sort();
    let (median, worst) = (took[took.len() / 2], took[took.len() - 1]);
    let mib = resident_mib(program.id());
    program.kill().unwrap();
    program.wait().unwrap();
    println!(
        "{GROUPS} groups: first list after {first:?}; event to the kubelet's list: median {median:?}, \
         worst {worst:?} of {EVENTS}; resident {mib} MiB"
    );
    assert!(worst < MOST, "{worst:?}");
    assert!(mib < MOST_MIB, "{mib} MiB");
}
