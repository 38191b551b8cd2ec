//! Containers that get descriptors by a socket, and no nodes: whose process may have them, and who is
//! their holder.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod double;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use berth_handover::{Client, ClientError, Iova, Request};
use berth_kubelet_plugin::api::v1beta1 as api;
use berth_proto::v1::reservation::State;
use double::{Node, until};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use serde_json::{Value, json};

const SUFFIX: &str = "EXAMPLE_COM_EDU";
const ANSWER: &str = "ANSWER ";
const PAGE: u64 = 4096;

/// What runs in a container: this program once more, which asks what it is told to, and keeps what
/// it gets.
#[test]
#[ignore = "started by the other tests, as a process of a container"]
fn a_process_of_a_container() {
    let socket = PathBuf::from(std::env::var("SOCKET_ON_THE_HOST").unwrap());
    let mut kept = Vec::new();
    for line in std::io::stdin().lines() {
        let request: Request = serde_json::from_str(&line.unwrap()).unwrap();
        let mut fds = Vec::new();
        if let Request::Register { length_bytes, .. } = &request {
            let memory = memfd_create("memory", MemfdFlags::ALLOW_SEALING).unwrap();
            ftruncate(&memory, *length_bytes).unwrap();
            fcntl_add_seals(&memory, SealFlags::SHRINK).unwrap();
            fds.push(memory);
        }
        let borrowed: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        let asked = Client::connect(&socket).and_then(|client| client.ask(&request, &borrowed));
        let answer = match asked {
            Ok((reply, fds)) => {
                let count = fds.len();
                kept.extend(fds);
                json!({"reply": reply, "descriptors": count})
            }
            Err(ClientError::Refused(refusal)) => json!({"refused": refusal}),
            Err(error) => json!({"failed": error.to_string()}),
        };
        println!("\n{ANSWER}{answer}");
    }
}

struct Container {
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Container {
    /// With the environment that the kubelet gives it, and the socket where the host has it, as
    /// nobody mounts anything here.
    fn start(node: &Node, answer: &api::ContainerAllocateResponse) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "a_process_of_a_container", "--ignored", "--nocapture"]);
        command.envs(&answer.envs).env("SOCKET_ON_THE_HOST", socket(node, answer));
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (orders, answers) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { process, orders, answers: BufReader::new(answers) }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    fn ask(&mut self, request: &Request) -> Value {
        writeln!(self.orders, "{}", serde_json::to_string(request).unwrap()).unwrap();
        let mut line = String::new();
        while !line.starts_with(ANSWER) {
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "it ended");
        }
        serde_json::from_str(line.trim_start_matches(ANSWER)).unwrap()
    }

    fn fetch(&mut self, reservation: &str) -> Value {
        self.ask(&Request::Fetch { reservation: reservation.to_owned(), epoch: 0 })
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn env<'a>(answer: &'a api::ContainerAllocateResponse, name: &str) -> &'a str {
    answer.envs[&format!("{name}_{SUFFIX}")].as_str()
}

fn socket(node: &Node, answer: &api::ContainerAllocateResponse) -> PathBuf {
    node.path("sockets").join(env(answer, "BERTH_ALLOCATION")).join("handover.sock")
}

/// A pod with one device, as far as PreStartContainer lets it.
async fn pod(node: &Node, name: &str, id: &str) -> api::ContainerAllocateResponse {
    let answer = node.allocate(&[id]).await;
    node.pods(&[(name, &[id])]);
    until("it may start", async || node.pre_start(&[id]).await.ok()).await;
    answer
}

async fn holder(node: &Node) -> Option<i32> {
    let held = node.reservations().await;
    Some(held.first()?.claims.first()?.processes.first()?.pid)
}

fn kinds(answer: &Value) -> Vec<&str> {
    let fds = answer["reply"]["fds"].as_array().unwrap();
    fds.iter().map(|one| one["kind"].as_str().unwrap()).collect()
}

async fn unbound() -> (Node, Vec<String>) {
    let selector = "class = \"00\"\nbackend = \"iommufd\"\ndelivery = \"unbound\"";
    let node = Node::on("small", selector).await;
    let ids = node.healthy(3).await;
    (node, ids)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_the_directory_of_its_socket_and_no_node() {
    let (node, ids) = unbound().await;
    let answer = pod(&node, "vm", &ids[0]).await;
    let allocation = env(&answer, "BERTH_ALLOCATION");
    assert_eq!(env(&answer, "BERTH_RESERVATION"), allocation);
    let inside = format!("/run/berth/{allocation}");
    assert_eq!(env(&answer, "BERTH_HANDOVER"), format!("{inside}/handover.sock"));
    assert!(!answer.envs.contains_key(&format!("PCIDEVICE_{SUFFIX}_INFO")), "it names nodes");
    let outside = socket(&node, &answer).parent().unwrap().to_owned();
    let spec = &node.cdi()[&format!("berth-{allocation}.json")];
    assert_eq!(spec["cdiVersion"], "0.5.0");
    let options = ["bind", "ro", "nosuid", "nodev", "noexec"];
    let mount = json!({"hostPath": outside, "containerPath": inside, "options": options});
    assert_eq!(spec["devices"][0]["containerEdits"], json!({"mounts": [mount]}));
    let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(node.path("sockets")), 0o700, "nobody of the host gets at it");
    assert_eq!(mode(outside.clone()), 0o755);
    assert_eq!(mode(socket(&node, &answer)), 0o666, "of what user the container's processes are");
    // The kernel keeps everybody out until it is fetched.
    assert_eq!(node.state().await, State::Reserved);
    node.pods(&[]);
    until("given back", async || node.reservations().await.is_empty().then_some(())).await;
    until("the socket goes, too", async || (!outside.exists()).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_process_that_fetches_is_the_holder_and_keeps_the_next_pod_out() {
    let (node, ids) = unbound().await;
    let old = pod(&node, "old", &ids[0]).await;
    let mut container = Container::start(&node, &old);
    let fetched = container.fetch(env(&old, "BERTH_RESERVATION"));
    assert_eq!(kinds(&fetched), ["cdev", "iommufd"], "{fetched}");
    assert_eq!(fetched["descriptors"], 2);
    assert_eq!(fetched["reply"]["reservation"], node.reservations().await[0].id.as_str());
    assert_eq!(node.state().await, State::Handed);
    assert_eq!(holder(&node).await, Some(container.pid()));
    // The plugin learns the pod's name when it looks what is free.
    tokio::time::sleep(Duration::from_millis(700)).await;
    // Deleted by force, and the kubelet gives its device to the next.
    node.pods(&[]);
    let new = node.allocate(&[&ids[0]]).await;
    node.pods(&[("new", &[&ids[0]])]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    let busy = node.pre_start(&[&ids[0]]).await.unwrap_err();
    assert!(busy.starts_with("busy: held by pod default/old"), "{busy}");
    assert!(busy.contains(&format!("pid {}", container.pid())), "{busy}");
    assert!(!socket(&node, &new).exists(), "what may not start has no socket");
    drop(container);
    until("it may start", async || node.pre_start(&[&ids[0]]).await.ok()).await;
    assert!(!socket(&node, &old).exists());
    let mut container = Container::start(&node, &new);
    let fetched = container.fetch(env(&new, "BERTH_RESERVATION"));
    assert_eq!(kinds(&fetched), ["cdev", "iommufd"], "{fetched}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_in_the_container_gets_nothing() {
    let (node, ids) = unbound().await;
    let (one, other) = (node.allocate(&[&ids[0]]).await, node.allocate(&[&ids[1]]).await);
    node.pods(&[("one", &[&ids[0]]), ("other", &[&ids[1]])]);
    for id in &ids[..2] {
        node.pre_start(&[id]).await.unwrap();
    }
    // A process of the other container that got to this socket; a fetch for another's reservation.
    let mut stranger = one.clone();
    stranger.envs.clone_from(&other.envs);
    let mut command = Container::start(&node, &stranger);
    let own = env(&other, "BERTH_RESERVATION");
    let answer = command.fetch(env(&one, "BERTH_RESERVATION"));
    assert_eq!(answer["refused"]["reason"], "NOT_FOUND", "{answer}");
    assert!(answer["refused"]["message"].as_str().unwrap().contains(own), "{answer}");
    let path = socket(&node, &one);
    let reservation = env(&one, "BERTH_RESERVATION").to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        Client::connect(path).unwrap().fetch(&reservation, 0).map(drop)
    });
    let Err(ClientError::Refused(refusal)) = asked.await.unwrap() else {
        panic!("this process is in no container");
    };
    assert_eq!(refusal.reason, "NOT_FOR_YOU");
    assert!(refusal.message.contains("is not in the container of"), "{}", refusal.message);
    let states: Vec<State> = node.reservations().await.iter().map(|one| one.state()).collect();
    assert_eq!(states, [State::Reserved, State::Reserved], "nobody got anything");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_bound_is_attached_before_the_container_starts_and_again_after_it_ended() {
    let selector = "address = \"0000:00:*\"\nclass = \"00\"\npolicy = \"exclusive\"\n\
                    delivery = \"bound\"";
    for backend in ["iommufd", "type1"] {
        let node = Node::on("small", &format!("{selector}\nbackend = \"{backend}\"")).await;
        let id = until("a device", async || node.list().first().map(|one| one.0.clone())).await;
        let answer = pod(&node, "vm", &id).await;
        for _run in 0..2 {
            assert_eq!(node.state().await, State::Held);
            assert_eq!(holder(&node).await, None, "nobody has fetched it");
            let mut container = Container::start(&node, &answer);
            let fetched = container.fetch(env(&answer, "BERTH_RESERVATION"));
            let context = if backend == "type1" { "container" } else { "iommufd" };
            assert_eq!(kinds(&fetched), ["device", context], "{fetched}");
            assert_eq!(holder(&node).await, Some(container.pid()));
            drop(container);
            until("it may start again", async || node.pre_start(&[&id]).await.ok()).await;
        }
        node.pods(&[]);
        until("given back", async || node.reservations().await.is_empty().then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_maps_memory_of_the_container_s_process_until_that_ends() {
    let node = Node::on("small", "class = \"00\"\ndelivery = \"held\"").await;
    let ids = node.healthy(3).await;
    let answer = pod(&node, "vm", &ids[0]).await;
    let mut container = Container::start(&node, &answer);
    let reservation = env(&answer, "BERTH_RESERVATION").to_owned();
    let fetched = container.fetch(&reservation);
    assert_eq!(fetched["descriptors"], 0, "{fetched}");
    assert_eq!(holder(&node).await, Some(container.pid()));
    let register = Request::Register {
        reservation: reservation.clone(),
        iova: Some(Iova(0x10_0000)),
        length_bytes: PAGE,
        offset: 0,
        write: true,
        read: true,
    };
    let unregister = Request::Unregister { reservation, iova: Iova(0x10_0000), length_bytes: PAGE };
    assert_eq!(container.ask(&register)["reply"]["iova"], "0x100000");
    assert_eq!(container.ask(&unregister)["reply"]["unmappedBytes"], PAGE);
    assert_eq!(container.ask(&register)["reply"]["iova"], "0x100000");
    drop(container);
    until("it may start again", async || node.pre_start(&[&ids[0]]).await.ok()).await;
    let mut container = Container::start(&node, &answer);
    // With its process the registration ended: the same address is free.
    assert_eq!(container.ask(&register)["reply"]["iova"], "0x100000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_plugin_serves_the_same_directories_and_takes_nothing_away() {
    let (mut node, ids) = unbound().await;
    let first = pod(&node, "first", &ids[0]).await;
    let second = node.allocate(&[&ids[1]]).await;
    node.pods(&[("first", &[&ids[0]]), ("second", &[&ids[1]])]);
    node.pre_start(&[&ids[1]]).await.unwrap();
    let mut container = Container::start(&node, &first);
    container.fetch(env(&first, "BERTH_RESERVATION"));
    let inode = |answer| socket(&node, answer).parent().unwrap().metadata().unwrap().ino();
    let before = (inode(&first), inode(&second), node.cdi());
    node.stop_plugin().await;
    std::fs::create_dir_all(node.path("sockets/a-000000000000")).unwrap();
    node.start_plugin();
    until("a second registration", async || (node.registrations() == 2).then_some(())).await;
    let inode = |answer| socket(&node, answer).parent().unwrap().metadata().unwrap().ino();
    assert_eq!((inode(&first), inode(&second), node.cdi()), before, "what is mounted stays");
    assert!(!node.path("sockets/a-000000000000").exists(), "nobody's");
    assert_eq!(holder(&node).await, Some(container.pid()));
    let mut other = Container::start(&node, &second);
    let fetched = other.fetch(env(&second, "BERTH_RESERVATION"));
    assert!(kinds(&fetched).starts_with(&["cdev"]), "{fetched}");
}
