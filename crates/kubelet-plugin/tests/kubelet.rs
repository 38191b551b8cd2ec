//! The device plugin against a kubelet's double, with the real daemon on a simulated host.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod double;

use std::{process::Command, time::Duration};

use berth_kubelet_plugin::api::v1beta1 as api;
use berth_proto::v1::reservation::State;
use double::{Node, RESOURCE, container::Container, until};

fn cdi_name(answer: &api::ContainerAllocateResponse) -> String {
    assert_eq!(answer.cdi_devices.len(), 1);
    answer.cdi_devices[0].name.clone()
}

async fn settled() {
    tokio::time::sleep(Duration::from_millis(700)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_registers_and_lists_one_device_for_each_viable_group() {
    let node = Node::start().await;
    let ids = node.healthy(3).await;
    assert!(ids.iter().all(|id| id.starts_with("g-") && id.len() == 14), "{ids:?}");
    assert_eq!(node.registrations(), 1);
    let expected = api::DevicePluginOptions {
        pre_start_required: true,
        get_preferred_allocation_available: true,
    };
    assert_eq!(node.options(), [expected]);
    // The kernel knows no NUMA node of these.
    assert!(node.list().iter().all(|(_, _, nodes)| nodes.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_its_devices_by_cdi_and_the_primary_function_in_its_environment() {
    let node = Node::start().await;
    let ids = node.healthy(3).await;
    for id in &ids {
        let id = id.as_str();
        let answer = node.allocate(&[id]).await;
        let name = cdi_name(&answer);
        let (kind, allocation) = name.split_once('=').unwrap();
        assert_eq!(kind, RESOURCE);
        assert!(answer.devices.is_empty(), "a node by DeviceSpec stays root's");
        assert_eq!(node.reservations().await.len(), 0, "Allocate takes nothing");
        let file = format!("berth-{allocation}.json");
        assert!(!node.cdi().contains_key(&file), "it is written late");
        node.pods(&[("vm", &[id])]);
        node.pre_start(&[id]).await.unwrap();
        let held = node.reservations().await;
        assert_eq!(held.len(), 1);
        assert_eq!(held[0].holder.as_ref().unwrap().name, format!("kubelet:{allocation}"));
        let spec = &node.cdi()[&file];
        assert_eq!(spec["cdiVersion"], "0.5.0");
        assert_eq!(spec["devices"][0]["name"], *allocation);
        let nodes = spec["devices"][0]["containerEdits"]["deviceNodes"].as_array().unwrap();
        assert_eq!(nodes.len(), 2, "{nodes:?}");
        assert!(nodes.iter().any(|one| one["path"] == "/dev/vfio/vfio"));
        let keys = nodes.iter().flat_map(|one| one.as_object().unwrap().keys());
        assert!(keys.clone().all(|key| key == "path" || key == "permissions"), "{nodes:?}");
        let primary = &answer.envs["PCI_RESOURCE_EXAMPLE_COM_EDU"];
        assert_eq!(primary.len(), "0000:00:05.0".len(), "one address: {primary}");
        assert_eq!(primary, &answer.envs["PCIDEVICE_EXAMPLE_COM_EDU"]);
        let all: serde_json::Value =
            serde_json::from_str(&answer.envs["BERTH_DEVICES_EXAMPLE_COM_EDU"]).unwrap();
        let members = all["groups"][0]["devices"].as_array().unwrap();
        let expected = if primary == "0000:02:01.0" { 2 } else { 1 };
        assert_eq!(members.len(), expected, "{all}");
        node.pods(&[]);
        until("given back", async || node.reservations().await.is_empty().then_some(())).await;
        until("the file goes, too", async || node.cdi().is_empty().then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_by_force_keeps_its_group_while_its_container_runs() {
    let node = Node::start().await;
    let ids = node.healthy(3).await;
    let id = ids[0].as_str();
    let old = node.allocate(&[id]).await;
    node.pods(&[("old", &[id])]);
    node.pre_start(&[id]).await.unwrap();
    let container = Container::start(&old);
    settled().await;
    // Deleted by force: gone from the list, its container goes on; a new pod gets the same device.
    node.pods(&[]);
    let new = node.allocate(&[id]).await;
    node.pods(&[("new", &[id])]);
    assert_ne!(cdi_name(&old), cdi_name(&new), "a name is not used again");
    let busy = node.pre_start(&[id]).await.unwrap_err();
    assert!(busy.starts_with("busy: held by pod default/old"), "{busy}");
    assert!(busy.contains(&format!("pid {}", container.pid())), "{busy}");
    settled().await;
    assert_eq!(node.reservations().await.len(), 1, "absence from the list is no proof");
    node.pre_start(&[id]).await.unwrap_err();
    drop(container);
    node.pre_start(&[id]).await.unwrap();
    let held = node.reservations().await;
    assert_eq!(held.len(), 1);
    let name = cdi_name(&new);
    assert!(name.ends_with(held[0].holder.as_ref().unwrap().name.trim_start_matches("kubelet:")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_stays_held_while_any_process_has_it_open() {
    let node = Node::start().await;
    let ids = node.healthy(3).await;
    let id = ids[0].as_str();
    node.allocate(&[id]).await;
    node.pods(&[("vm", &[id])]);
    node.pre_start(&[id]).await.unwrap();
    let number = node.group_number(id).await;
    // Nothing of it is seen in /proc here: the daemon's proof alone keeps it.
    let user = node.sim.foreign("qemu");
    user.open_group(number).unwrap();
    let again = node.pre_start(&[id]).await.unwrap_err();
    assert!(again.contains("qemu"), "{again}");
    user.close_all();
    node.pre_start(&[id]).await.unwrap();
    user.open_group(number).unwrap();
    node.pods(&[]);
    settled().await;
    settled().await;
    assert_eq!(node.reservations().await.len(), 1, "a process has it open");
    user.close_all();
    until("given back", async || node.reservations().await.is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_container_s_device_goes_on_to_the_main_container() {
    let node = Node::start().await;
    let ids = node.healthy(3).await;
    let id = ids[0].as_str();
    node.pods(&[("vm", &[id])]);
    let init = node.allocate(&[id]).await;
    node.pre_start(&[id]).await.unwrap();
    let container = Container::start(&init);
    let main = node.allocate(&[id]).await;
    assert_ne!(cdi_name(&init), cdi_name(&main));
    let busy = node.pre_start(&[id]).await.unwrap_err();
    assert!(busy.contains("still runs"), "{busy}");
    drop(container);
    settled().await;
    node.pre_start(&[id]).await.unwrap();
    // A restart is a PreStartContainer alone.
    node.pre_start(&[id]).await.unwrap();
    settled().await;
    let held = node.reservations().await;
    assert_eq!(held.len(), 1);
    assert!(
        cdi_name(&main)
            .ends_with(held[0].holder.as_ref().unwrap().name.trim_start_matches("kubelet:"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_somebody_else_holds_is_busy_in_pre_start_and_not_in_allocate() {
    let node = Node::start().await;
    let ids = node.healthy(3).await;
    let id = ids[0].as_str();
    let channel = double::dial(&node.path("berthd.sock"));
    let mut client = berth_proto::v1::reservations_client::ReservationsClient::new(channel);
    let request = berth_proto::v1::ReserveRequest {
        holder: "operator".to_owned(),
        groups: vec![id.to_owned()],
        policy: berth_proto::v1::Policy::Group.into(),
        delivery: berth_proto::v1::Delivery::Held.into(),
        request_id: "r".to_owned(),
        ..berth_proto::v1::ReserveRequest::default()
    };
    let held = client.reserve(request).await.unwrap().into_inner();
    node.healthy(2).await;
    node.allocate(&[id]).await;
    node.pods(&[("vm", &[id])]);
    let busy = node.pre_start(&[id]).await.unwrap_err();
    assert!(busy.starts_with("busy: held by operator"), "{busy}");
    let release = berth_proto::v1::ReleaseRequest {
        id: held.id,
        request_id: "s".to_owned(),
        ..berth_proto::v1::ReleaseRequest::default()
    };
    client.release(release).await.unwrap();
    node.pre_start(&[id]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn it_registers_again_after_a_restart_of_the_kubelet_and_when_its_socket_goes() {
    let mut node = Node::start().await;
    node.healthy(3).await;
    node.start_kubelet();
    node.healthy(3).await;
    assert_eq!(node.registrations(), 2);
    std::fs::remove_file(node.path("kubelet/device-plugins/berth-example.com_edu.sock")).unwrap();
    until("a third registration", async || (node.registrations() == 3).then_some(())).await;
    node.healthy(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_registers_again_when_the_kubelet_lets_go_of_its_list() {
    let node = Node::start().await;
    node.healthy(3).await;
    node.disconnect();
    node.healthy(3).await;
    assert_eq!(node.registrations(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_instance_waits_and_disconnects_nobody() {
    let mut node = Node::start().await;
    node.healthy(3).await;
    let config = berth_kubelet_plugin::config::Config::load(&node.path("plugin.toml")).unwrap();
    let second = tokio::spawn(berth_kubelet_plugin::run::run(config));
    settled().await;
    assert_eq!(node.registrations(), 1);
    node.healthy(3).await;
    node.stop_plugin().await;
    until("the second registers", async || (node.registrations() == 2).then_some(())).await;
    node.healthy(3).await;
    second.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_the_files_are_written_again_and_running_pods_keep_their_groups() {
    let mut node = Node::start().await;
    let ids = node.healthy(3).await;
    let id = ids[0].as_str();
    let answer = node.allocate(&[id]).await;
    node.pods(&[("vm", &[id])]);
    node.pre_start(&[id]).await.unwrap();
    let _container = Container::start(&answer);
    let before = (node.cdi(), node.reservations().await[0].id.clone());
    node.stop_plugin().await;
    // /var/run is empty after a reboot.
    std::fs::remove_dir_all(node.path("cdi")).unwrap();
    std::fs::create_dir_all(node.path("cdi")).unwrap();
    std::fs::write(node.path("cdi/berth-a-000000000000.json"), "{}").unwrap();
    node.start_plugin();
    until("a second registration", async || (node.registrations() == 2).then_some(())).await;
    settled().await;
    assert_eq!((node.cdi(), node.reservations().await[0].id.clone()), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_a_starting_kubelet_did_not_list_starts_its_container_again() {
    let node = Node::start().await;
    let ids = node.healthy(3).await;
    let id = ids[0].as_str();
    node.allocate(&[id]).await;
    node.pods(&[("vm", &[id])]);
    node.pre_start(&[id]).await.unwrap();
    let before = node.cdi();
    node.pods(&[]);
    until("given back", async || node.reservations().await.is_empty().then_some(())).await;
    node.pods(&[("vm", &[id])]);
    node.pre_start(&[id]).await.unwrap();
    assert_eq!(node.cdi(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_starts_again_after_it_had_its_device_open() {
    let node = Node::start().await;
    let ids = node.healthy(3).await;
    let id = ids[0].as_str();
    let answer = node.allocate(&[id]).await;
    node.pods(&[("vm", &[id])]);
    node.pre_start(&[id]).await.unwrap();
    let user = node.sim.foreign("qemu");
    let device = answer.envs["PCI_RESOURCE_EXAMPLE_COM_EDU"].parse().unwrap();
    user.open_by_group(device).unwrap();
    until("held", async || (node.state().await == State::Held).then_some(())).await;
    user.close_all();
    settled().await;
    node.pre_start(&[id]).await.unwrap();
    user.open_by_group(device).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_killed_and_started_again_lets_its_containers_in_again() {
    let mut node = Node::start().await;
    let ids = node.healthy(3).await;
    let id = ids[0].as_str();
    node.stop_plugin().await;
    let mut program = node.program();
    until("it registers", async || (node.registrations() == 2).then_some(())).await;
    node.healthy(3).await;
    let answer = node.allocate(&[id]).await;
    node.pods(&[("vm", &[id])]);
    node.pre_start(&[id]).await.unwrap();
    let _container = Container::start(&answer);
    assert_eq!(node.state().await, State::Handed);
    program.kill().unwrap();
    program.wait().unwrap();
    until("the daemon holds it", async || (node.state().await == State::Reserved).then_some(()))
        .await;
    let mut program = node.program();
    until("let in again", async || (node.state().await == State::Handed).then_some(())).await;
    program.kill().unwrap();
    program.wait().unwrap();
}

#[test]
fn check_config_says_ok_or_names_the_line() {
    let check = |text: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let program = env!("CARGO_BIN_EXE_berth-kubelet-plugin");
        let mut program = Command::new(program);
        let done = program.arg("--check-config").arg("--config").arg(file.path()).output().unwrap();
        let text = [done.stdout, done.stderr].concat();
        (done.status.success(), String::from_utf8(text).unwrap())
    };
    let sample = include_str!("../../../deploy/kubernetes/kubelet-plugin.toml");
    let (ok, text) = check(sample);
    assert!(ok && text.contains(": ok\n"), "{text}");
    let (ok, text) = check("[[resource]]\nname = \"gpu\"\n");
    assert!(!ok && text.contains(":2: \"gpu\": there is no domain"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_numa_node_is_told_and_preferred_where_it_is_known() {
    let node = Node::on("gpu-server", "class = \"gpu\"\ntake_from_host = true").await;
    let list = until("a list", async || Some(node.list()).filter(|list| list.len() > 2)).await;
    assert!(list.iter().all(|(_, _, nodes)| nodes.len() == 1), "{list:?}");
    let request = api::ContainerPreferredAllocationRequest {
        available_device_i_ds: list.iter().map(|(id, _, _)| id.clone()).collect(),
        must_include_device_i_ds: Vec::new(),
        allocation_size: 2,
    };
    let request = api::PreferredAllocationRequest { container_requests: vec![request] };
    let answer = node.plugin().get_preferred_allocation(request).await.unwrap().into_inner();
    let chosen = &answer.container_responses[0].device_i_ds;
    let nodes: Vec<&Vec<i64>> =
        list.iter().filter(|(id, _, _)| chosen.contains(id)).map(|(_, _, nodes)| nodes).collect();
    assert_eq!(nodes.len(), 2);
    assert_eq!(nodes[0], nodes[1], "{list:?} {chosen:?}");
}
