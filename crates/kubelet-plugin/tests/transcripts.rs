//! What kubelet v1.36 was seen doing, in its order and with its gaps, and what users report: each is a
//! test. `kubelet.rs` has the calls by themselves, `histories.rs` mixes them at random.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod double;

use std::time::{Duration, Instant};

use double::{Node, container::Container, until};

/// How long the containers of a pod that was deleted by force, and of its successor, were seen
/// running together.
const OVERLAP: Duration = Duration::from_millis(1_700);
/// Between two PreStartContainer here; the kubelet was seen to take 6 s.
const AGAIN: Duration = Duration::from_millis(300);

async fn begin() -> (Node, String) {
    let node = Node::start().await;
    let id = node.healthy(3).await[0].clone();
    (node, id)
}

/// A pod's first container, started as the kubelet does it.
async fn starts(node: &Node, pod: &str, id: &str) -> Container {
    let answer = node.allocate(&[id]).await;
    node.pods(&[(pod, &[id])]);
    node.pre_start(&[id]).await.unwrap();
    Container::start(&answer)
}

/// Allocate and PreStartContainer of a second pod, while the first one's container goes on for as
/// long as it was seen to.
async fn successor_waits(node: &Node, id: &str, old: Container) {
    let began = Instant::now();
    let answer = node.allocate(&[id]).await;
    node.pods(&[("new", &[id])]);
    let mut old = Some(old);
    let mut waits = 0;
    loop {
        if began.elapsed() > OVERLAP {
            drop(old.take());
        }
        match node.pre_start(&[id]).await {
            Ok(()) => break,
            Err(why) => assert!(why.contains("default/old"), "{why}"),
        }
        waits += 1;
        tokio::time::sleep(AGAIN).await;
    }
    assert!(old.is_none(), "two containers ran at once");
    assert!(waits >= 2, "{waits}");
    let held = node.reservations().await;
    let allocation = &answer.cdi_devices[0].name;
    assert!(
        allocation.ends_with(held[0].holder.as_ref().unwrap().name.trim_start_matches("kubelet:"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_by_force_the_old_container_runs_1_7_s_beside_the_new_one_s_pre_start() {
    let (node, id) = begin().await;
    let old = starts(&node, "old", &id).await;
    // The pod is known by name once the kubelet listed it.
    tokio::time::sleep(AGAIN).await;
    node.pods(&[]);
    successor_waits(&node, &id, old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_pod_that_is_replaced_is_waited_for_though_the_list_never_was_without_the_device()
{
    let (node, id) = begin().await;
    let old = starts(&node, "old", &id).await;
    tokio::time::sleep(AGAIN).await;
    // Its manifest is exchanged: the kubelet lists the new pod at once.
    successor_waits(&node, &id, old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_device_for_two_pods_goes_to_one_of_them() {
    let (node, id) = begin().await;
    // The kubelet's race: both are admitted before either starts.
    let first = node.allocate(&[&id]).await;
    let second = node.allocate(&[&id]).await;
    node.pods(&[("first", &[&id]), ("second", &[&id])]);
    node.pre_start(&[&id]).await.unwrap();
    let container = Container::start(&second);
    let busy = node.pre_start(&[&id]).await.unwrap_err();
    assert!(busy.starts_with("busy: held by "), "{busy}");
    let held = node.reservations().await;
    assert_eq!(held.len(), 1);
    assert_ne!(first.cdi_devices, second.cdi_devices);
    drop(container);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_admitted_before_the_resource_was_there_is_kept_from_starting_without_it() {
    let (node, id) = begin().await;
    assert!(node.options().iter().all(|options| options.pre_start_required));
    let why = node.pre_start(&[&id]).await.unwrap_err();
    assert!(why.contains("no allocation of") && why.contains("delete the pod"), "{why}");
    assert!(node.reservations().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_deleted_before_the_new_kubelet_listens_are_served_again_before_it_does() {
    let (mut node, id) = begin().await;
    let container = starts(&node, "vm", &id).await;
    let held = node.reservations().await[0].id.clone();
    node.kubelet_goes();
    let socket = node.path("kubelet/device-plugins/berth-example.com_edu.sock");
    until("it is served again", async || socket.exists().then_some(())).await;
    assert_eq!(node.registrations(), 1, "there is nobody to register with");
    // It lists no pods until it has read what it knew.
    node.pods(&[]);
    let began = Instant::now();
    node.start_kubelet();
    node.healthy(3).await;
    println!("healthy after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert_eq!(node.registrations(), 2);
    tokio::time::sleep(AGAIN * 3).await;
    assert_eq!(node.reservations().await[0].id, held, "its container runs");
    drop(container);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_dropped_again_and_again_lead_to_a_registration_each() {
    let (node, _) = begin().await;
    for count in 2..=3 {
        node.disconnect();
        until("another registration", async || (node.registrations() == count).then_some(())).await;
        node.healthy(3).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newer_client_that_the_kubelet_disconnects_as_the_older_dies_registers_again() {
    let (mut node, _) = begin().await;
    let config = berth_kubelet_plugin::config::Config::load(&node.path("plugin.toml")).unwrap();
    let newer = tokio::spawn(berth_kubelet_plugin::run::run(config));
    tokio::time::sleep(AGAIN).await;
    node.stop_plugin().await;
    until("the newer registers", async || (node.registrations() == 2).then_some(())).await;
    // The kubelet's runClient of the older ends only now, and takes the newer one's client.
    node.disconnect();
    until("and again", async || (node.registrations() == 3).then_some(())).await;
    node.healthy(3).await;
    newer.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_s_number_is_looked_up_when_the_container_starts() {
    let (node, id) = begin().await;
    let ids = node.healthy(3).await;
    let mut answers = Vec::new();
    for id in &ids {
        answers.push(node.allocate(&[id]).await);
    }
    let address = |at: usize| answers[at].envs["PCI_RESOURCE_EXAMPLE_COM_EDU"].parse().unwrap();
    // One that is alone in its group, and another one that is like it.
    let bridged = |at: &usize| answers[*at].envs["PCI_RESOURCE_EXAMPLE_COM_EDU"] == "0000:02:01.0";
    let mut single = (0..3).filter(|at| !bridged(at));
    let (at, like) = (single.next().unwrap(), single.next().unwrap());
    let before = node.group_number(&ids[at]).await;
    node.sim.unplug(address(at)).unwrap();
    until("it is gone", async || node.is_healthy(&ids[at]).is_none().then_some(())).await;
    // Somebody else gets the number.
    node.sim.plug("0000:0a:00.0".parse().unwrap(), address(like)).unwrap();
    let number = node.sim.plug(address(at), address(like)).unwrap();
    assert_ne!(number, before);
    until("it is back", async || node.is_healthy(&ids[at]).filter(|healthy| *healthy)).await;
    node.pods(&[("vm", &[&ids[at]])]);
    node.pre_start(&[&ids[at]]).await.unwrap();
    let spec = node.cdi().into_values().next().unwrap().to_string();
    assert!(spec.contains(&format!("\"/dev/vfio/{number}\"")), "{number}: {spec}");
    assert!(id.starts_with("g-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_baseline_vfio_a_group_is_offered_once_it_is_bound_ahead() {
    let node = Node::on("small", "class = \"00\"\nbaseline = \"vfio\"").await;
    until("it is registered", async || (node.registrations() == 1).then_some(())).await;
    tokio::time::sleep(AGAIN).await;
    assert_eq!(node.list(), [], "none of them is on VFIO");
    let device = "0000:00:05.0".parse().unwrap();
    node.sim.host_override(device, Some("vfio-pci")).unwrap();
    node.sim.host_driver_bind(device, "vfio-pci").unwrap();
    let id = node.healthy(1).await[0].clone();
    let answer = node.allocate(&[&id]).await;
    assert_eq!(answer.envs["PCI_RESOURCE_EXAMPLE_COM_EDU"], "0000:00:05.0");
    node.pods(&[("vm", &[&id])]);
    node.pre_start(&[&id]).await.unwrap();
    node.pods(&[]);
    until("given back", async || node.reservations().await.is_empty().then_some(())).await;
    node.healthy(1).await;
}
