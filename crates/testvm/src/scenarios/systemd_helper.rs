//! A helper that systemd started: what it may, and who may ask it.

use std::{fs, path::Path};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::{process::Uid, thread::set_thread_res_uid};
use serde_json::json;

use super::systemd::{BASE, uid_of};
use crate::{
    guest::{
        Ctx, Outcome, Scenario, handover, sysfs,
        systemd::{Installed, RUN_DIR, cgroup_of, drop_in, helpers, status, systemctl},
        unpriv::{HOLDER_UID, STRANGER_UID},
        wait_for,
    },
    topology::EDU_ROOT,
};

pub(super) const SCENARIOS: &[Scenario] =
    &[Scenario::new("systemd_helper_strangers", BASE, helper_strangers)];

const UNIT: &str = "berth-helper.socket";

/// What a helper is while it waits for its request: root with five capabilities, in its own cgroup.
pub(super) fn one_helper(ctx: &Ctx) -> Result<()> {
    const CAPABILITIES: [u32; 5] = [2, 5, 16, 19, 24];
    let socket = Path::new(RUN_DIR).join("helper.sock");
    // The one that `berthd` has waiting for its next act is not ours.
    let others: Vec<u32> = helpers().into_iter().map(|it| it.pid).collect();
    let connection = handover::connect_to(&socket)?;
    let ready = || {
        helpers().into_iter().filter(|it| !others.contains(&it.pid)).find(|it| {
            fs::read_link(format!("/proc/{}/exe", it.pid))
                .is_ok_and(|exe| exe == Path::new("/usr/libexec/berth/berth-helper"))
        })
    };
    let helper = wait_for("a helper", ctx.patience(), ready)?;
    let cgroup = cgroup_of(helper.pid)?;
    ensure!(cgroup.ends_with(&helper.unit) && helper.unit.starts_with("berth-helper@"), "{cgroup}");
    let wanted: u64 = CAPABILITIES.iter().map(|bit| 1_u64 << bit).sum();
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let found = u64::from_str_radix(&status(helper.pid, set)?, 16)?;
        ensure!(found == wanted, "{set} is {found:#x}, not {wanted:#x}");
    }
    ensure!(status(helper.pid, "NoNewPrivs")? == "1", "it may gain privileges");
    ctx.say(format!("{} is process {} in {cgroup}", helper.unit, helper.pid));
    drop(connection);
    let ended = || helpers().iter().all(|it| it.pid != helper.pid).then_some(());
    wait_for("the helper to end without a request", ctx.patience(), ended)
}

/// Nobody but `berthd` and root is served: the socket's mode keeps others out, and where that was
/// changed, the helper does.
fn helper_strangers(ctx: &mut Ctx) -> Result<Outcome> {
    let _berth = Installed::fresh(ctx, "")?;
    let socket = Path::new(RUN_DIR).join("helper.sock");
    let attribute = sysfs::device_dir(EDU_ROOT).join("driver_override");
    let text = || fs::read_to_string(&attribute);
    let before = text()?;
    let act = json!({"verb": "override", "device": EDU_ROOT, "driver": "vfio-pci"});
    let request = json!({"v": 1, "act": act});
    let asked_by = |uid: u32| as_uid(uid, || handover::ask(&socket, &request, &[]));

    systemctl(&["start", UNIT])?;
    for uid in [STRANGER_UID, HOLDER_UID] {
        let refused = format!("{:#}", asked_by(uid).err().context("a stranger may connect")?);
        ensure!(refused.contains("Permission denied"), "{refused}");
    }
    systemctl(&["stop", UNIT])?;
    drop_in(UNIT, "[Socket]\nSocketMode=0666\n")?;
    systemctl(&["start", UNIT])?;
    let answer = asked_by(STRANGER_UID)?.json.to_string();
    ensure!(answer.contains(&format!("uid {STRANGER_UID} may not ask")), "{answer}");
    ensure!(text()? == before, "the stranger's act was done");
    ctx.say(answer);
    for uid in [uid_of("berth")?, 0] {
        let answer = asked_by(uid)?.json.to_string();
        ensure!(answer.contains("\"ok\""), "uid {uid}: {answer}");
        ensure!(text()?.trim() == "vfio-pci", "uid {uid}: the act was not done");
        fs::write(&attribute, "\n")?;
    }
    Ok(Outcome::Pass)
}

/// Does something as another user: on a thread of its own, since that is what has a uid.
fn as_uid<T: Send>(uid: u32, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let user = Uid::from_raw(uid);
            set_thread_res_uid(user, user, user)?;
            work()
        });
        thread.join().map_err(|_| anyhow!("the thread of uid {uid} panicked"))?
    })
}
