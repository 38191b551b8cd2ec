//! Pods with real devices: the plugin that is shipped, and a kubelet that gives a device to the next pod
//! while the container of the last one still runs. Decided by bytes that the device moved for
//! processes without rights, by who else can open it, and by sysfs.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::{
    berthd_handed::with_operator,
    berthd_tools::{Before, is_free, moves, opens_no_node},
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        cgroup::Cgroups,
        daemon::Daemon,
        holder::Holder,
        kubelet::{Admitted, Node, Root},
        probe,
        unpriv::{HOLDER_UID, STRANGER_UID},
        wait_for,
    },
    topology::EDU_SPARE,
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_kubelet_iommufd", IOMMUFD, iommufd).within(400),
    Scenario::new("berthd_kubelet_type1", TYPE1, type1).within(400),
];

const IOMMUFD: &[Capability] = &[Capability::Kubelet, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Kubelet, Type1, Intremap];
const IOVA: u64 = 0x100_0000;

fn iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    each(ctx, "iommufd", &["node", "unbound", "bound"])
}

fn type1(ctx: &mut Ctx) -> Result<Outcome> {
    each(ctx, "type1", &["node", "bound"])
}

fn each(ctx: &Ctx, backend: &str, deliveries: &[&str]) -> Result<Outcome> {
    let before = Before::of(EDU_SPARE);
    let daemon = Daemon::start_with(ctx, with_operator(ctx, 0)?)?;
    for delivery in deliveries {
        println!("--- {delivery}");
        two_pods(ctx, &daemon, backend, delivery).with_context(|| format!("by {delivery}"))?;
        before.is_back()?;
        is_free(EDU_SPARE)?;
    }
    Ok(Outcome::Pass)
}

/// The container of a pod that was deleted by force runs on; the next pod waits for its end.
fn two_pods(ctx: &Ctx, daemon: &Daemon, backend: &str, delivery: &str) -> Result<()> {
    let resource = format!(
        "address = \"{EDU_SPARE}\"\ntake_from_host = true\npolicy = \"exclusive\"\n\
         backend = \"{backend}\"\ndelivery = \"{delivery}\""
    );
    let mut node = Node::start(ctx, daemon, delivery, &resource)?;
    let mut cgroups = Cgroups::below_own()?;
    let id = node.device(ctx)?;

    let old = node.admit("old", &id)?;
    node.starts(ctx, &id)?;
    if delivery != "node" {
        // What is to come by the socket keeps everybody out until then.
        let stranger = probe::stranger(EDU_SPARE);
        ensure!(stranger.is_kept_out(), "before the fetch: {stranger:?}");
    }
    let mut first = Pod::run(ctx, &node, &old, HOLDER_UID)?;
    cgroups.put(first.process.pid(), "old")?;
    first.drives(21)?;

    let new = node.admit("new", &id)?;
    let before = resets(daemon)?;
    let busy = node.pre_start(&id)?.err().context("two pods have the device")?;
    ensure!(busy.starts_with("busy: held by pod default/old"), "{busy}");
    ensure!(busy.contains(&format!("pid {}", first.process.pid())), "{busy}");
    moves(&mut first.process, EDU_SPARE, first.memory, IOVA, 22)?;
    ensure!(probe::stranger(EDU_SPARE).is_kept_out(), "somebody else got the device");

    first.process.kill()?;
    drop(first);
    node.starts(ctx, &id)?;
    ensure!(resets(daemon)? > before, "it was not reset between the pods");
    let mut second = Pod::run(ctx, &node, &new, STRANGER_UID)?;
    cgroups.put(second.process.pid(), "new")?;
    second.drives(23)?;

    second.process.kill()?;
    drop(second);
    node.list(&[])?;
    wait_for("the device to be given back", ctx.patience(), || {
        let left = daemon.cli(&["reservation", "list"]).ok()?.ok().ok()?;
        let list = left.as_array().cloned().or_else(|| left["reservations"].as_array().cloned());
        (list.is_none_or(|list| list.is_empty()) && node.cdi_files().is_empty()).then_some(())
    })
}

/// How many resets of the device are on record that were verified.
fn resets(daemon: &Daemon) -> Result<usize> {
    let history = daemon.cli(&["history", EDU_SPARE])?.ok()?.to_string();
    Ok(history.matches("VERIFIED").count())
}

/// A container: its root, and its only process, of a user without rights.
struct Pod {
    process: Holder,
    memory: usize,
    how: How,
    // After the process.
    _root: Root,
}

/// How the process comes to the device.
enum How {
    Nodes(Vec<PathBuf>),
    Socket(String),
}

impl Pod {
    fn run(ctx: &Ctx, node: &Node, admitted: &Admitted, uid: u32) -> Result<Self> {
        let root = node.container(admitted, uid)?;
        let (socket, how) = match admitted.env("BERTH_HANDOVER") {
            Ok(socket) => {
                ensure!(root.nodes.is_empty(), "nodes beside a socket: {:?}", root.nodes);
                let reservation = admitted.env("BERTH_RESERVATION")?.to_owned();
                (root.at(socket), How::Socket(reservation))
            }
            Err(_) => {
                // The device's own node first, as the holder takes them.
                let mut nodes = root.nodes.clone();
                nodes.sort_by_key(|node| node.ends_with("/vfio") || node.ends_with("/iommu"));
                let nodes = nodes.iter().map(|node| root.at(node)).collect();
                (root.at("/nothing"), How::Nodes(nodes))
            }
        };
        let mut process = Holder::start_with_env(ctx, uid, socket, &admitted.envs)?;
        // Those of the host are not for containers.
        opens_no_node(&mut process)?;
        let memory = process.memory(1)?;
        Ok(Self { process, memory, how, _root: root })
    }

    /// Comes to the device, and has it move bytes.
    fn drives(&mut self, seed: u8) -> Result<()> {
        match &self.how {
            How::Nodes(nodes) => {
                let errno = self.process.open(EDU_SPARE, nodes.clone())?;
                ensure!(errno == 0, "a node of the container's: errno {errno}");
            }
            How::Socket(reservation) => {
                let fetched = self.process.fetch(reservation)?;
                let fds = fetched["fds"].as_array().context("no descriptors")?;
                if fds.iter().any(|one| one["kind"] == "cdev") {
                    let errno = self.process.bind(EDU_SPARE)?;
                    ensure!(errno == 0, "the cdev that came: errno {errno}");
                }
            }
        }
        self.process.map(self.memory, IOVA)?;
        moves(&mut self.process, EDU_SPARE, self.memory, IOVA, seed)
    }
}
