//! One of the clients: what it asks, how it asks again, and what it writes down.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use berth_handover::{Client as HandOver, ClientError};
use berth_proto::v1::{self, groups_client::GroupsClient, reservations_client::ReservationsClient};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tonic::{Response, Status, transport::Channel};
use tonic_types::StatusExt as _;

use super::{
    machine,
    model::{Call, Delivery, Devices, Id, Op, Order, Policy, Reply, Shown, Stand},
    record::{Known, Shared, groups},
};

/// Longer than kernel work takes here.
const WAIT_MS: u64 = 300_000;
/// The longest that a client does nothing.
const MOST_IDLE_MS: u64 = 1_000;
/// The shortest that there is.
const TTL_MS: u64 = 1_000;

pub(crate) struct Client {
    name: String,
    calls: u64,
    random: StdRng,
    reservations: ReservationsClient<Channel>,
    groups: GroupsClient<Channel>,
    shared: Arc<Shared>,
}

/// How a call ended.
enum Ended<T> {
    Answer(T),
    Refused(String),
    /// The connection broke, and it isn't asked again.
    Lost,
}

/// The reason, where it was `berthd` that answered, and was ready to.
fn reason(status: &Status) -> Option<String> {
    let info = status.get_details_error_info()?;
    (info.reason != "UNAVAILABLE").then_some(info.reason)
}

impl Client {
    pub(crate) fn new(number: u64, shared: &Arc<Shared>) -> Self {
        let channel = machine::channel(shared.socket.clone());
        Self {
            name: format!("vm{number}"),
            calls: 0,
            random: StdRng::seed_from_u64(number),
            reservations: ReservationsClient::new(channel.clone()),
            groups: GroupsClient::new(channel),
            shared: Arc::clone(shared),
        }
    }

    pub(crate) async fn run(mut self) {
        while self.shared.take() {
            // Leases end in between, and what is refused is asked again when others are done.
            if self.random.random_bool(0.5) {
                let pause = self.random.random_range(0..MOST_IDLE_MS);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            let cell = self.random.random_range(0..self.shared.cells.len());
            let known = self.shared.known(cell);
            let recent = if self.random.random_bool(0.8) { 2 } else { known.len() };
            let one = &known[..known.len().min(recent)];
            let Some(one) = one.choose(&mut self.random).cloned() else {
                self.reserve(cell, &known).await;
                continue;
            };
            match self.random.random_range(0..100) {
                0..25 => self.reserve(cell, &known).await,
                25..40 => self.order(cell, &one, Call::Attach).await,
                40..55 => self.fetch(cell, &one).await,
                55..65 => self.order(cell, &one, Call::Renew).await,
                65..80 => self.order(cell, &one, |order| Call::Release(order, false)).await,
                80..85 => self.order(cell, &one, |order| Call::Release(order, true)).await,
                85..93 => {
                    let group = self.random.random_range(0..self.shared.cells[cell].len());
                    self.read_group(cell, group).await;
                }
                _ => self.look(cell, &one).await,
            }
        }
    }

    fn request_id(&mut self) -> String {
        self.calls += 1;
        format!("{}-{}", self.name, self.calls)
    }

    /// Asks until there is an answer, unless it gives up.
    async fn insist<T, F>(
        &mut self,
        gives_up: bool,
        mut call: impl FnMut(&mut Self) -> F,
    ) -> Ended<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        loop {
            // Now and then nobody listens any more when the answer comes.
            let patience = if self.random.random_bool(0.05) { 3 } else { WAIT_MS };
            let called = call(self);
            let answer = tokio::time::timeout(Duration::from_millis(patience), called).await;
            match answer {
                Ok(Ok(answer)) => return Ended::Answer(answer.into_inner()),
                Ok(Err(status)) => {
                    if let Some(reason) = reason(&status) {
                        return Ended::Refused(reason);
                    }
                    if gives_up {
                        return Ended::Lost;
                    }
                }
                Err(_) => {}
            }
            self.shared.retries.fetch_add(1, Ordering::SeqCst);
            let pause = self.random.random_range(1..20);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    /// When it is certain that what was lost with a kill has been done by now, or never will be.
    async fn settled(&self) -> u64 {
        let _up = self.shared.up().await;
        self.shared.now()
    }

    fn random_devices(&mut self, cell: usize, known: &[Known]) -> (Policy, Devices, Option<Known>) {
        let groups = groups(&self.shared.cells[cell]);
        let all: Devices = groups.iter().fold(0, |all, group| all | group);
        let joinable: Vec<&Known> =
            known.iter().take(4).filter(|it| it.policy != Policy::Exclusive).collect();
        if self.random.random_bool(0.5)
            && let Some(joined) = joinable.choose(&mut self.random)
        {
            let free = all & !joined.devices;
            let some = free & self.random.random::<Devices>();
            let devices = if some == 0 { free } else { some };
            if devices != 0 {
                return (joined.policy, devices, Some((*joined).clone()));
            }
        }
        let policies = [Policy::Exclusive, Policy::Shared, Policy::Group];
        let policy = *policies.choose(&mut self.random).expect("three");
        let some = all & self.random.random::<Devices>();
        let devices = if some == 0 { all } else { some };
        (policy, devices, None)
    }

    async fn reserve(&mut self, cell: usize, known: &[Known]) {
        let (policy, devices, join) = self.random_devices(cell, known);
        let deliveries: &[Delivery] = match policy {
            Policy::Exclusive => {
                &[Delivery::Held, Delivery::Bound, Delivery::Unbound, Delivery::Node]
            }
            Policy::Shared => &[Delivery::Held, Delivery::Bound],
            Policy::Group => &[Delivery::Held, Delivery::Unbound, Delivery::Node],
        };
        let delivery = match &join {
            Some(joined) => joined.delivery,
            None => *deliveries.choose(&mut self.random).expect("some"),
        };
        let leased = self.random.random_bool(0.4);
        let request_id = self.request_id();
        let request = v1::ReserveRequest {
            holder: request_id.clone(),
            devices: self.addresses(cell, devices),
            policy: words(policy).into(),
            delivery: delivery_word(delivery).into(),
            join: join.as_ref().map(|joined| joined.name.clone()).unwrap_or_default(),
            ttl_ms: if leased { TTL_MS } else { 0 },
            request_id: request_id.clone(),
            wait_ms: WAIT_MS,
            ..v1::ReserveRequest::default()
        };
        let called = self.shared.now();
        // Of one with a lease nothing may be left by the time that it is looked for.
        let gives_up = !leased && self.random.random_bool(0.5);
        let ended = self
            .insist(gives_up, |client| {
                let (mut client, request) = (client.reservations.clone(), request.clone());
                async move { client.reserve(request).await }
            })
            .await;
        let granted = match ended {
            Ended::Answer(granted) => Some(granted),
            Ended::Refused(reason) => {
                let call = self.reserve_call(policy, delivery, devices, join.as_ref(), leased);
                let (reply, answered) = (Reply::Refused(reason), self.shared.now());
                self.shared.record(cell, Op { call, reply, called, answered });
                return;
            }
            Ended::Lost => self.find_lost(&request_id).await,
        };
        // It isn't there, so it never was: nobody else knows of it.
        let Some(granted) = granted else { return };
        assert!(granted.pending.is_empty(), "an answer before it was done: {granted:?}");
        let id = self.shared.id(&granted.id);
        let call = self.reserve_call(policy, delivery, devices, join.as_ref(), leased);
        let (name, epoch) = (granted.id, granted.epoch);
        let (reply, answered) = (Reply::Granted { id, epoch }, self.shared.now());
        self.shared.record(cell, Op { call, reply, called, answered });
        self.shared.know(cell, Known { name, id, epoch, policy, delivery, devices });
    }

    fn reserve_call(
        &self,
        policy: Policy,
        delivery: Delivery,
        devices: Devices,
        join: Option<&Known>,
        leased: bool,
    ) -> Call {
        let ttl_ns = leased.then_some(TTL_MS * 1_000_000);
        Call::Reserve { policy, delivery, devices, join: join.map(|joined| joined.id), ttl_ns }
    }

    fn addresses(&self, cell: usize, devices: Devices) -> Vec<v1::DeviceAddress> {
        let all = self.shared.cells[cell].iter().flatten().enumerate();
        let wanted = all.filter(|(at, _)| devices & (1 << at) != 0);
        let pci = |address: &String| v1::device_address::Kind::Pci(address.clone());
        wanted.map(|(_, address)| v1::DeviceAddress { kind: Some(pci(address)) }).collect()
    }

    /// What came of a reservation whose answer was lost.
    async fn find_lost(&mut self, holder: &str) -> Option<v1::Reservation> {
        self.settled().await;
        let listed = self
            .insist(false, |client| {
                let mut client = client.reservations.clone();
                async move { client.list_reservations(v1::ListReservationsRequest {}).await }
            })
            .await;
        let Ended::Answer(listed) = listed else { return None };
        let ours = |it: &v1::Reservation| it.holder.as_ref().is_some_and(|it| it.name == holder);
        let mut found = listed.reservations.into_iter().find(ours)?;
        found.pending.clear();
        Some(found)
    }

    async fn order(&mut self, cell: usize, one: &Known, call: impl Fn(Order) -> Call) {
        let epoch = self.epoch(one);
        let call = call(Order { id: one.id, epoch, stale: is_stale(one, epoch) });
        let called = self.shared.now();
        let reply = self.ordered(&call, &one.name, epoch.unwrap_or(0)).await;
        let answered = match reply {
            Reply::Lost => self.settled().await,
            _ => self.shared.now(),
        };
        self.shared.record(cell, Op { call, reply, called, answered });
    }

    /// None, the right one, or that of an order from before.
    fn epoch(&mut self, one: &Known) -> Option<u64> {
        match self.random.random_range(0..20) {
            0..2 => Some(one.epoch - self.random.random_range(1..1000)),
            2..11 => Some(one.epoch),
            _ => None,
        }
    }

    async fn ordered(&mut self, call: &Call, name: &str, epoch: u64) -> Reply {
        let (id, request_id) = (name.to_owned(), self.request_id());
        let gives_up = self.random.random_bool(0.5);
        let call = call.clone();
        let ended = self
            .insist(gives_up, move |client| {
                let mut client = client.reservations.clone();
                let (id, request_id, call) = (id.clone(), request_id.clone(), call.clone());
                async move {
                    let wait_ms = WAIT_MS;
                    match call {
                        Call::Attach(_) => {
                            let base = v1::AttachRequest::default();
                            let request =
                                v1::AttachRequest { id, epoch, request_id, wait_ms, ..base };
                            client.attach(request).await
                        }
                        Call::Renew(_) => {
                            let base = v1::RenewRequest::default();
                            client.renew(v1::RenewRequest { id, epoch, request_id, ..base }).await
                        }
                        Call::Release(_, force) => {
                            let base = v1::ReleaseRequest::default();
                            let request = v1::ReleaseRequest {
                                id,
                                epoch,
                                force,
                                request_id,
                                wait_ms,
                                ..base
                            };
                            client.release(request).await
                        }
                        other => panic!("{other:?} is no order"),
                    }
                }
            })
            .await;
        match ended {
            Ended::Answer(_) => Reply::Done,
            Ended::Refused(reason) => Reply::Refused(reason),
            Ended::Lost => Reply::Lost,
        }
    }

    /// Fetches what there is, and closes it at once.
    async fn fetch(&mut self, cell: usize, one: &Known) {
        let epoch = self.epoch(one);
        let (path, name) = (self.shared.handover.clone(), one.name.clone());
        let permit = self.shared.fetches.acquire().await.expect("never closed");
        let called = self.shared.now();
        let fetched = tokio::task::spawn_blocking(move || {
            HandOver::connect(path)?.fetch(&name, epoch.unwrap_or(0)).map(drop)
        });
        let reply = match fetched.await.expect("no panic") {
            Ok(()) => Reply::Done,
            Err(ClientError::Refused(refusal)) if refusal.reason != "UNAVAILABLE" => {
                Reply::Refused(refusal.reason)
            }
            Err(_) => Reply::Lost,
        };
        drop(permit);
        let answered = match reply {
            Reply::Lost => self.settled().await,
            _ => self.shared.now(),
        };
        let call = Call::Fetch(Order { id: one.id, epoch, stale: is_stale(one, epoch) });
        self.shared.record(cell, Op { call, reply, called, answered });
    }

    async fn read_group(&mut self, cell: usize, group: usize) {
        let device = self.shared.cells[cell][group][0].clone();
        let called = self.shared.now();
        let ended = self
            .insist(false, |client| {
                let (mut client, group) = (client.groups.clone(), device.clone());
                async move { client.get_group(v1::GetGroupRequest { group }).await }
            })
            .await;
        let Ended::Answer(shown) = ended else { panic!("{device} can't be read") };
        let answered = self.shared.now();
        let mut reservations: Vec<Id> =
            shown.reservations.iter().map(|name| self.shared.id(name)).collect();
        reservations.sort_unstable();
        let owner = match shown.ownership() {
            v1::owner::Kind::Free => None,
            v1::owner::Kind::Exclusive => Some(Policy::Exclusive),
            v1::owner::Kind::Shared => Some(Policy::Shared),
            v1::owner::Kind::Group => Some(Policy::Group),
            other => panic!("{device} is {other:?}: {shown:?}"),
        };
        let shown = Shown { reservations, claims: shown.owner_cnt, epoch: shown.epoch, owner };
        let (call, reply) = (Call::Group(group), Reply::Group(shown));
        self.shared.record(cell, Op { call, reply, called, answered });
    }

    async fn look(&mut self, cell: usize, one: &Known) {
        let called = self.shared.now();
        let ended = self
            .insist(false, |client| {
                let (mut client, id) = (client.reservations.clone(), one.name.clone());
                async move { client.get_reservation(v1::GetReservationRequest { id }).await }
            })
            .await;
        let reply = match ended {
            Ended::Answer(found) => Reply::Standing(stand(found.state()), found.epoch),
            Ended::Refused(reason) => Reply::Refused(reason),
            Ended::Lost => Reply::Lost,
        };
        let answered = self.shared.now();
        self.shared.record(cell, Op { call: Call::Look(one.id), reply, called, answered });
    }

    /// Reads all groups, releases all that is there, and finds nothing any more.
    pub(crate) async fn give_all_back(&mut self) {
        for cell in 0..self.shared.cells.len() {
            for group in 0..self.shared.cells[cell].len() {
                self.read_group(cell, group).await;
            }
            for one in self.shared.known(cell) {
                self.order(cell, &one, |order| Call::Release(order, true)).await;
            }
        }
        let listed = self.reservations.list_reservations(v1::ListReservationsRequest {}).await;
        let left = listed.expect("a list").into_inner().reservations;
        for one in left {
            let base = v1::ReleaseRequest::default();
            let request = v1::ReleaseRequest { id: one.id, force: true, ..base };
            self.reservations.release(request).await.expect("it is given back");
        }
        let request = v1::ListGroupsRequest::default();
        for group in self.groups.list_groups(request).await.expect("a list").into_inner().groups {
            let free = group.ownership() == v1::owner::Kind::Free && group.owner_cnt == 0;
            let ok = group.condition() == v1::Condition::Ok && group.drift.is_empty();
            let driver = group.devices.iter().any(|device| !device.driver.is_empty());
            assert!(free && ok && !driver, "not as it was: {group:?}");
        }
    }
}

fn is_stale(one: &Known, epoch: Option<u64>) -> bool {
    epoch.is_some_and(|epoch| epoch != one.epoch)
}

fn words(policy: Policy) -> v1::Policy {
    match policy {
        Policy::Exclusive => v1::Policy::Exclusive,
        Policy::Shared => v1::Policy::Shared,
        Policy::Group => v1::Policy::Group,
    }
}

fn delivery_word(delivery: Delivery) -> v1::Delivery {
    match delivery {
        Delivery::Held => v1::Delivery::Held,
        Delivery::Bound => v1::Delivery::Bound,
        Delivery::Unbound => v1::Delivery::Unbound,
        Delivery::Node => v1::Delivery::Node,
    }
}

fn stand(state: v1::reservation::State) -> Stand {
    match state {
        v1::reservation::State::Preparing | v1::reservation::State::Reserved => Stand::Reserved,
        v1::reservation::State::Handed => Stand::Handed,
        v1::reservation::State::Held => Stand::Held,
        v1::reservation::State::Expired => Stand::Expired,
        v1::reservation::State::Released => Stand::Released,
        _ => Stand::Other,
    }
}
