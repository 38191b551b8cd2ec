//! Random histories of a node: pods come, start, restart, are deleted by force; kubelet, plugin and
//! `berthd` go and come back. No group ever has two owners, nothing is left, and nothing is stuck.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

mod double;

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use berth_host::sim::Foreign;
use berth_kubelet_plugin::api::v1beta1 as api;
use double::{Node, until};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, LocalSet},
};

const HISTORIES: u64 = 500;
/// Most of a history is waiting.
const AT_ONCE: usize = 8;
const STEPS: usize = 32;
/// The groups of the topology `small` that have edu devices.
const GROUPS: usize = 3;

/// The first process of a container, and what it has open.
struct Container {
    process: Child,
    user: Foreign,
}

impl Drop for Container {
    fn drop(&mut self) {
        self.user.close_all();
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

struct Pod {
    name: String,
    groups: Vec<String>,
    answer: api::ContainerAllocateResponse,
    container: Option<Container>,
}

/// One node, and what the kubelet would know.
struct History {
    node: Node,
    program: Child,
    seed: u64,
    random: SmallRng,
    /// Takes every PreStartContainer for allowed: what a plugin would be that takes no right.
    careless: bool,
    pods: Vec<Pod>,
    /// Containers of pods that were deleted by force: the kubelet knows them no more.
    left: Vec<Pod>,
    count: usize,
    starts: usize,
    waits: usize,
    said: Vec<String>,
}

impl Drop for History {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("history {}:\n  {}", self.seed, self.said.join("\n  "));
        }
        self.program.kill().unwrap();
        self.program.wait().unwrap();
    }
}

impl History {
    async fn begin(seed: u64, careless: bool) -> Self {
        let node = Node::without_plugin("small", "class = \"00\"").await;
        let program = node.program();
        node.healthy(GROUPS).await;
        let random = SmallRng::seed_from_u64(seed);
        let (pods, left, said) = (Vec::new(), Vec::new(), Vec::new());
        let (count, starts, waits) = (0, 0, 0);
        Self { node, program, seed, random, careless, pods, left, count, starts, waits, said }
    }

    fn say(&mut self, what: impl Into<String>) {
        self.said.push(what.into());
    }

    /// What PodResources lists: the pods that the kubelet knows.
    fn list(&self) {
        let pods: Vec<(&str, Vec<&str>)> = self
            .pods
            .iter()
            .map(|pod| (pod.name.as_str(), pod.groups.iter().map(String::as_str).collect()))
            .collect();
        let pods: Vec<(&str, &[&str])> =
            pods.iter().map(|(name, ids)| (*name, ids.as_slice())).collect();
        self.node.pods(&pods);
    }

    async fn step(&mut self) -> Result<(), String> {
        match self.random.random_range(0..100) {
            0..=21 => self.admit().await,
            22..=51 => return self.start().await,
            52..=59 => self.exit(),
            60..=66 => self.delete(),
            67..=76 => self.delete_by_force(),
            77..=82 => self.left_ends(),
            83..=85 => self.init_ends().await,
            86..=88 => self.kill_plugin().await,
            89..=91 => {
                self.say("berthd restarts");
                self.node.restart_daemon().await;
            }
            92..=93 => self.kubelet_restarts().await,
            94 => {
                self.say("the kubelet lets go of the plugin");
                self.node.disconnect();
            }
            _ => tokio::time::sleep(Duration::from_millis(self.random.random_range(5..250))).await,
        }
        Ok(())
    }

    /// A pod that asks for one or two groups which the kubelet takes for free.
    async fn admit(&mut self) {
        let given = |id: &String| self.pods.iter().any(|pod| pod.groups.contains(id));
        let healthy = self.node.list().into_iter().filter(|(_, healthy, _)| *healthy);
        let free: Vec<String> = healthy.map(|(id, ..)| id).filter(|id| !given(id)).collect();
        let wanted = self.random.random_range(1..=2);
        let groups: Vec<String> = free.choose_multiple(&mut self.random, wanted).cloned().collect();
        if groups.len() < wanted {
            return;
        }
        let ids: Vec<&str> = groups.iter().map(String::as_str).collect();
        // Where the plugin is away the pod is refused for good: there is no more of it.
        let Ok(answer) = self.node.try_allocate(&ids).await else { return };
        self.count += 1;
        let name = format!("pod-{}", self.count);
        self.say(format!("{name} gets {}", ids.join(" ")));
        self.pods.push(Pod { name, groups, answer, container: None });
        self.list();
    }

    /// The kubelet starts a container that doesn't run: the first time, or again.
    async fn start(&mut self) -> Result<(), String> {
        let waiting: Vec<usize> =
            (0..self.pods.len()).filter(|at| self.pods[*at].container.is_none()).collect();
        let Some(at) = waiting.choose(&mut self.random).copied() else { return Ok(()) };
        let pod = &self.pods[at];
        let (name, groups) = (pod.name.clone(), pod.groups.clone());
        let ids: Vec<&str> = groups.iter().map(String::as_str).collect();
        if let Err(why) = self.node.pre_start(&ids).await {
            self.say(format!("{name} waits: {why}"));
            self.waits += 1;
            if !self.careless {
                return Ok(());
            }
        }
        self.say(format!("{name} starts"));
        self.starts += 1;
        let all = self.pods.iter().chain(&self.left);
        let mut running = all.filter(|other| other.container.is_some());
        let second = running.find(|other| other.groups.iter().any(|id| groups.contains(id)));
        if let Some(second) = second {
            return Err(format!("{name} starts while {} runs", second.name));
        }
        let user = self.node.sim.foreign("vmm");
        // Not every container opens what it has at once: then its process alone shows that it runs.
        let opens = self.random.random_ratio(2, 3);
        for id in ids.iter().filter(|_| opens) {
            let number = self.node.group_number(id).await;
            let opened = user.open_group(number);
            opened.map_err(|errno| format!("{name} may start and not open {id}: {errno}"))?;
        }
        let mut command = Command::new("sleep");
        command.arg("600").envs(&self.pods[at].answer.envs).stdin(Stdio::null());
        let process = command.spawn().unwrap();
        self.pods[at].container = Some(Container { process, user });
        Ok(())
    }

    fn some_pod(&mut self, runs: bool) -> Option<usize> {
        let fit = |at: &usize| self.pods[*at].container.is_some() == runs;
        let fitting: Vec<usize> = (0..self.pods.len()).filter(fit).collect();
        fitting.choose(&mut self.random).copied()
    }

    fn exit(&mut self) {
        let Some(at) = self.some_pod(true) else { return };
        self.pods[at].container = None;
        self.say(format!("{} exits", self.pods[at].name));
    }

    /// The container ends first, then the kubelet forgets the pod.
    fn delete(&mut self) {
        let runs = self.random.random();
        let Some(at) = self.some_pod(runs) else { return };
        let pod = self.pods.remove(at);
        self.say(format!("{} is deleted", pod.name));
        drop(pod);
        self.list();
    }

    /// The kubelet forgets the pod, and gives its devices to the next; the container runs on.
    fn delete_by_force(&mut self) {
        let Some(at) = self.some_pod(true) else { return };
        let pod = self.pods.remove(at);
        self.say(format!("{} is deleted by force", pod.name));
        self.left.push(pod);
        self.list();
    }

    fn left_ends(&mut self) {
        if self.left.is_empty() {
            return;
        }
        let at = self.random.random_range(0..self.left.len());
        let pod = self.left.remove(at);
        self.say(format!("the container of {} ends", pod.name));
    }

    /// An init container is through: the main container of the pod gets the same devices.
    async fn init_ends(&mut self) {
        let Some(at) = self.some_pod(true) else { return };
        self.pods[at].container = None;
        let groups = self.pods[at].groups.clone();
        let ids: Vec<&str> = groups.iter().map(String::as_str).collect();
        let Ok(answer) = self.node.try_allocate(&ids).await else { return };
        self.pods[at].answer = answer;
        self.say(format!("{}'s init container is through", self.pods[at].name));
    }

    async fn kill_plugin(&mut self) {
        self.say("the plugin is killed");
        self.program.kill().unwrap();
        self.program.wait().unwrap();
        tokio::time::sleep(Duration::from_millis(self.random.random_range(0..150))).await;
        self.program = self.node.program();
    }

    /// It lists no pods until it has read its own records.
    async fn kubelet_restarts(&mut self) {
        self.say("the kubelet restarts");
        self.node.pods(&[]);
        self.node.start_kubelet();
        tokio::time::sleep(Duration::from_millis(self.random.random_range(0..150))).await;
        self.list();
    }

    /// Everybody is gone: all of it is free, and whoever comes gets it.
    async fn ends(&mut self) {
        self.pods.clear();
        self.left.clear();
        self.list();
        self.say("all are gone");
        let node = &self.node;
        let ids = node.healthy(GROUPS).await;
        until("all is given back", async || {
            (node.reservations().await.is_empty() && node.cdi().is_empty()).then_some(())
        })
        .await;
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        until("everything is allocated to one pod", async || node.try_allocate(&ids).await.ok())
            .await;
        node.pods(&[("last", &ids)]);
        until("the last pod starts", async || node.pre_start(&ids).await.ok()).await;
    }
}

/// Plays one; answers how many containers started, and how often one had to wait.
async fn history(seed: u64, careless: bool) -> Result<(usize, usize), String> {
    let mut history = History::begin(seed, careless).await;
    for _ in 0..STEPS {
        if let Err(fault) = history.step().await {
            return Err(format!("history {seed}: {fault}\n  {}", history.said.join("\n  ")));
        }
    }
    history.ends().await;
    Ok((history.starts, history.waits))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_history_gives_a_group_two_owners_or_leaves_one_behind() {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let all = async {
        let mut histories = JoinSet::new();
        for seed in 0..HISTORIES {
            let turns = Arc::clone(&turns);
            histories.spawn_local(async move {
                let _turn = turns.acquire_owned().await.unwrap();
                history(seed, false).await
            });
        }
        let (mut starts, mut waits) = (0, 0);
        while let Some(ended) = histories.join_next().await {
            match ended.unwrap() {
                Ok(counts) => (starts, waits) = (starts + counts.0, waits + counts.1),
                Err(fault) => panic!("{fault}"),
            }
        }
        println!("{HISTORIES} histories: {starts} containers started, {waits} had to wait");
        assert!(starts > 500 && waits > 200, "{starts} and {waits}: too little happens");
    };
    LocalSet::new().run_until(all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plugin_that_takes_no_right_is_found_out() {
    for seed in 0..40 {
        if let Err(fault) = history(seed, true).await {
            assert!(fault.contains(" runs") || fault.contains("not open"), "{fault}");
            return;
        }
    }
    panic!("40 histories, and nobody noticed");
}
