//! A process that opened a group or a cdev by itself, before and beside Berth: named, adopted over a
//! `kill -9` of the daemon, and what it had given back when it dies. Decided by bytes that the
//! device moves for it all the while, and by who gets the device past `berthd`.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    berthd_alive::{IOMMUFD, TYPE1, name_of},
    berthd_handed::{becomes, drives, paths_of},
    berthd_tools::{Before, is_free, is_refused, text},
};
use crate::{
    guest::{
        Ctx, Outcome, Scenario,
        daemon::Daemon,
        holder::Holder,
        probe, sysfs,
        unpriv::{HOLDER_UID, STRANGER_UID},
    },
    topology::EDU_ROOT,
};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario::new("berthd_adopt_iommufd", IOMMUFD, |ctx| adopted(ctx, "iommufd")).within(240),
    Scenario::new("berthd_adopt_type1", TYPE1, |ctx| adopted(ctx, "type1")).within(240),
];

/// Nodes that belong to a user, as a toolstack gives them to its VMM; back to whom they were.
struct Given(Vec<(PathBuf, u32)>);

impl Given {
    fn to(uid: u32, paths: &[PathBuf]) -> Result<Self> {
        let mut given = Vec::new();
        for path in paths {
            let owner = fs::metadata(path).with_context(|| path.display().to_string())?.uid();
            chown(path, Some(uid), None)?;
            given.push((path.clone(), owner));
        }
        Ok(Self(given))
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        for (path, owner) in &self.0 {
            if let Err(error) = chown(path, Some(*owner), None) {
                println!("{} stays with another user: {error}", path.display());
            }
        }
    }
}

fn adopted(ctx: &Ctx, backend: &str) -> Result<Outcome> {
    let first = sysfs::driver(EDU_ROOT);
    sysfs::to_vfio(EDU_ROOT)?;
    let before = Before::of(EDU_ROOT);
    let paths = paths_of(backend)?;
    let given = Given::to(HOLDER_UID, &paths)?;
    let mut daemon = Daemon::start(ctx)?;
    let mut owner = Holder::start(ctx, HOLDER_UID, daemon.handover())?;
    ensure!(owner.open(EDU_ROOT, paths)? == 0, "it opens nothing");
    drop(given);
    drives(&mut owner, EDU_ROOT, 11)?;
    let pid = owner.pid().to_string();
    // Unknown to the daemon that is there; known to the next from its start.
    daemon.kill()?;
    daemon.start_again()?;
    is_named(&daemon, &pid, &name_of(owner.pid())?)?;
    refuses_others(ctx, &daemon, &pid)?;

    let words = ["adopt", "--pid", &pid, "--device", EDU_ROOT, "--holder", "vm1"];
    let adopted = daemon.cli(&words)?.ok()?;
    let id = text(&adopted, "id")?;
    ensure!(
        adopted["delivery"] == "NODE" && adopted["backend"] == backend.to_uppercase(),
        "{adopted}"
    );
    becomes(ctx, &daemon, &id, "HELD")?;
    drives(&mut owner, EDU_ROOT, 12)?;
    daemon.kill()?;
    drives(&mut owner, EDU_ROOT, 13)?;
    daemon.start_again()?;
    becomes(ctx, &daemon, &id, "HELD")?;
    drives(&mut owner, EDU_ROOT, 14)?;
    let other = ["reserve", "--holder", "vm2", "--device", EDU_ROOT, "--policy", "exclusive"];
    is_refused(&daemon.cli(&other)?, "GROUP_OWNED", &[&id])?;
    let stranger = probe::stranger(EDU_ROOT);
    ensure!(stranger.is_kept_out(), "a stranger gets it: {stranger:?}");

    owner.kill()?;
    becomes(ctx, &daemon, &id, "RELEASED")?;
    let ended = daemon.cli(&["reservation", "show", &id])?.ok()?;
    ensure!(ended["givenBack"][0]["baselineRestored"] == true, "{ended}");
    ensure!(ended["givenBack"][0]["driver"] == "vfio-pci", "{ended}");
    before.is_back()?;
    is_free(EDU_ROOT)?;
    daemon.stop()?;
    sysfs::to_host(EDU_ROOT, first.as_deref())?;
    Ok(Outcome::Pass)
}

/// Who has it, by the record.
fn is_named(daemon: &Daemon, pid: &str, name: &str) -> Result<()> {
    let shown = daemon.cli(&["group", "show", EDU_ROOT])?.ok()?;
    let process = &shown["owner"]["processes"][0];
    ensure!(shown["ownership"] == "FOREIGN", "{shown}");
    ensure!(process["pid"].as_u64() == pid.parse().ok() && process["name"] == name, "{process}");
    let words = ["reserve", "--holder", "vm2", "--device", EDU_ROOT, "--policy", "exclusive"];
    is_refused(&daemon.cli(&words)?, "FOREIGN_OWNER", &[pid, name, "berth adopt"])
}

/// A process without the group open, one that is dead, and none.
fn refuses_others(ctx: &Ctx, daemon: &Daemon, owner: &str) -> Result<()> {
    let adopt = |pid: u32| {
        let pid = pid.to_string();
        daemon.cli(&["adopt", "--pid", &pid, "--device", EDU_ROOT, "--holder", "vm1"])
    };
    let mut idle = Holder::start(ctx, STRANGER_UID, daemon.handover())?;
    is_refused(&adopt(idle.pid())?, "FOREIGN_OWNER", &[owner])?;
    let dead = idle.pid();
    idle.kill()?;
    let answer = adopt(dead)?;
    ensure!(
        answer.code == Some(4) && answer.stderr.contains("no such process"),
        "{}",
        answer.stderr
    );
    Ok(())
}
