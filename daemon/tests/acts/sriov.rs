//! SR-IOV over the real ledger and its file: each change is done or undone, wherever it is cut off.

use std::sync::Arc;

use berth_host::{
    Host,
    sim::{Fault, SimHost, Site},
};
use berth_ownership::{Command, DeviceId, Sriov, SriovTo};
use rustix::io::Errno;

use crate::{
    crash::Crash,
    ledger::{Core, start},
    world::at,
};

const PF: &str = "0000:3b:00.0";
/// As the machine comes up.
const BOOT: Sriov = Sriov { vfs: 8, autoprobe: true };
const FOUR: Sriov = Sriov { vfs: 4, autoprobe: false };
const NONE: Sriov = Sriov { vfs: 0, autoprobe: true };

fn machine() -> SimHost {
    SimHost::builtin("sriov-nic").unwrap()
}

fn now(sim: &SimHost) -> Sriov {
    let facts = sim.device(at(PF)).unwrap();
    let vfs = u16::try_from(facts.virtual_functions.len()).unwrap();
    Sriov { vfs, autoprobe: facts.sriov_autoprobe }
}

fn set(sim: &SimHost, to: SriovTo) -> Command {
    Command::SriovSet { device: PF.into(), to, from: now(sim) }
}

/// The functions on record, which must be those that the machine has.
fn check(core: &Core, sim: &SimHost, place: &str) {
    let snapshot = core.snapshot();
    assert!(snapshot.intents.is_empty(), "{place}: {:?}", snapshot.intents);
    berth_ownership::invariants::check(&snapshot.state).unwrap();
    sim.check().unwrap_or_else(|broken| panic!("{place}: {broken}"));
    let there = sim.device(at(PF)).unwrap().virtual_functions;
    let mut there: Vec<DeviceId> = there.iter().map(|at| at.to_string().as_str().into()).collect();
    there.sort();
    let physical: DeviceId = PF.into();
    let known = snapshot.state.virtual_functions(&physical);
    let mut known: Vec<DeviceId> = known.map(|device| device.facts.id.clone()).collect();
    known.sort();
    assert_eq!(known, there, "{place}");
    let record = snapshot.state.device(&PF.into()).unwrap();
    assert_eq!(record.sriov_op, None, "{place}");
    let before = record.sriov_baseline.as_ref().map(|before| before.was);
    assert_eq!(before, (now(sim) != BOOT).then_some(BOOT), "{place}: {}", now(sim));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_made_undone_and_survives_the_process() {
    let sim = machine();
    let dir = tempfile::tempdir().unwrap();
    let crash = Arc::new(Crash::default());
    let core = start(&sim, &crash, dir.path()).await;
    core.order(set(&sim, SriovTo::Vfs(4))).await.unwrap();
    assert_eq!(now(&sim), FOUR);
    check(&core, &sim, "set 4");
    let drivers = sim.scan().unwrap().devices;
    let theirs = drivers.iter().filter(|it| it.physical_function.is_some());
    assert!(theirs.clone().all(|it| it.driver.is_none()), "{theirs:?}");
    core.end().await;
    let core = start(&sim, &crash, dir.path()).await;
    check(&core, &sim, "after the restart");
    core.order(set(&sim, SriovTo::Vfs(0))).await.unwrap();
    assert_eq!(now(&sim), NONE, "host drivers are offered functions again");
    check(&core, &sim, "set 0");
    core.order(set(&sim, SriovTo::Baseline)).await.unwrap();
    assert_eq!(now(&sim), BOOT);
    check(&core, &sim, "restore");
    core.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_anywhere_leaves_the_functions_asked_for_or_those_before() {
    let mut points = 0;
    for (ready, to, wanted) in [
        (None, SriovTo::Vfs(4), FOUR),
        (Some(SriovTo::Vfs(4)), SriovTo::Vfs(0), NONE),
        (Some(SriovTo::Vfs(4)), SriovTo::Baseline, BOOT),
    ] {
        let mut point = 1;
        while crashes(ready, to, wanted, point).await {
            point += 1;
        }
        points += point;
    }
    println!("crashed at {points} points");
    assert!(points > 20, "{points}");
}

/// False once the change came to its end without reaching the point.
async fn crashes(ready: Option<SriovTo>, to: SriovTo, wanted: Sriov, point: u64) -> bool {
    let sim = machine();
    let dir = tempfile::tempdir().unwrap();
    let crash = Arc::new(Crash::default());
    let core = start(&sim, &crash, dir.path()).await;
    if let Some(ready) = ready {
        core.order(set(&sim, ready)).await.unwrap();
    }
    let before = now(&sim);
    crash.arm(point);
    let _ = core.order(set(&sim, to)).await;
    let crashed = crash.happened();
    core.end().await;
    crash.arm(0);
    let core = start(&sim, &crash, dir.path()).await;
    let place = format!("{to:?}, crash {point}: {}", crash.place());
    check(&core, &sim, &place);
    assert!([before, wanted].contains(&now(&sim)), "{place}: {}", now(&sim));
    assert!(crashed || now(&sim) == wanted, "{place}: {}", now(&sim));
    core.end().await;
    crashed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_fails_is_undone_and_told_with_its_errno() {
    for (skip, errno, word) in [
        (0, Errno::NOENT, "makes no virtual functions (no sriov_configure)"),
        (1, Errno::OPNOTSUPP, "makes no virtual functions (no sriov_configure)"),
        (0, Errno::BUSY, "(os error 16)"),
        (1, Errno::NOMEM, "(os error 12)"),
    ] {
        let sim = machine();
        let dir = tempfile::tempdir().unwrap();
        let core = start(&sim, &Arc::default(), dir.path()).await;
        sim.fault(Fault::at(Site::Sriov).errno(errno).skip(skip));
        let why = core.order(set(&sim, SriovTo::Vfs(4))).await.unwrap_err();
        assert!(why.contains(word) && why.contains(PF), "{why}");
        assert_eq!(now(&sim), BOOT, "{why}");
        check(&core, &sim, &why);
        sim.clear_faults();
        core.order(set(&sim, SriovTo::Vfs(4))).await.unwrap();
        check(&core, &sim, "without the fault");
        core.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_undone_either_is_still_known() {
    let sim = machine();
    let dir = tempfile::tempdir().unwrap();
    let core = start(&sim, &Arc::default(), dir.path()).await;
    sim.fault(Fault::at(Site::Sriov).errno(Errno::NOMEM).skip(1).times(2));
    core.order(set(&sim, SriovTo::Vfs(4))).await.unwrap_err();
    assert_eq!(now(&sim), NONE);
    check(&core, &sim, "neither the one nor the other");
    core.order(set(&sim, SriovTo::Baseline)).await.unwrap();
    assert_eq!(now(&sim), BOOT);
    check(&core, &sim, "restored by hand");
    core.end().await;
}
