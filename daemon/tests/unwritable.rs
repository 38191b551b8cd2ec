//! The real `berthd` on a state directory that takes no writes: a full disk, a read-only mount, an
//! `fsync` that fails. It reads and watches on, refuses changes with the errno, and heals by itself.

#[path = "unwritable/daemon.rs"]
mod daemon;

use daemon::{Daemon, Mount};

fn details(status: &tonic::Status) -> (String, String) {
    use tonic_types::StatusExt as _;
    let details = status.get_error_details();
    let info = details.error_info().expect("every refusal has a reason");
    (info.reason.clone(), info.metadata.get("errno").cloned().unwrap_or_default())
}

/// It reads, watches and says how it is; and changes nothing.
async fn only_reads(daemon: &Daemon, held: usize, errno: &str) {
    let refused = daemon.reserve("more", 100).await.expect_err("nothing can be recorded");
    let (reason, number) = details(&refused);
    assert_eq!(reason, "STATE_UNWRITABLE", "{refused:?}");
    println!("refused with errno {number:?}: {}", refused.message());
    assert_eq!(daemon.reservations().await.len(), held, "what is on record is read");
    let capabilities = daemon.capabilities().await;
    let degraded = capabilities.degraded.expect("it says that it is degraded");
    assert_eq!(degraded.errno_name, errno, "{degraded:?}");
    assert!(!degraded.way_out.is_empty() && degraded.path.ends_with("state"), "{degraded:?}");
    for path in ["/healthz", "/readyz"] {
        let said = daemon.http(path).await;
        assert!(said.contains("200 OK") && said.contains("degraded: "), "{path}: {said}");
    }
    let metrics = daemon.http("/metrics").await;
    let sample = format!("berth_degraded{{errno=\"{errno}\"}} 1");
    assert!(metrics.contains(&sample), "{metrics}");
}

async fn healed(daemon: &Daemon, held: usize) {
    daemon.wait_until_well().await;
    daemon.reserve("later", 101).await.expect("it can be recorded again");
    // What was promised is on record, also where the kernel work that follows failed meanwhile.
    let events = daemon.events().await;
    let count = |kind: &str| events.iter().filter(|event| event.kind == kind).count();
    assert_eq!(count("reservation.created"), held + 1);
    assert!(daemon.http("/readyz").await.contains("ready\n"));
    // On a full disk the log that is cut gives room for a while, and it may be so again.
    assert!(count("store.healed") >= 1, "no event says that it was so");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_survived_and_healed_once_there_is_room() {
    let daemon = Daemon::start(Mount::Tmpfs, None).await;
    let mut held = 0;
    for device in 0..3 {
        daemon.reserve("before", device).await.expect("there is room");
        held += 1;
    }
    daemon.fill();
    // What was allocated before may take some more.
    for device in 3..90 {
        if daemon.reserve("until full", device).await.is_err() {
            break;
        }
        held += 1;
    }
    only_reads(&daemon, held, "ENOSPC").await;
    daemon.make_room();
    healed(&daemon, held).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_read_only_mount_it_starts_and_heals_once_it_is_writable() {
    let daemon = Daemon::start(Mount::Plain, None).await;
    daemon.reserve("before", 0).await.expect("it is writable");
    daemon.reserve("before", 1).await.expect("it is writable");
    let daemon = daemon.restart(Mount::ReadOnly).await;
    only_reads(&daemon, 2, "EROFS").await;
    daemon.remount("rw");
    healed(&daemon, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_failed_fsync_what_was_answered_is_there_and_what_was_refused_is_not() {
    // The first commits pass; then four in a row fail, whoever asks for them.
    let daemon =
        Daemon::start(Mount::Plain, Some("inject=fsync,fdatasync:error=EIO:when=40..43")).await;
    let mut answered = Vec::new();
    let mut refused = 0;
    for device in 0..90 {
        match daemon.reserve(&format!("vm-{device}"), device).await {
            Ok(made) => answered.push(made.id),
            Err(status) => {
                assert_eq!(details(&status).0, "STATE_UNWRITABLE", "{status:?}");
                refused += 1;
                break;
            }
        }
    }
    assert!(!answered.is_empty() && refused == 1, "{answered:?}, {refused} refused");
    daemon.wait_until_well().await;
    let daemon = daemon.restart(Mount::Plain).await;
    // What was promised is on record, also where the kernel work that follows failed meanwhile.
    let events = daemon.events().await.into_iter();
    let created = events.filter(|event| event.kind == "reservation.created");
    assert_eq!(created.map(|event| event.reservation).collect::<Vec<_>>(), answered);
}
