//! SIGHUP: other classes, and no pod is dropped.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod double;

use std::{
    io::Read as _,
    process::{Child, Command},
    time::Duration,
};

use double::{Node, RESOURCE, more::hang_up, until};

const OTHER: &str = "example.com/other";

/// Ends with the test.
struct Program(Child);

impl Program {
    /// What it logged until now; it is ended.
    fn said(mut self) -> String {
        self.0.kill().unwrap();
        let mut text = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have been ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn begin() -> (Node, Program) {
    let node = Node::without_plugin("small", "class = \"00\"").await;
    node.with_metrics();
    let program = Program(node.logging_program());
    node.healthy(3).await;
    (node, program)
}

/// A pod whose container runs.
async fn running(node: &Node, id: &str) -> Child {
    let answer = node.allocate(&[id]).await;
    node.pods(&[("vm", &[id])]);
    node.pre_start(&[id]).await.unwrap();
    Command::new("sleep").arg("600").envs(&answer.envs).spawn().unwrap()
}

fn end(mut container: Child) {
    container.kill().unwrap();
    container.wait().unwrap();
}

async fn settled() {
    tokio::time::sleep(Duration::from_millis(700)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_goes_away_keeps_its_pods_groups_until_they_are_released() {
    let (node, program) = begin().await;
    let id = node.healthy(3).await[0].clone();
    let container = running(&node, &id).await;
    let before = node.reservations().await;
    node.edit(RESOURCE, OTHER);
    hang_up(&program.0);
    until("the two others are the new class's", async || {
        let list = node.list_of(OTHER)?;
        (list.len() == 2 && list.iter().all(|(one, healthy)| *healthy && *one != id)).then_some(())
    })
    .await;
    until("the pod's stays the old one's, and goes to nobody", async || {
        (node.list_of(RESOURCE)? == [(id.clone(), false)]).then_some(())
    })
    .await;
    let after = node.reservations().await;
    assert_eq!((after.len(), &after[0].id), (1, &before[0].id));
    // The kubelet starts the pod's container again: by the old class's socket.
    end(container);
    settled().await;
    node.pre_start(&[&id]).await.unwrap();
    settled().await;
    assert_eq!(node.reservations().await[0].id, before[0].id, "its pod is listed");
    node.pods(&[]);
    until("all three are the new class's", async || {
        (node.list_of(OTHER)?.iter().filter(|(_, healthy)| *healthy).count() == 3).then_some(())
    })
    .await;
    let socket = node.path("kubelet/device-plugins/berth-example.com_edu.sock");
    until("the old one is served no more", async || (!socket.exists()).then_some(())).await;
    assert!(node.reservations().await.is_empty());
    assert!(program.said().contains("served until its pods have ended"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_went_away_is_served_for_its_pods_by_the_next_plugin_too() {
    let (node, program) = begin().await;
    let id = node.healthy(3).await[0].clone();
    end(running(&node, &id).await);
    let before = node.reservations().await;
    drop(program);
    node.edit(RESOURCE, OTHER);
    let _program = Program(node.logging_program());
    until("the pod's is the old class's", async || {
        (node.list_of(RESOURCE)? == [(id.clone(), false)]).then_some(())
    })
    .await;
    settled().await;
    node.pre_start(&[&id]).await.unwrap();
    assert_eq!(node.reservations().await[0].id, before[0].id);
    assert_eq!(node.cdi().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_configuration_is_refused_with_the_reason_and_the_old_one_stays() {
    let (node, program) = begin().await;
    node.edit("backend = \"type1\"", "backend = \"type2\"");
    hang_up(&program.0);
    until("it is refused", async || {
        node.metrics()
            .contains("berth_kubelet_reloads_total{outcome=\"refused\"} 1\n")
            .then_some(())
    })
    .await;
    let id = node.healthy(3).await[0].clone();
    end(running(&node, &id).await);
    assert_eq!(node.registrations(), 1);
    let said = program.said();
    assert!(said.contains("the last configuration stays in force"), "{said}");
    assert!(said.contains("\"type2\" can't be the back end"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_class_counts_for_the_next_pod_without_another_registration() {
    let (node, program) = begin().await;
    let ids = node.healthy(3).await;
    let container = running(&node, &ids[0]).await;
    node.edit("backend = \"type1\"", "backend = \"type1\"\nlabel = \"red\"");
    node.edit("state_dir = ", "state_dir = \"/elsewhere\"\n#");
    hang_up(&program.0);
    until("it is taken", async || {
        node.metrics().contains("berth_kubelet_reloads_total{outcome=\"taken\"} 1\n").then_some(())
    })
    .await;
    node.allocate(&[&ids[1]]).await;
    node.pods(&[("vm", &[&ids[0]]), ("next", &[&ids[1]])]);
    node.pre_start(&[&ids[1]]).await.unwrap();
    let mut labels: Vec<String> =
        node.reservations().await.into_iter().map(|one| one.label).collect();
    labels.sort();
    assert_eq!(labels, ["kubernetes", "red"]);
    assert_eq!(node.registrations(), 1);
    end(container);
    let said = program.said();
    assert!(said.contains("state_dir needs a restart"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_class_is_registered_and_takes_what_it_fits_first() {
    let (node, program) = begin().await;
    node.edit(
        "[[resource]]",
        "[[resource]]\nname = \"example.com/new\"\naddress = \"*:05.0\"\n[[resource]]",
    );
    hang_up(&program.0);
    until("the new class has its group", async || {
        (node.list_of("example.com/new")?.len() == 1).then_some(())
    })
    .await;
    node.healthy(2).await;
    assert_eq!(node.registrations(), 2);
}
