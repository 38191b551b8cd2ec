//! What a set of groups is to its clients: a model that shares nothing with the code it judges.
//!
//! Kernel work has its effect where it ends; until then other orders for the same reservation may be
//! answered `RESERVATION_BUSY`. A lease ends somewhere between when it is due and when the daemon has
//! had the time to see to it.

/// How late the end of a lease may come: the daemon looks every second, and this machine is busy.
const LATEST_NS: u64 = 30_000_000_000;
/// Clocks are read in milliseconds.
const EARLIER_NS: u64 = 2_000_000;

/// A reservation.
pub(crate) type Id = u32;
/// A set of devices of one cell.
pub(crate) type Devices = u8;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Policy {
    Exclusive,
    Shared,
    Group,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Delivery {
    Held,
    Bound,
    Unbound,
    Node,
}

impl Delivery {
    fn holder_attaches(self) -> bool {
        matches!(self, Self::Unbound | Self::Node)
    }
}

/// Where a reservation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stand {
    Reserved,
    Handed,
    Held,
    Expired,
    /// Given back: it is remembered for a while.
    Released,
    Other,
}

/// For a reservation, maybe under an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) id: Id,
    pub(crate) epoch: Option<u64>,
    /// Whether that never was its epoch.
    pub(crate) stale: bool,
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Reserve {
        policy: Policy,
        delivery: Delivery,
        devices: Devices,
        join: Option<Id>,
        ttl_ns: Option<u64>,
    },
    Attach(Order),
    Renew(Order),
    Release(Order, bool),
    Fetch(Order),
    Group(usize),
    Look(Id),
    /// The daemon was killed and is ready again.
    Restart,
}

/// What a group was seen to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Sorted.
    pub(crate) reservations: Vec<Id>,
    pub(crate) claims: u32,
    pub(crate) epoch: u64,
    /// The policy of whoever owns it.
    pub(crate) owner: Option<Policy>,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Granted {
        id: Id,
        epoch: u64,
    },
    Done,
    Refused(String),
    Group(Shown),
    Standing(Stand, u64),
    /// Nothing came, so it may have been done or not.
    Lost,
}

/// One operation, from its first call to its last answer, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Op {
    pub(crate) call: Call,
    pub(crate) reply: Reply,
    pub(crate) called: u64,
    pub(crate) answered: u64,
}

impl Op {
    /// The reservation that it is an order for.
    pub(crate) fn order(&self) -> Option<Order> {
        match self.call {
            Call::Attach(order)
            | Call::Renew(order)
            | Call::Release(order, _)
            | Call::Fetch(order) => Some(order),
            Call::Reserve { .. } | Call::Group(_) | Call::Look(_) | Call::Restart => None,
        }
    }

    /// Whether its answer leaves open what came of it: there was none, or a release came between a
    /// hand-over and its answer. That one ends the claims.
    pub(crate) fn is_open(&self) -> bool {
        let fetch = matches!(self.call, Call::Fetch(_)) && self.refused("RESERVATION_BUSY");
        fetch || self.reply == Reply::Lost
    }

    /// The reservations that it names.
    pub(crate) fn reservations(&self) -> Vec<Id> {
        let mut found: Vec<Id> = self.order().map(|order| order.id).into_iter().collect();
        match (&self.call, &self.reply) {
            (Call::Look(id), _) | (_, Reply::Granted { id, .. }) => found.push(*id),
            (_, Reply::Group(shown)) => found.extend(&shown.reservations),
            _ => {}
        }
        found
    }

    pub(crate) fn refused(&self, reason: &str) -> bool {
        matches!(&self.reply, Reply::Refused(found) if found == reason)
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.called <= other.answered && other.called <= self.answered
    }
}

/// Groups that are reserved together: each by its devices.
pub(crate) type Groups = Vec<Devices>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Lease {
    ttl_ns: u64,
    earliest: u64,
    latest: u64,
}

impl Lease {
    fn begun(by: &Op, ttl_ns: u64) -> Self {
        let earliest = (by.called + ttl_ns).saturating_sub(EARLIER_NS);
        Self { ttl_ns, earliest, latest: by.answered + ttl_ns + LATEST_NS }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Live {
    id: Id,
    policy: Policy,
    delivery: Delivery,
    devices: Devices,
    /// Whose domain or token it presents.
    root: Id,
    epoch: u64,
    stand: Stand,
    expired: bool,
    lease: Option<Lease>,
}

impl Live {
    fn claims(&self) -> bool {
        self.stand != Stand::Reserved
    }
}

/// What is so between two operations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    live: Vec<Live>,
    epochs: [u64; 2],
}

/// What an order comes to.
enum Answer {
    Done(State),
    /// Refused with one of these.
    No(Vec<&'static str>),
}

/// What else went on during an operation.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Around {
    /// Other work was asked for of its reservation.
    pub(crate) busy: bool,
    pub(crate) restarted: bool,
}

/// What happened to one cell.
#[derive(Debug, Clone)]
pub(crate) struct History {
    pub(crate) groups: Groups,
    pub(crate) ops: Vec<Op>,
}

impl State {
    fn find(&self, id: Id) -> Option<&Live> {
        self.live.iter().find(|live| live.id == id)
    }

    fn with(&self, id: Id, change: impl FnOnce(&mut Live)) -> Self {
        let mut after = self.clone();
        if let Some(live) = after.live.iter_mut().find(|live| live.id == id) {
            change(live);
        }
        after
    }

    fn without(&self, id: Id) -> Self {
        let mut after = self.clone();
        after.live.retain(|live| live.id != id);
        after
    }

    fn expire(&self, id: Id) -> Self {
        match self.find(id) {
            Some(live) if live.claims() => self.with(id, |live| live.expired = true),
            _ => self.without(id),
        }
    }

    fn restart(&self, by: &Op) -> Self {
        let mut after = self.clone();
        for live in &mut after.live {
            live.stand = Stand::Reserved;
            live.expired = false;
            live.lease = live.lease.map(|lease| Lease::begun(by, lease.ttl_ns));
        }
        after
    }

    fn order(&self, op: &Op, order: Order) -> Answer {
        let Some(live) = self.find(order.id) else {
            // One that was given back is remembered for a while: its epoch, and who attaches it.
            let mut no = vec!["NOT_FOUND"];
            if order.stale {
                no.push("STALE_EPOCH");
            }
            if matches!(op.call, Call::Attach(_)) {
                no.push("HOLDER_OWNS_DOMAIN");
            }
            return Answer::No(no);
        };
        let mut no = Vec::new();
        if order.epoch.is_some_and(|epoch| epoch != live.epoch) {
            no.push("STALE_EPOCH");
            if !matches!(op.call, Call::Fetch(_)) {
                return Answer::No(no);
            }
        }
        if live.expired && !matches!(op.call, Call::Renew(_) | Call::Release(_, true)) {
            no.push("LEASE_EXPIRED");
        }
        match op.call {
            Call::Attach(_) if live.delivery.holder_attaches() => no = vec!["HOLDER_OWNS_DOMAIN"],
            Call::Attach(_) if live.claims() && !live.expired => no.push("ALREADY_ATTACHED"),
            Call::Fetch(_) if !live.delivery.holder_attaches() && !live.claims() => {
                no.push("NOT_ATTACHED");
            }
            _ => {}
        }
        if !no.is_empty() {
            return Answer::No(no);
        }
        Answer::Done(match op.call {
            Call::Attach(_) => self.with(order.id, |live| live.stand = Stand::Held),
            Call::Fetch(_) if !live.claims() => {
                self.with(order.id, |live| live.stand = Stand::Handed)
            }
            Call::Release(..) => self.without(order.id),
            Call::Renew(_) => self.with(order.id, |live| {
                live.expired = false;
                live.lease = live.lease.map(|lease| Lease::begun(op, lease.ttl_ns));
            }),
            _ => self.clone(),
        })
    }
}

impl History {
    /// What may be so after an operation, if it came next. No lease that may end ends later than
    /// `limit`, the first answer that is left.
    pub(crate) fn after(&self, state: &State, at: usize, limit: u64, around: Around) -> Vec<State> {
        let op = &self.ops[at];
        let mut found = Vec::new();
        for before in expiries(state, op, limit) {
            found.extend(self.step(&before, op, around));
        }
        found
    }

    fn step(&self, state: &State, op: &Op, around: Around) -> Vec<State> {
        let same = || vec![state.clone()];
        match (&op.call, &op.reply) {
            (Call::Restart, _) => vec![state.restart(op)],
            (Call::Reserve { .. }, Reply::Granted { id, epoch }) => {
                self.grant(state, op, *id, *epoch).into_iter().collect()
            }
            (Call::Reserve { .. }, Reply::Refused(reason)) => {
                let expected = ["GROUP_OWNED", "GROUP_NOT_SINGLETON", "DOMAIN_MISMATCH"];
                let join = ["NOT_FOUND", "LEASE_EXPIRED"];
                let known = expected.iter().chain(&join).any(|known| known == reason);
                if known && !self.grantable(state, &op.call) { same() } else { Vec::new() }
            }
            (Call::Group(group), Reply::Group(shown)) => {
                if self.shown(state, *group) == *shown {
                    same()
                } else {
                    Vec::new()
                }
            }
            (Call::Look(id), Reply::Standing(stand, epoch)) => {
                let so = match state.find(*id) {
                    None => *stand == Stand::Released && self.was_granted(*id, *epoch, op),
                    Some(live) => {
                        let now = if live.expired { Stand::Expired } else { live.stand };
                        now == *stand && live.epoch == *epoch
                    }
                };
                if so { same() } else { Vec::new() }
            }
            (Call::Look(id), Reply::Refused(reason)) => {
                if reason == "NOT_FOUND" && state.find(*id).is_none() { same() } else { Vec::new() }
            }
            _ => order_step(state, op, around),
        }
    }

    fn was_granted(&self, id: Id, epoch: u64, before: &Op) -> bool {
        let reply = Reply::Granted { id, epoch };
        self.ops.iter().any(|op| op.reply == reply && op.called < before.answered)
    }

    fn shown(&self, state: &State, group: usize) -> Shown {
        let here = self.groups[group];
        let live = || state.live.iter().filter(|live| live.devices & here != 0);
        let mut reservations: Vec<Id> = live().map(|live| live.id).collect();
        reservations.sort_unstable();
        let owners = || live().filter(|live| live.claims());
        Shown {
            reservations,
            claims: owners().map(|live| (live.devices & here).count_ones()).sum(),
            epoch: state.epochs[group],
            owner: owners().next().map(|live| live.policy),
        }
    }

    fn touched(&self, devices: Devices) -> impl Iterator<Item = (usize, Devices)> {
        let groups = self.groups.iter().copied().enumerate();
        groups.filter(move |(_, group)| group & devices != 0)
    }

    fn grantable(&self, state: &State, call: &Call) -> bool {
        let Call::Reserve { policy, devices, join, .. } = call else { return false };
        let root = match join.map(|join| state.find(join)) {
            None => None,
            Some(Some(joined)) if !joined.expired => Some(joined.root),
            Some(_) => return false,
        };
        self.touched(*devices).all(|(_, group)| {
            let mut here = state.live.iter().filter(|live| live.devices & group != 0);
            let single = group.count_ones() == 1;
            (*policy != Policy::Exclusive || single)
                && here.all(|live| Some(live.root) == root && live.devices & devices == 0)
        })
    }

    fn grant(&self, state: &State, op: &Op, id: Id, epoch: u64) -> Option<State> {
        let Call::Reserve { policy, delivery, devices, join, ttl_ns } = &op.call else {
            return None;
        };
        let grows = self.touched(*devices).all(|(group, _)| state.epochs[group] < epoch);
        if !grows || state.find(id).is_some() || !self.grantable(state, &op.call) {
            return None;
        }
        let mut after = state.clone();
        self.touched(*devices).for_each(|(group, _)| after.epochs[group] = epoch);
        after.live.push(Live {
            id,
            policy: *policy,
            delivery: *delivery,
            devices: *devices,
            root: join.and_then(|join| state.find(join)).map_or(id, |joined| joined.root),
            epoch,
            stand: Stand::Reserved,
            expired: false,
            lease: ttl_ns.map(|ttl_ns| Lease::begun(op, ttl_ns)),
        });
        after.live.sort_unstable_by_key(|live| live.id);
        Some(after)
    }
}

fn order_step(state: &State, op: &Op, around: Around) -> Vec<State> {
    let Some(order) = op.order() else { return Vec::new() };
    let answer = state.order(op, order);
    match (&op.reply, answer) {
        (Reply::Done, Answer::Done(after)) => vec![after],
        (Reply::Lost, Answer::Done(after)) => vec![state.clone(), after],
        (Reply::Lost, Answer::No(_)) => vec![state.clone()],
        (Reply::Refused(_), Answer::Done(after)) if op.is_open() && around.busy => {
            vec![state.clone(), after]
        }
        (Reply::Refused(reason), _) if reason == "RESERVATION_BUSY" => {
            // Something is under way for it, or its lease is ending.
            let due = |live: &Live| live.lease.is_some_and(|lease| lease.earliest <= op.answered);
            let may = state
                .find(order.id)
                .is_some_and(|live| around.busy || around.restarted || due(live));
            if may { vec![state.clone()] } else { Vec::new() }
        }
        (Reply::Refused(reason), _) if reason == "DAEMON_RESTARTED" && around.restarted => {
            vec![state.clone()]
        }
        (Reply::Refused(reason), Answer::No(no)) if no.iter().any(|it| it == reason) => {
            vec![state.clone()]
        }
        _ => Vec::new(),
    }
}

/// The state with every set of leases ended that may have ended by now, and those that must have.
fn expiries(state: &State, op: &Op, limit: u64) -> Vec<State> {
    let mut found = vec![state.clone()];
    for live in &state.live {
        let Some(lease) = live.lease.filter(|_| !live.expired) else { continue };
        if lease.earliest > limit {
            continue;
        }
        let ended: Vec<State> = found.iter().map(|before| before.expire(live.id)).collect();
        if op.called > lease.latest {
            found = ended;
        } else {
            found.extend(ended);
        }
    }
    found
}
