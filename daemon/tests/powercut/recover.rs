//! The next start on what a cut left: `berthd`'s own, in this process.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::Arc,
};

use berth_host::{Host, sim::SimHost};
use berth_ownership::{ReservationState, State, invariants};
use berthd::{
    ledger::{self, LedgerConfig, Opened},
    run::Daemon,
};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{
    daemon_support,
    disk::{self, Left},
    run::{Asked, Life, machine},
};

/// What a state of the disk has to hold: of every life, how many answers had left.
pub(crate) type Answered = Vec<usize>;

/// Opens what is left, and says what is wrong with it.
pub(crate) async fn open(left: &Left, lives: &[Life], answered: &Answered) -> Result<(), String> {
    let dir = directory();
    disk::write(dir.path(), left);
    let host: Arc<dyn Host> = Arc::new(SimHost::from_topology(machine()));
    let opened = ledger::open(LedgerConfig::new(dir.path()), host).await;
    let Opened { ledger, task, .. } =
        opened.map_err(|error| format!("it doesn't open: {error}"))?;
    let snapshot = ledger.snapshot();
    let seen = Seen::of(dir.path(), answered).await;
    let seen = seen.and_then(|seen| seen.check(&snapshot.state, lives, answered));
    drop(ledger);
    // The store is closed with the task, before its directory goes.
    let _ = task.await;
    seen
}

/// Where nothing has to be written to a disk.
pub(crate) fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    dir.expect("a directory")
}

/// What is on the disk, past and present.
struct Seen {
    /// How many events of a kind a reservation has.
    events: HashMap<(String, String), usize>,
}

impl Seen {
    async fn of(dir: &Path, answered: &Answered) -> Result<Self, String> {
        let aside = fs::read_dir(dir).expect("a directory").flatten();
        let aside = aside.map(|it| it.file_name().to_string_lossy().into_owned());
        let aside: Vec<String> = aside.filter(|name| name.contains("corrupt")).collect();
        if !aside.is_empty() {
            return Err(format!("the database was damaged: {aside:?}"));
        }
        let options = SqliteConnectOptions::new().filename(dir.join("berth.db")).read_only(true);
        let failed = |error: sqlx::Error| error.to_string();
        let mut conn = SqliteConnection::connect_with(&options).await.map_err(failed)?;
        let sound: String = sqlx::query_scalar("PRAGMA integrity_check")
            .fetch_one(&mut conn)
            .await
            .map_err(failed)?;
        let anew: i64 = sqlx::query_scalar("SELECT count(*) FROM meta WHERE name = 'history_lost'")
            .fetch_one(&mut conn)
            .await
            .map_err(failed)?;
        let rows: Vec<(i64, String, String)> =
            sqlx::query_as("SELECT seq, kind, reservation FROM events ORDER BY seq")
                .fetch_all(&mut conn)
                .await
                .map_err(failed)?;
        conn.close().await.map_err(failed)?;
        if sound != "ok" {
            return Err(format!("integrity_check: {sound}"));
        }
        if anew > 0 && answered.iter().any(|count| *count > 0) {
            return Err("the record was begun anew".to_owned());
        }
        let mut events = HashMap::new();
        for (at, (seq, kind, reservation)) in rows.into_iter().enumerate() {
            if usize::try_from(seq) != Ok(at + 1) {
                return Err(format!("event {} is missing before {seq}", at + 1));
            }
            *events.entry((reservation, kind)).or_insert(0) += 1;
        }
        Ok(Self { events })
    }

    fn count(&self, reservation: &str, kind: &str) -> usize {
        let key = (reservation.to_owned(), format!("reservation.{kind}"));
        self.events.get(&key).copied().unwrap_or(0)
    }

    fn check(&self, state: &State, lives: &[Life], answered: &Answered) -> Result<(), String> {
        invariants::check(state)?;
        let present: BTreeMap<&str, ReservationState> =
            state.reservations().map(|record| (record.id.as_str(), record.state)).collect();
        let holds = |id: &str| present.get(id).is_some_and(|state| state.holds());
        for (life, count) in lives.iter().zip(answered) {
            let id = life.reservation.as_str();
            for asked in &life.answered[..*count] {
                let needed: &[&str] = match asked {
                    Asked::Reserve => &["created", "prepared"],
                    Asked::Attach => &["attached"],
                    Asked::Renew => &["renewed"],
                    Asked::Release => &["released"],
                };
                if let Some(kind) = needed.iter().find(|kind| self.count(id, kind) == 0) {
                    return Err(format!(
                        "{asked:?} of {} was answered, and not {kind}",
                        life.holder
                    ));
                }
            }
            let lives_on = self.count(id, "created") > 0 && self.count(id, "released") == 0;
            if lives_on != holds(id) {
                return Err(format!(
                    "{} is {:?} after {:?}",
                    life.holder,
                    present.get(id),
                    self.events
                ));
            }
            check_epoch(state, life, *count)?;
        }
        Ok(())
    }
}

/// No epoch that was answered is given again.
fn check_epoch(state: &State, life: &Life, count: usize) -> Result<(), String> {
    if count == 0 {
        return Ok(());
    }
    let here = |group: &&berth_ownership::Group| {
        group.devices.iter().any(|device| device.as_str() == life.device)
    };
    let epoch = state.groups().find(here).map_or(0, |group| group.epoch.0);
    if epoch < life.epoch {
        return Err(format!("{} had epoch {}, and its group has {epoch}", life.holder, life.epoch));
    }
    Ok(())
}

/// The whole daemon on what is left: it catches up with a machine that lost its power, too, and
/// gives everything back.
pub(crate) async fn start(left: &Left, lives: &[Life], answered: &Answered) -> Result<(), String> {
    let dir = directory();
    let state = dir.path().join("state");
    fs::create_dir(&state).expect("a directory");
    disk::write(&state, left);
    let config = daemon_support::settings(dir.path(), "", &["--host=sim"]);
    let host = SimHost::from_topology(machine());
    let daemon = Daemon::start(&config, Arc::new(host.clone())).await;
    let daemon = daemon.map_err(|error| format!("it doesn't start: {error}"))?;
    let checked = settled(&daemon, lives, answered).await;
    let given_back = match checked {
        Ok(()) => give_back(&daemon, &host).await,
        wrong => wrong,
    };
    daemon.stop().await;
    given_back
}

async fn settled(daemon: &Daemon, lives: &[Life], answered: &Answered) -> Result<(), String> {
    let snapshot = daemon.service().snapshot();
    invariants::check(&snapshot.state)?;
    for record in snapshot.state.reservations().filter(|record| record.holds()) {
        if record.state != ReservationState::Reserved || record.pending.is_some() {
            return Err(format!("{} is {} with {:?}", record.id, record.state, record.pending));
        }
    }
    for (life, count) in lives.iter().zip(answered) {
        let record = snapshot.state.reservation(&life.reservation.as_str().into());
        let holds = record.is_some_and(|record| record.holds());
        // Where the next order is a release that was not answered, it may be done by now.
        let releases = |at: usize| life.answered.get(at) == Some(&Asked::Release);
        let may_be_gone = *count == 0 || releases(*count) || releases(count - 1);
        if !holds && !may_be_gone {
            return Err(format!("{} is gone: {record:?}", life.holder));
        }
        if holds && *count > 0 && releases(count - 1) {
            return Err(format!("{} is back", life.holder));
        }
    }
    Ok(())
}

async fn give_back(daemon: &Daemon, host: &SimHost) -> Result<(), String> {
    use berth_proto::v1;
    use berthd::model::{Caller, Role};
    let service = daemon.service();
    let caller = Caller::unix(0, None, Role::Operator);
    let snapshot = service.snapshot();
    for record in snapshot.state.reservations().filter(|record| record.holds()) {
        let id = record.id.to_string();
        let request = v1::ReleaseRequest { id, ..v1::ReleaseRequest::default() };
        service.release(&caller, request).await.map_err(|error| format!("release: {error}"))?;
    }
    let inventory = host.scan().map_err(|error| error.to_string())?;
    match inventory.devices.iter().find(|device| device.driver.is_some()) {
        Some(device) => Err(format!("{} is left on {:?}", device.address, device.driver)),
        None => host.check(),
    }
}
