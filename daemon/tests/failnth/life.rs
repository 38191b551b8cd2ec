//! What is asked of a `berthd` of which a call fails, and what must be so then and after the next
//! start.

use std::{collections::BTreeSet, fs, path::Path, time::Duration, time::Instant};

use berth_handover::{Client as HandOver, ClientError};
use berth_host::sim::Topology;
use berth_proto::v1::{self, reservations_client::ReservationsClient};
use tonic::{Response, Status, transport::Channel};
use tonic_types::StatusExt as _;

use super::faulty::{Fault, Faulty, PATIENCE, Site, Tracer, log, sites};

/// What was seen of one run.
pub(crate) struct Seen {
    pub(crate) sites: Vec<Site>,
    pub(crate) hit: bool,
    pub(crate) started: bool,
    /// Orders that were refused.
    pub(crate) refusals: usize,
    /// Open when everything was given back, but for those of the database and of connections.
    pub(crate) descriptors: usize,
}

/// One life of two reservations.
struct Life<'f> {
    channel: Channel,
    fault: Option<&'f Fault>,
    calls: u32,
    refusals: usize,
}

/// Answered with what it is, or refused with a reason.
type Ordered = Result<Result<v1::Reservation, String>, String>;

impl Life<'_> {
    /// Whether the fault hits a connection: that breaks then, and who asks again is answered.
    fn may_break(&self) -> bool {
        self.fault.is_some_and(|fault| fault.site.ends_with(":socket"))
    }

    /// Asks, again where the connection broke. A refusal has to say what failed.
    async fn ask<F>(
        &mut self,
        mut call: impl FnMut(ReservationsClient<Channel>, String) -> F,
    ) -> Ordered
    where
        F: Future<Output = Result<Response<v1::Reservation>, Status>>,
    {
        self.calls += 1;
        let request_id = format!("request-{}", self.calls);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let client = ReservationsClient::new(self.channel.clone());
            let limit = Duration::from_secs(60);
            let answer = tokio::time::timeout(limit, call(client, request_id.clone())).await;
            let status = match answer {
                Err(_) => return Err("no answer in a minute".to_owned()),
                Ok(Ok(answer)) => return Ok(Ok(answer.into_inner())),
                Ok(Err(status)) => status,
            };
            let Some(info) = status.get_details_error_info() else {
                if self.may_break() && Instant::now() < deadline {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
                return Err(format!("an answer without a reason: {status:?}"));
            };
            let errno = info.metadata.get("errno").is_some_and(|errno| errno != "0");
            let object = info.metadata.get("object").is_some_and(|object| !object.is_empty());
            if info.reason == "INTERNAL" || !errno || !object || status.message().is_empty() {
                return Err(format!("it doesn't say what failed: {status:?} {info:?}"));
            }
            self.refusals += 1;
            return Ok(Err(info.reason));
        }
    }

    async fn reserve(&mut self, device: &str, delivery: v1::Delivery) -> Ordered {
        let pci = v1::device_address::Kind::Pci(device.to_owned());
        let request = v1::ReserveRequest {
            holder: format!("vm-{device}"),
            devices: vec![v1::DeviceAddress { kind: Some(pci) }],
            policy: v1::Policy::Exclusive.into(),
            delivery: delivery.into(),
            ..v1::ReserveRequest::default()
        };
        self.ask(|mut client, request_id| {
            let request = v1::ReserveRequest { request_id, ..request.clone() };
            async move { client.reserve(request).await }
        })
        .await
    }

    async fn attach(&mut self, id: &str) -> Ordered {
        self.ask(|mut client, request_id| {
            let base = v1::AttachRequest::default();
            let request = v1::AttachRequest { id: id.to_owned(), request_id, ..base };
            async move { client.attach(request).await }
        })
        .await
    }

    async fn release(&mut self, id: &str) -> Ordered {
        self.ask(|mut client, request_id| {
            let base = v1::ReleaseRequest::default();
            let request = v1::ReleaseRequest { id: id.to_owned(), request_id, ..base };
            async move { client.release(request).await }
        })
        .await
    }
}

/// What was answered.
#[derive(Default)]
struct Answered {
    reserved: BTreeSet<String>,
    released: BTreeSet<String>,
    /// Asked for, and maybe done.
    open: BTreeSet<String>,
}

/// Descriptors of the writer, the ledger's reader and two others: the file, its log and its index.
const DATABASE: usize = 4 * 3;
const DEVICES: [&str; 3] = ["0000:01:00.0", "0000:01:01.0", "0000:01:02.0"];

/// One run with a fault or without, and the next start.
/// `most` descriptors are open without a fault.
pub(crate) async fn run(
    tracer: &Tracer,
    fault: Option<&Fault>,
    most: usize,
) -> Result<Seen, String> {
    let dir = tempfile::tempdir().expect("a directory");
    let machine = Topology::generated(4).to_toml().expect("a topology");
    fs::write(dir.path().join("machine.toml"), machine).expect("written");
    let mut answered = Answered::default();
    let seen = faulty(dir.path(), tracer, fault, most, &mut answered).await?;
    let said = log(dir.path());
    if said.contains("panicked") {
        return Err(format!("it panicked: {said}"));
    }
    if !seen.started && !said.contains("berthd: ") {
        return Err(format!("it ended without a word: {said}"));
    }
    again(dir.path(), &answered).await?;
    Ok(seen)
}

async fn faulty(
    dir: &Path,
    tracer: &Tracer,
    fault: Option<&Fault>,
    most: usize,
    answered: &mut Answered,
) -> Result<Seen, String> {
    let mut daemon = Faulty::start(dir, Some((tracer, fault)));
    let started = daemon.serves().await;
    let mut life = Life { channel: daemon.connect(), fault, calls: 0, refusals: 0 };
    let mut descriptors = 0;
    if started {
        live(dir, &mut life, answered).await?;
        descriptors = settled(&daemon, most).await?;
    }
    let refusals = life.refusals;
    // An open connection would be waited for.
    drop(life);
    daemon.stop();
    let (sites, hit) = sites(dir);
    Ok(Seen { sites, hit, started, refusals, descriptors })
}

/// How many descriptors are open once nothing is under way.
async fn settled(daemon: &Faulty, most: usize) -> Result<usize, String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let (database, others) = daemon.descriptors();
        if database <= DATABASE && others <= most {
            return Ok(others);
        }
        if Instant::now() > deadline {
            return Err(format!("{database} of the database and {others} others are open"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn live(dir: &Path, life: &mut Life<'_>, answered: &mut Answered) -> Result<(), String> {
    for (device, delivery) in DEVICES.iter().zip([v1::Delivery::Held, v1::Delivery::Bound]) {
        let Ok(reserved) = life.reserve(device, delivery).await? else { continue };
        answered.reserved.insert(reserved.id.clone());
        let attached = life.attach(&reserved.id).await?;
        if attached.is_ok() && delivery == v1::Delivery::Bound {
            fetch(dir, life, &reserved.id).await?;
        }
        match life.release(&reserved.id).await? {
            Ok(_) => answered.released.insert(reserved.id),
            Err(_) => answered.open.insert(reserved.id),
        };
    }
    // Another group is given to whoever asks, as soon as the state can be written again.
    let deadline = Instant::now() + PATIENCE;
    let other = loop {
        match life.reserve(DEVICES[2], v1::Delivery::Held).await? {
            Ok(other) => break other,
            Err(reason) if Instant::now() > deadline => {
                return Err(format!("another group is refused for good: {reason}"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    answered.reserved.insert(other.id.clone());
    while let Err(reason) = life.release(&other.id).await? {
        if Instant::now() > deadline {
            return Err(format!("another group can't be given back: {reason}"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    answered.released.insert(other.id);
    // What was refused for a passing reason is done when it is asked again.
    for id in std::mem::take(&mut answered.open) {
        while let Err(reason) = life.release(&id).await? {
            if reason == "NOT_FOUND" {
                break;
            }
            if Instant::now() > deadline {
                return Err(format!("{id} can't be given back: {reason}"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        answered.released.insert(id);
    }
    Ok(())
}

/// Fetches the device, and closes it.
async fn fetch(dir: &Path, life: &mut Life<'_>, id: &str) -> Result<(), String> {
    let (path, id) = (dir.join("handover"), id.to_owned());
    let fetched =
        tokio::task::spawn_blocking(move || HandOver::connect(path)?.fetch(&id, 0).map(drop));
    match fetched.await.expect("no panic") {
        Ok(()) => Ok(()),
        Err(ClientError::Refused(refusal)) => {
            life.refusals += 1;
            let said = refusal.errno != 0 && refusal.reason != "INTERNAL";
            if said { Ok(()) } else { Err(format!("it doesn't say what failed: {refusal:?}")) }
        }
        Err(_) if life.may_break() => Ok(()),
        Err(error) => Err(format!("the hand-over: {error}")),
    }
}

/// The next start, without a fault: what was answered is so, and everything works.
async fn again(dir: &Path, answered: &Answered) -> Result<(), String> {
    let mut daemon = Faulty::start(dir, None);
    if !daemon.serves().await {
        return Err(format!("the next start fails: {}", log(dir)));
    }
    let mut reservations = ReservationsClient::new(daemon.connect());
    let listed = reservations.list_reservations(v1::ListReservationsRequest {}).await;
    let listed = listed.map_err(|status| status.to_string())?.into_inner().reservations;
    let gone = |it: &v1::Reservation| it.state() == v1::reservation::State::Released;
    let there: BTreeSet<String> =
        listed.iter().filter(|it| !gone(it)).map(|it| it.id.clone()).collect();
    let expected: BTreeSet<&String> = answered.reserved.difference(&answered.released).collect();
    if let Some(lost) = expected.iter().find(|id| !there.contains(**id)) {
        return Err(format!("{lost} was answered, and is not there"));
    }
    if let Some(back) = answered.released.iter().find(|id| there.contains(*id)) {
        return Err(format!("{back} was given back, and is there"));
    }
    for id in there {
        let request = v1::ReleaseRequest { id, force: true, ..v1::ReleaseRequest::default() };
        reservations.release(request).await.map_err(|status| status.to_string())?;
    }
    drop(reservations);
    let mut groups = v1::groups_client::GroupsClient::new(daemon.connect());
    let listed = groups.list_groups(v1::ListGroupsRequest::default()).await;
    drop(groups);
    for group in listed.map_err(|status| status.to_string())?.into_inner().groups {
        let quarantined = group.condition() == v1::Condition::Quarantined;
        let as_before = group.devices.iter().all(|device| device.driver.is_empty());
        let free = group.ownership() == v1::owner::Kind::Free && group.drift.is_empty();
        if !free || !(as_before || quarantined) {
            return Err(format!("not as it was: {group:?}"));
        }
    }
    daemon.stop();
    Ok(())
}
