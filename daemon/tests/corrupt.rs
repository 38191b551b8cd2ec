//! A database that is damaged, gone or somebody else's: it is set aside, and what the kernel can't
//! say is marked.

mod core_support;

use std::{
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use berth_host::{Act, Host as _};
use berth_ownership::{Condition, Reason};
use berth_proto::v1;
use berthd::ledger::{self, LedgerConfig};
use core_support::{FREE, World, operator, reserve, small};
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};

fn set_aside(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).expect("a directory").flatten().map(|file| file.path());
    files.filter(|path| path.to_string_lossy().contains("berth.db.corrupt-")).collect()
}

/// A world with a reservation whose device is on its VFIO driver, ended as by a kill; its epoch.
async fn with_history(dir: &Path) -> (std::sync::Arc<berth_host::sim::SimHost>, u64) {
    let world = World::open(dir, small()).await;
    let made = world.service.reserve(&operator(), reserve("vm", FREE)).await.expect("reserved");
    world
        .host
        .perform(&Act::Bind {
            device: FREE.parse().expect("an address"),
            driver: "vfio-pci".to_owned(),
        })
        .expect("bound");
    (world.kill().await, made.epoch)
}

async fn check_anew(dir: &Path, host: std::sync::Arc<berth_host::sim::SimHost>, epoch: u64) {
    let world = World::open(dir, host).await;
    let snapshot = world.ledger.snapshot();
    assert_eq!(snapshot.state.reservations().count(), 0, "whose it was is not known");
    let device = snapshot.state.device(&FREE.into()).expect("the kernel shows it");
    assert!(device.marks.get(&Condition::Quarantined).expect("a mark").contains("unknown history"));
    let refused = world.service.reserve(&operator(), reserve("vm", FREE)).await;
    assert_eq!(refused.expect_err("unknown history").reason(), Reason::Quarantined);
    let clear = v1::ClearQuarantineRequest {
        device: Some(core_support::pci(FREE)),
        reason: "it was mine".to_owned(),
        ..v1::ClearQuarantineRequest::default()
    };
    world.service.clear_quarantine(&operator(), clear).await.expect("an operator's word");
    let made = world.service.reserve(&operator(), reserve("vm", FREE)).await.expect("reserved");
    assert!(made.epoch > epoch, "{} after {epoch}", made.epoch);
    // It is marked once, and not again.
    let host = world.kill().await;
    let world = World::open(dir, host).await;
    let device = world.ledger.snapshot();
    let device = device.state.device(&FREE.into()).expect("it is there");
    assert!(!device.marks.contains_key(&Condition::Quarantined));
    let events = world.ledger.store().events(0, 1000, "").await.expect("events");
    assert_eq!(events.iter().filter(|event| event.kind == "store.rebuilt").count(), 1);
}

#[tokio::test]
async fn a_database_that_is_none_any_more_is_set_aside_and_the_record_begun_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let (host, epoch) = with_history(dir.path()).await;
    fs::write(dir.path().join("berth.db"), [b'x'; 8192]).expect("overwritten");
    // A close in order leaves none.
    let _ = fs::remove_file(dir.path().join("berth.db-wal"));
    check_anew(dir.path(), host, epoch).await;
    let kept = set_aside(dir.path());
    assert!(!kept.is_empty(), "nothing is deleted");
    assert!(kept.iter().any(|it| fs::read(it).is_ok_and(|bytes| bytes == [b'x'; 8192])));
}

#[tokio::test]
async fn a_page_that_is_overwritten_is_found_at_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let (host, epoch) = with_history(dir.path()).await;
    // All into the file, so that the log doesn't cure it.
    let options = SqliteConnectOptions::new().filename(dir.path().join("berth.db"));
    let mut conn = options.connect().await.expect("a database");
    let fold = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut conn).await;
    fold.expect("folded");
    conn.close().await.expect("closed");
    let file = fs::File::options().write(true).open(dir.path().join("berth.db")).expect("a file");
    let pages = file.metadata().expect("a file").len() / 4096;
    for page in 2..pages {
        file.write_all_at(&[0xa5; 512], page * 4096).expect("overwritten");
    }
    check_anew(dir.path(), host, epoch).await;
    assert!(!set_aside(dir.path()).is_empty());
}

#[tokio::test]
async fn a_database_that_is_gone_is_not_taken_for_a_first_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let (host, epoch) = with_history(dir.path()).await;
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(dir.path().join(format!("berth.db{end}")));
    }
    check_anew(dir.path(), host, epoch).await;
}

#[tokio::test]
async fn a_first_start_quarantines_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let host = small();
    host.perform(&Act::Bind {
        device: FREE.parse().expect("an address"),
        driver: "vfio-pci".to_owned(),
    })
    .expect("bound");
    let world = World::open(dir.path(), host).await;
    world.service.reserve(&operator(), reserve("vm", FREE)).await.expect("a baseline like any");
}

#[tokio::test]
async fn somebody_elses_database_is_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("berth.db");
    let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
    let mut conn = options.connect().await.expect("a database");
    sqlx::query("CREATE TABLE guests (name TEXT)").execute(&mut conn).await.expect("a table");
    conn.close().await.expect("closed");
    let opened = ledger::open(LedgerConfig::new(dir.path()), small()).await;
    let error = opened.expect_err("not ours").to_string();
    assert!(error.contains("no database of berthd") && error.contains("--state-dir"), "{error}");
    assert!(set_aside(dir.path()).is_empty() && path.exists());
}
