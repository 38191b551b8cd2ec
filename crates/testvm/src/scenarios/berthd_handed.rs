//! Deliveries `unbound` and `node`: an unprivileged process binds, or opens, by itself, and what it
//! had is nobody's once it is gone. Decided by bytes that a device moved, by errnos, by the nodes'
//! access lists and by sysfs.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use berth_uapi::Errno;
use serde_json::{Value, json};

use super::berthd_tools::{Before, is_free, is_refused, moves, opens_no_node, reserve, text};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        access::{self, Access},
        daemon::{Daemon, Options},
        holder::Holder,
        probe, sysfs,
        unpriv::{HOLDER_UID, STRANGER_UID},
        wait_for,
    },
    topology::{EDU_ROOT, PAIR_A, PAIR_B},
    wire::Capability::{self, Cdev, Intremap, Iommufd, Type1},
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_unbound", IOMMUFD, unbound).within(240),
    Scenario::new("berthd_unbound_pair", IOMMUFD, pair).within(240),
    Scenario::new("berthd_unbound_named", IOMMUFD, named).within(240),
    Scenario::new("berthd_unbound_restart", IOMMUFD, unbound_restart).within(240),
    Scenario::new("berthd_unbound_on_type1", TYPE1, on_type1),
    Scenario::new("berthd_node_iommufd", IOMMUFD, node_iommufd).within(240),
    Scenario::new("berthd_node_type1", TYPE1, node_type1).within(240),
    Scenario::new("berthd_node_restart", TYPE1, node_restart).within(240),
];

const IOMMUFD: &[Capability] = &[Capability::Daemon, Iommufd, Cdev, Type1, Intremap];
const TYPE1: &[Capability] = &[Capability::Daemon, Type1, Intremap];
const IOVA: u64 = 0x40_0000;

fn show(daemon: &Daemon, id: &str) -> Result<Value> {
    daemon.cli(&["reservation", "show", id])?.ok()
}

/// Waits for a state of the reservation, and gives the reservation.
pub(super) fn becomes(ctx: &Ctx, daemon: &Daemon, id: &str, state: &str) -> Result<Value> {
    wait_for(&format!("{id} to be {state}"), ctx.patience(), || {
        show(daemon, id).ok().filter(|shown| shown["state"] == state)
    })
}

/// The device takes a pattern in and brings it back, through memory that the holder maps.
pub(super) fn drives(holder: &mut Holder, device: &str, seed: u8) -> Result<()> {
    let memory = holder.memory(1)?;
    holder.map(memory, IOVA)?;
    moves(holder, device, memory, IOVA, seed)?;
    holder.unmap(IOVA, 4096)
}

fn words<'a>(backend: &'a str, delivery: &'a str) -> [&'a str; 8] {
    ["--device", EDU_ROOT, "--policy", "exclusive", "--backend", backend, "--delivery", delivery]
}

/// Nobody has the device, and the kernel refuses everybody but the daemon.
fn is_kept(device: &str) -> Result<()> {
    let stranger = probe::stranger(device);
    let busy = Err(Errno::BUSY);
    ensure!(stranger.open_group == busy, "{device}: {stranger:?}");
    ensure!(stranger.bind_cdev.is_none_or(|answer| answer == busy), "{device}: {stranger:?}");
    Ok(())
}

/// The whole life of a device that is handed over unbound.
fn unbound(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let daemon = Daemon::start(ctx)?;
    let id = reserve(&daemon, &words("iommufd", "unbound"))?;
    is_kept(EDU_ROOT)?;
    is_refused(&daemon.cli(&["attach", &id])?, "HOLDER_OWNS_DOMAIN", &["unbound"])?;
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    opens_no_node(&mut holder)?;
    let fetched = holder.fetch(&id)?;
    ensure!(fetched["delivery"] == "unbound" && fetched["backend"] == "iommufd", "{fetched}");
    ensure!(fetched["fds"][0]["kind"] == "cdev", "{fetched}");
    ensure!(fetched["fds"][0]["deviceId"].is_null(), "it is bound: {fetched}");
    let shown = show(&daemon, &id)?;
    ensure!(shown["state"] == "HANDED", "{shown}");
    ensure!(shown["claims"][0]["processes"][0]["pid"] == holder.pid(), "{shown}");
    let explained = daemon.cli(&["explain", EDU_ROOT])?.ok()?;
    let told = explained.to_string();
    ensure!(told.contains("not bound yet") && told.contains("nodes keep others out"), "{told}");
    // What keeps others out now is that they may not open a node, and nothing else.
    opens_no_node(&mut holder)?;
    let stranger = probe::stranger(EDU_ROOT);
    ensure!(stranger.open_group.is_ok(), "the hold is in the holder's way: {stranger:?}");

    ensure!(holder.bind(EDU_ROOT)? == 0, "its bind is refused");
    becomes(ctx, &daemon, &id, "HELD")?;
    ensure!(probe::stranger(EDU_ROOT).is_kept_out(), "{:?}", probe::stranger(EDU_ROOT));
    drives(&mut holder, EDU_ROOT, 11)?;
    is_refused(&daemon.cli(&["release", &id])?, "HOLDER_DRAINING", &[&holder.pid().to_string()])?;
    drives(&mut holder, EDU_ROOT, 23)?;

    holder.kill()?;
    becomes(ctx, &daemon, &id, "RESERVED")?;
    is_kept(EDU_ROOT)?;

    // One that dies with what it fetched, before it has bound anything.
    let mut early = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    early.fetch(&id)?;
    early.kill()?;
    becomes(ctx, &daemon, &id, "RESERVED")?;
    is_kept(EDU_ROOT)?;

    let mut next = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    next.fetch(&id)?;
    ensure!(next.bind(EDU_ROOT)? == 0, "the next one's bind is refused");
    drives(&mut next, EDU_ROOT, 37)?;
    next.close()?;
    opens_no_node(&mut next)?;
    let released = daemon.cli(&["release", &id])?.ok()?;
    ensure!(released["givenBack"][0]["baselineRestored"] == true, "{released}");
    before.is_back()?;
    is_free(EDU_ROOT)?;

    revoked(ctx, &daemon, "iommufd", "unbound")?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

/// A revoke ends the holder, and the device is nobody's.
fn revoked(ctx: &Ctx, daemon: &Daemon, backend: &str, delivery: &str) -> Result<()> {
    let id = reserve(daemon, &words(backend, delivery))?;
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    let fetched = holder.fetch(&id)?;
    match delivery {
        "unbound" => ensure!(holder.bind(EDU_ROOT)? == 0, "its bind is refused"),
        _ => ensure!(holder.open(EDU_ROOT, nodes(&fetched)?)? == 0, "it opens nothing"),
    }
    becomes(ctx, daemon, &id, "HELD")?;
    drives(&mut holder, EDU_ROOT, 53)?;
    let ended = daemon.cli(&["revoke", &id])?.ok()?;
    ensure!(ended["state"] == "RELEASED", "{ended}");
    ensure!(holder.memory(1).is_err(), "the holder still answers");
    is_free(EDU_ROOT)
}

/// Two devices of a group: one iommufd for both, taken one by one.
fn pair(ctx: &mut Ctx) -> Result<Outcome> {
    let before = [PAIR_A, PAIR_B].map(Before::of);
    let daemon = Daemon::start(ctx)?;
    let common = ["--policy", "group", "--backend", "iommufd", "--delivery", "unbound"];
    let of = |device| [&["--device", device][..], &common].concat();
    let first = reserve(&daemon, &of(PAIR_A))?;
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    holder.fetch(&first)?;
    let mut joined = of(PAIR_B);
    joined.extend(["--join", &first]);
    let second = reserve(&daemon, &joined)?;
    // The daemon kept out of the group meanwhile, or this were EBUSY.
    ensure!(holder.bind(PAIR_A)? == 0, "the bind of {PAIR_A} is refused");
    becomes(ctx, &daemon, &first, "HELD")?;
    ensure!(show(&daemon, &second)?["state"] == "RESERVED", "{second} is not handed over");
    holder.fetch(&second)?;
    ensure!(holder.bind(PAIR_B)? == 0, "the bind of {PAIR_B} is refused: another iommufd?");
    becomes(ctx, &daemon, &second, "HELD")?;
    let memory = holder.memory(1)?;
    holder.map(memory, IOVA)?;
    moves(&mut holder, PAIR_A, memory, IOVA, 11)?;
    moves(&mut holder, PAIR_B, memory, IOVA, 23)?;
    let group = daemon.cli(&["group", "show", PAIR_A])?.ok()?;
    ensure!(group["ownerCnt"] == 2, "{group}");
    holder.kill()?;
    for id in [&first, &second] {
        becomes(ctx, &daemon, id, "RESERVED")?;
    }
    is_kept(PAIR_A)?;
    daemon.cli(&["release", &second])?.ok()?;
    daemon.cli(&["release", &first])?.ok()?;
    before.iter().try_for_each(Before::is_back)?;
    is_free(PAIR_A)?;
    Ok(Outcome::Pass)
}

/// A process that is named becomes the holder; whose it may be depends on who names it.
fn named(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let daemon = Daemon::start_with(ctx, with_operator(ctx, 0)?)?;
    let id = reserve(&daemon, &words("iommufd", "unbound"))?;
    let mut launcher = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    let mut vmm = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    let mut stranger = Holder::start(ctx, STRANGER_UID, daemon.handover())?;
    for (who, process, reason) in [
        (&mut launcher, stranger.pid(), "INVALID_ARGUMENT"),
        (&mut stranger, vmm.pid(), "NOT_FOR_YOU"),
    ] {
        let told = who.fetch_for(&id, process)?;
        ensure!(told["refusal"]["reason"] == reason, "{told}");
    }
    let told = launcher.fetch_for(&id, vmm.pid())?;
    ensure!(told["ok"] == true, "{told}");
    let shown = show(&daemon, &id)?;
    ensure!(shown["claims"][0]["processes"][0]["pid"] == vmm.pid(), "{shown}");
    // Who fetched binds as well as who was named: it is the holder's death that counts.
    ensure!(launcher.bind(EDU_ROOT)? == 0, "the bind is refused");
    becomes(ctx, &daemon, &id, "HELD")?;
    drives(&mut launcher, EDU_ROOT, 11)?;
    vmm.kill()?;
    let left = becomes(ctx, &daemon, &id, "DRAINING")?;
    ensure!(left["claims"][0]["processes"][0]["pid"] == launcher.pid(), "{left}");
    drives(&mut launcher, EDU_ROOT, 23)?;
    launcher.kill()?;
    becomes(ctx, &daemon, &id, "RESERVED")?;

    // Nothing of what was fetched reaches the one that was named.
    let mut launcher = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    let vmm = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    launcher.fetch_for(&id, vmm.pid())?;
    launcher.kill()?;
    becomes(ctx, &daemon, &id, "RESERVED")?;
    is_kept(EDU_ROOT)?;

    // Root's process may, as the listener says so of its uid; and for nobody but a named process.
    let request = json!({"op": "fetch", "reservation": id});
    let alone = crate::guest::handover::ask(&daemon.handover(), &request, &[])?;
    ensure!(alone.json["refusal"]["reason"] == "NOT_FOR_YOU", "{}", alone.json);
    let fetched = crate::guest::handover::ask_for(&daemon.handover(), &request, vmm.pid())?;
    ensure!(fetched.json["ok"] == true && fetched.fds.len() == 2, "{}", fetched.json);
    let shown = show(&daemon, &id)?;
    ensure!(shown["claims"][0]["processes"][0]["pid"] == vmm.pid(), "{shown}");
    drop((fetched, vmm));
    becomes(ctx, &daemon, &id, "RESERVED")?;
    daemon.cli(&["release", &id])?.ok()?;
    before.is_back()?;
    is_free(EDU_ROOT)?;
    Ok(Outcome::Pass)
}

/// A daemon whose hand-over socket has an operator.
pub(super) fn with_operator(ctx: &Ctx, uid: u32) -> Result<Options> {
    let file = ctx.dir().join("berthd.toml");
    let socket = ctx.dir().join("berthd/handover.sock");
    let text = format!(
        "[[listen]]\nserve = \"handover\"\npath = \"{}\"\nrole = \"operator\"\n\
         [[listen.rule]]\nuid = {uid}\nrole = \"operator\"\n",
        socket.display()
    );
    fs::write(&file, text)?;
    let arguments = vec!["--config".into(), file.into()];
    Ok(Options { arguments, handover_in_file: true, ..Options::default() })
}

/// The daemon is killed while the holder has bound: that notices nothing, and what is its is its.
fn unbound_restart(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let mut daemon = Daemon::start(ctx)?;
    let id = reserve(&daemon, &words("iommufd", "unbound"))?;
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    holder.fetch(&id)?;
    daemon.kill()?;
    daemon.start_again()?;
    ensure!(show(&daemon, &id)?["state"] == "HANDED", "{}", show(&daemon, &id)?);
    ensure!(holder.bind(EDU_ROOT)? == 0, "the daemon came between");
    becomes(ctx, &daemon, &id, "HELD")?;
    drives(&mut holder, EDU_ROOT, 11)?;
    let told = holder.ask(json!({"op": "fetch", "reservation": id}), None)?;
    ensure!(told["refusal"]["reason"] == "DAEMON_RESTARTED", "{told}");
    daemon.kill()?;
    drives(&mut holder, EDU_ROOT, 23)?;
    daemon.start_again()?;
    ensure!(show(&daemon, &id)?["state"] == "HELD", "{}", show(&daemon, &id)?);
    drives(&mut holder, EDU_ROOT, 37)?;
    daemon.kill()?;
    holder.kill()?;
    daemon.start_again()?;
    ensure!(show(&daemon, &id)?["state"] == "RESERVED", "{}", show(&daemon, &id)?);
    is_kept(EDU_ROOT)?;
    let mut next = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    next.fetch(&id)?;
    ensure!(next.bind(EDU_ROOT)? == 0, "the next one's bind is refused");
    drives(&mut next, EDU_ROOT, 53)?;
    next.kill()?;
    becomes(ctx, &daemon, &id, "RESERVED")?;
    daemon.cli(&["release", &id])?.ok()?;
    before.is_back()?;
    is_free(EDU_ROOT)?;
    Ok(Outcome::Pass)
}

/// What a container can't is said, with the way out.
fn on_type1(ctx: &mut Ctx) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let daemon = Daemon::start(ctx)?;
    let uid = format!("uid:{HOLDER_UID}");
    let mut all = vec!["reserve", "--holder", "vm1", "--for", &uid];
    all.extend(words("type1", "unbound"));
    let says = ["cdev", "EOPNOTSUPP", "--delivery node"];
    is_refused(&daemon.cli(&all)?, "BACKEND_CANNOT", &says)?;
    before.is_back()?;
    Ok(Outcome::Pass)
}

fn node_iommufd(ctx: &mut Ctx) -> Result<Outcome> {
    node(ctx, "iommufd")
}

fn node_type1(ctx: &mut Ctx) -> Result<Outcome> {
    node(ctx, "type1")
}

/// The paths that an answer names: the device's or group's, then the context's.
fn nodes(fetched: &Value) -> Result<Vec<PathBuf>> {
    let nodes = fetched["nodes"].as_array().context("no nodes")?;
    ensure!(nodes.len() == 2 && fetched["fds"] == json!([]), "{fetched}");
    nodes.iter().map(|node| Ok(PathBuf::from(text(node, "path")?))).collect()
}

/// The nodes as they are: none of them names anybody.
fn closed(nodes: &[PathBuf]) -> Result<Vec<Access>> {
    let found: Vec<Access> = nodes.iter().map(|node| access::of(node)).collect::<Result<_>>()?;
    ensure!(found.iter().all(|access| !access.listed), "{nodes:?}: {found:?}");
    Ok(found)
}

pub(super) fn paths_of(backend: &str) -> Result<Vec<PathBuf>> {
    if backend == "iommufd" {
        let cdev = probe::cdev_path(EDU_ROOT).context("no cdev")?;
        return Ok(vec![cdev, PathBuf::from("/dev/iommu")]);
    }
    let group = sysfs::group(EDU_ROOT).context("no group")?;
    Ok(vec![PathBuf::from("/dev/vfio").join(group), PathBuf::from("/dev/vfio/vfio")])
}

/// The holder's user, and nobody else, is on the lists of the nodes that aren't open to all.
fn is_let_in(nodes: &[PathBuf], before: &[Access]) -> Result<()> {
    for (node, before) in nodes.iter().zip(before) {
        let now = access::of(node)?;
        println!("{}: {before:?}, and now {now:?}", node.display());
        let users = if before.mode == 0o666 { Vec::new() } else { vec![(HOLDER_UID, 6)] };
        ensure!(now.users == users && now.owner == before.owner, "{}: {now:?}", node.display());
    }
    Ok(())
}

/// The whole life of a device that its holder opens by path.
fn node(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let before = Before::of(EDU_ROOT);
    let daemon = Daemon::start(ctx)?;
    let id = reserve(&daemon, &words(backend, "node"))?;
    is_kept(EDU_ROOT)?;
    let paths = paths_of(backend)?;
    let shut = closed(&paths)?;
    let denied = Errno::ACCESS.raw_os_error();
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    let mut stranger = Holder::start(ctx, STRANGER_UID, daemon.handover())?;
    opens_no_node(&mut holder)?;
    ensure!(holder.open(EDU_ROOT, paths.clone())? == denied, "it opens before it fetched");

    let fetched = holder.fetch(&id)?;
    ensure!(nodes(&fetched)? == paths, "{fetched}");
    ensure!(show(&daemon, &id)?["state"] == "HANDED", "{}", show(&daemon, &id)?);
    is_let_in(&paths, &shut)?;
    ensure!(stranger.open(EDU_ROOT, paths.clone())? == denied, "a stranger opens it");
    ensure!(holder.open(EDU_ROOT, paths.clone())? == 0, "the holder doesn't open it");
    becomes(ctx, &daemon, &id, "HELD")?;
    ensure!(probe::stranger(EDU_ROOT).is_kept_out(), "{:?}", probe::stranger(EDU_ROOT));
    drives(&mut holder, EDU_ROOT, 11)?;
    is_refused(&daemon.cli(&["release", &id])?, "HOLDER_DRAINING", &[&holder.pid().to_string()])?;
    is_let_in(&paths, &shut)?;
    drives(&mut holder, EDU_ROOT, 23)?;

    // Its user's next process is one like any other.
    let mut next = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    holder.kill()?;
    becomes(ctx, &daemon, &id, "RESERVED")?;
    ensure!(closed(&paths)? == shut, "{:?}", closed(&paths)?);
    ensure!(next.open(EDU_ROOT, paths.clone())? == denied, "it opens after the holder's death");
    is_kept(EDU_ROOT)?;

    next.fetch(&id)?;
    ensure!(next.open(EDU_ROOT, paths.clone())? == 0, "the next one doesn't open it");
    drives(&mut next, EDU_ROOT, 37)?;
    next.close()?;
    let released = daemon.cli(&["release", &id])?.ok()?;
    ensure!(released["givenBack"][0]["baselineRestored"] == true, "{released}");
    let after = next.open(EDU_ROOT, paths.clone())?;
    ensure!([denied, Errno::NOENT.raw_os_error()].contains(&after), "it opens: {after}");
    before.is_back()?;
    is_free(EDU_ROOT)?;

    revoked(ctx, &daemon, backend, "node")?;
    before.is_back()?;
    ensure!(access::of(&paths[1])? == shut[1], "{:?}", access::of(&paths[1])?);
    Ok(Outcome::Pass)
}

/// Lists stay over a restart while their holder lives, and go at the next start when it is gone.
fn node_restart(ctx: &mut Ctx) -> Result<Outcome> {
    let backend = if ctx.has(Iommufd) && ctx.has(Cdev) { "iommufd" } else { "type1" };
    let before = Before::of(EDU_ROOT);
    let mut daemon = Daemon::start(ctx)?;
    let id = reserve(&daemon, &words(backend, "node"))?;
    let paths = paths_of(backend)?;
    let shut = closed(&paths)?;
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    holder.fetch(&id)?;
    daemon.kill()?;
    is_let_in(&paths, &shut)?;
    daemon.start_again()?;
    ensure!(show(&daemon, &id)?["state"] == "HANDED", "{}", show(&daemon, &id)?);
    is_let_in(&paths, &shut)?;
    ensure!(holder.open(EDU_ROOT, paths.clone())? == 0, "the holder doesn't open it");
    becomes(ctx, &daemon, &id, "HELD")?;
    drives(&mut holder, EDU_ROOT, 11)?;
    daemon.kill()?;
    holder.kill()?;
    is_let_in(&paths, &shut)?;
    daemon.start_again()?;
    ensure!(show(&daemon, &id)?["state"] == "RESERVED", "{}", show(&daemon, &id)?);
    ensure!(closed(&paths)? == shut, "{:?}", closed(&paths)?);
    is_kept(EDU_ROOT)?;
    let mut next = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    let denied = Errno::ACCESS.raw_os_error();
    ensure!(next.open(EDU_ROOT, paths.clone())? == denied, "it opens after the holder's death");

    // What another process of the user opened stays open after the holder's end, and nobody of the
    // user opens it anew: neither then nor after a restart.
    let mut holder = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    holder.fetch(&id)?;
    ensure!(next.open(EDU_ROOT, paths.clone())? == 0, "the user's other process doesn't open it");
    becomes(ctx, &daemon, &id, "HELD")?;
    holder.kill()?;
    let left = becomes(ctx, &daemon, &id, "DRAINING")?;
    ensure!(left["claims"][0]["processes"][0]["pid"] == next.pid(), "{left}");
    ensure!(closed(&paths)? == shut, "{:?}", closed(&paths)?);
    daemon.kill()?;
    daemon.start_again()?;
    ensure!(show(&daemon, &id)?["state"] == "DRAINING", "{}", show(&daemon, &id)?);
    ensure!(closed(&paths)? == shut, "{:?}", closed(&paths)?);
    drives(&mut next, EDU_ROOT, 23)?;
    next.kill()?;
    becomes(ctx, &daemon, &id, "RESERVED")?;
    is_kept(EDU_ROOT)?;
    daemon.cli(&["release", &id])?.ok()?;
    before.is_back()?;
    is_free(EDU_ROOT)?;
    Ok(Outcome::Pass)
}
