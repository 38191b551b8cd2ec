//! The metrics, over a unix socket and on a loopback address.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod double;

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

use double::{Node, until};

async fn says(node: &Node, line: &str) {
    let line = format!("{line}\n");
    until(&line, async || node.metrics().contains(&line).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn they_tell_allocations_waits_registration_latency_and_health() {
    let mut node = Node::without_plugin("small", "class = \"00\"").await;
    node.with_metrics();
    node.start_plugin();
    let ids = node.healthy(3).await;
    let of = "{resource=\"example.com/edu\"";
    let (health, state) = ("berth_kubelet_groups", "berth_kubelet_registration");
    says(&node, &format!("{state}{of},state=\"registered\"}} 1")).await;
    says(&node, &format!("{state}{of},state=\"waits_for_kubelet\"}} 0")).await;
    says(&node, &format!("berth_kubelet_registrations_total{of},outcome=\"done\"}} 1")).await;
    says(&node, &format!("berth_kubelet_lists_followed{of}}} 1")).await;
    says(&node, &format!("{health}{of},health=\"healthy\"}} 3")).await;
    says(&node, &format!("berth_kubelet_container_waits_total{of},reason=\"busy\"}} 0")).await;
    node.try_allocate(&["g-000000000000"]).await.unwrap_err();
    says(&node, &format!("berth_kubelet_allocations_total{of},outcome=\"refused\"}} 1")).await;
    let id = ids[0].as_str();
    node.allocate(&[id]).await;
    says(&node, &format!("berth_kubelet_allocations_total{of},outcome=\"done\"}} 1")).await;
    node.pods(&[("vm", &[id])]);
    node.pre_start(&[id]).await.unwrap();
    says(&node, &format!("berth_kubelet_containers_let_in_total{of}}} 1")).await;
    says(&node, &format!("berth_kubelet_reservations{of}}} 1")).await;
    let user = node.sim.foreign("qemu");
    user.open_group(node.group_number(id).await).unwrap();
    node.pre_start(&[id]).await.unwrap_err();
    says(&node, &format!("berth_kubelet_container_waits_total{of},reason=\"busy\"}} 1")).await;
    node.pre_start(&[ids[1].as_str()]).await.unwrap_err();
    let reason = "reason=\"not_allocated\"";
    says(&node, &format!("berth_kubelet_container_waits_total{of},{reason}}} 1")).await;
    let listed = "berth_kubelet_event_to_list_seconds";
    assert!(node.metrics().contains(&format!("{listed}_count{of}}} 0\n")), "nothing has changed");
    // Somebody else takes one: the kubelet is told.
    let channel = double::dial(&node.path("berthd.sock"));
    let mut client = berth_proto::v1::reservations_client::ReservationsClient::new(channel);
    let request = berth_proto::v1::ReserveRequest {
        holder: "operator".to_owned(),
        groups: vec![ids[2].clone()],
        policy: berth_proto::v1::Policy::Group.into(),
        delivery: berth_proto::v1::Delivery::Held.into(),
        request_id: "r".to_owned(),
        ..berth_proto::v1::ReserveRequest::default()
    };
    client.reserve(request).await.unwrap();
    says(&node, &format!("{health}{of},health=\"unhealthy\"}} 1")).await;
    says(&node, &format!("{listed}_count{of}}} 1")).await;
    node.stop_plugin().await;
    assert_eq!(node.metrics(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_loopback_address_they_are_for_this_machine_alone() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut node = Node::without_plugin("small", "class = \"00\"").await;
    node.edit("settle_ms", &format!("metrics = \"127.0.0.1:{port}\"\nsettle_ms"));
    node.start_plugin();
    node.healthy(3).await;
    let ask = |host: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
            .ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    };
    let here = until("an answer", async || ask(&format!("127.0.0.1:{port}"))).await;
    assert!(here.starts_with("HTTP/1.1 200") && here.contains("version=0.0.4"), "{here}");
    assert!(here.contains("berth_kubelet_build_info"), "{here}");
    let elsewhere = ask("rebound.example.com").unwrap();
    assert!(elsewhere.starts_with("HTTP/1.1 421"), "{elsewhere}");
}
