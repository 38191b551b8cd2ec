//! What a container may lock is known before it starts, or said not to be.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod double;

use std::{
    io::{BufRead as _, BufReader, Read as _},
    os::unix::net::UnixListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use double::Node;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

const NEED: u64 = 1 << 20;
const LITTLE: u64 = 64 << 10;

/// What a runtime is to the plugin: a process with a limit, that listens. This program once more.
#[test]
#[ignore = "started by the other tests, as a runtime"]
fn a_runtime() {
    let current = Some(LITTLE);
    setrlimit(Resource::Memlock, Rlimit { current, ..getrlimit(Resource::Memlock) }).unwrap();
    let _listener = UnixListener::bind(std::env::var("RUNTIME").unwrap()).unwrap();
    println!("\nlistening");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

struct Runtime(Child);

impl Runtime {
    fn start(socket: &PathBuf) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "a_runtime", "--ignored", "--nocapture"]).env("RUNTIME", socket);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "listening"), "it doesn't listen");
        Self(child)
    }

    fn may_lock(&self, bytes: u64) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        let limit = Rlimit { current: Some(bytes), ..getrlimit(Resource::Memlock) };
        prlimit(pid, Resource::Memlock, limit).unwrap();
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// A node whose resource says what is locked; `line` is of the configuration.
async fn node(line: impl FnOnce(&Node) -> String, delivery: &str) -> (Node, String) {
    let selector = format!("class = \"00\"\nmemory = \"1M\"\n{delivery}");
    let mut node = Node::without_plugin("small", &selector).await;
    let file = node.path("plugin.toml");
    let text = format!("{}\n{}", line(&node), std::fs::read_to_string(&file).unwrap());
    std::fs::write(file, text).unwrap();
    node.start_plugin();
    let ids = node.healthy(3).await;
    let id = ids[0].clone();
    node.allocate(&[&id]).await;
    node.pods(&[("vm", &[&id])]);
    (node, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_waits_until_its_runtime_may_lock_enough() {
    let socket = |node: &Node| node.path("containerd.sock");
    let (node, id) = node(|node| format!("runtime = {:?}", socket(node)), "").await;
    let away = node.pre_start(&[&id]).await.unwrap_err();
    assert!(away.contains("lock 1048576 bytes, and what they may lock can't be known"), "{away}");
    assert!(away.contains("containerd.sock: ") && away.contains("memlock = "), "{away}");
    let runtime = Runtime::start(&socket(&node));
    let low = node.pre_start(&[&id]).await.unwrap_err();
    let expected =
        "memlock: containers of example.com/edu lock 1048576 bytes and may lock 65536, as";
    assert!(low.starts_with(expected), "{low}");
    assert!(low.contains(&format!("pid {}", runtime.0.id())), "{low}");
    for way_out in ["LimitMEMLOCK=1048576", "bound or unbound", "CAP_IPC_LOCK"] {
        assert!(low.contains(way_out), "{way_out}: {low}");
    }
    assert_eq!(node.reservations().await.len(), 0, "nothing is taken for what can't start");
    runtime.may_lock(NEED - 1);
    node.pre_start(&[&id]).await.unwrap_err();
    runtime.may_lock(NEED);
    node.pre_start(&[&id]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_configuration_says_outranks_the_runtime() {
    let (little, id) = node(|_| "memlock = \"512K\"".to_owned(), "").await;
    let low = little.pre_start(&[&id]).await.unwrap_err();
    assert!(low.contains("may lock 524288, as memlock of the configuration says"), "{low}");
    let (enough, id) = node(|_| "memlock = \"unlimited\"".to_owned(), "").await;
    enough.pre_start(&[&id]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn for_who_gets_descriptors_berthd_raises_the_limit() {
    let delivery = "backend = \"iommufd\"\ndelivery = \"unbound\"";
    let (node, id) = node(|_| "memlock = \"512K\"".to_owned(), delivery).await;
    node.pre_start(&[&id]).await.unwrap();
    assert_eq!(node.reservations().await[0].memory_bytes, NEED);
}
