//! What the daemon tells itself: facts of the host, of holders and of the clock that no call
//! brings. They go in at the ledger's door, as those who watch holders and hosts bring them, and
//! what comes of them is seen by gRPC.

use std::sync::atomic::{AtomicU32, Ordering};

use berth_ownership::{
    Adopt, Backend, Command, Delivery, DeviceFacts, Flags, GroupFacts, Hold, HolderProcess, Order,
    Policy, Reserve, ResetPolicy, TargetRequest,
};
use berth_proto::v1;
use berthd::model::Meta;

use crate::{
    ask::{Answer, LABEL, Refused, arranging, wish},
    world::{Kind, Place, World, address},
};

/// Larger than any real pid, so that no process is meant by it.
const PIDS: u32 = 1 << 24;

static COUNT: AtomicU32 = AtomicU32::new(1);

fn count() -> u32 {
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// A process that nobody finds.
pub(crate) fn process() -> HolderProcess {
    HolderProcess::new(PIDS + count(), 1)
}

impl World {
    /// Tells a fact that is taken.
    pub(crate) async fn fact(&self, command: Command) -> Result<(), String> {
        self.facts(vec![command]).await
    }

    /// Tells facts at one time: all of them are taken.
    pub(crate) async fn facts(&self, commands: Vec<Command>) -> Result<(), String> {
        let what = format!("{commands:?}");
        let told = self.ledger.submit_all(commands, Meta::internal("walk")).await;
        told.map(drop).map_err(|error| format!("telling {what}: {error}"))
    }

    /// Tells facts together with the mark of a device that nobody uses: all are recorded, or none.
    /// So gRPC shows whether they were taken, also where they change nothing.
    pub(crate) async fn tell(&self, mut commands: Vec<Command>) -> Answer<()> {
        let marker = self.place(Kind::Single).a;
        let why = format!("marker {}", count());
        commands.push(Command::Cordon {
            device: marker.as_str().into(),
            why: why.clone(),
            ttl_ms: None,
        });
        let told = self.ledger.submit_all(commands, Meta::internal("walk")).await;
        let taken = self.device(&marker).await?.condition_note.contains(&why);
        match told {
            Ok(_) if taken => Ok(()),
            Err(error) if !taken => {
                let refusal = error.into_refusal();
                Err(Refused {
                    reason: refusal.reason.name().to_owned(),
                    errno: refusal.errno,
                    message: refusal.message,
                })
            }
            told => Err(Refused {
                reason: "TORN".to_owned(),
                errno: 0,
                message: format!("{told:?}, and the marker says {taken}"),
            }),
        }
    }

    /// What is known of the group of a device.
    fn facts_of(&self, member: &str) -> GroupFacts {
        let snapshot = self.ledger.snapshot();
        let group = snapshot.group_of(address(member)).expect("a group of the machine");
        GroupFacts {
            id: group.id.clone(),
            devices: snapshot.state.devices_of(group).map(|device| device.facts.clone()).collect(),
            foreign_pids: group.foreign_pids.clone(),
            foreign: group.foreign.clone(),
        }
    }

    /// The host looks otherwise from now on.
    pub(crate) async fn observe(
        &self,
        member: &str,
        change: impl FnOnce(&mut GroupFacts),
    ) -> Result<(), String> {
        let mut facts = self.facts_of(member);
        change(&mut facts);
        self.fact(Command::Observe(facts)).await
    }

    /// Another device turns up in the group of a device.
    pub(crate) async fn crowd(&self, member: &str) -> Result<(), String> {
        let count = count();
        let (high, low) = (count >> 8 & 0xff, count & 0xff);
        let more = DeviceFacts::new(format!("{:04x}:{high:02x}:00.{}", 0x8000 + low, count & 7));
        self.observe(member, |facts| facts.devices.push(more)).await
    }

    /// A reservation whose holder attaches by itself: with what it is handed, or what it opens.
    pub(crate) async fn reserve_handed(
        &self,
        policy: Policy,
        device: &str,
        join: Option<&str>,
    ) -> Result<String, String> {
        let delivery = match self.backend {
            v1::Backend::Type1 => v1::Delivery::Node,
            v1::Backend::Auto | v1::Backend::Iommufd => v1::Delivery::Unbound,
        };
        let request = v1::ReserveRequest {
            delivery: delivery.into(),
            join: join.unwrap_or_default().to_owned(),
            ..wish(policy, device)
        };
        let own = arranging("a reservation", self.reserve(request).await)?;
        Ok(own.id)
    }

    /// The holder of a reservation gets what it needs; the kernel work that this takes is waited for.
    pub(crate) async fn handed_over(&self, id: &str) -> Result<(), String> {
        let command = Self::hand_over(id, &process());
        let told = self.ledger.submit(command, Meta::internal("walk")).await;
        let told = told.map_err(|error| format!("handing {id} over: {error}"))?;
        let Some(work) = told.completion else { return Ok(()) };
        let ended = work.await.map_err(|error| error.to_string())?;
        ended.failure.map_or(Ok(()), |why| Err(format!("handing {id} over: {why}")))
    }

    /// A process gets what a reservation's holder needs.
    pub(crate) fn hand_over(id: &str, process: &HolderProcess) -> Command {
        Command::HandOver { order: Order::new(id), process: process.clone() }
    }
}

impl World {
    /// A process is adopted on a place, told to the ledger; with the reservation that it gets. It is
    /// the foreign owner, or another one.
    pub(crate) async fn adopt(&self, place: &Place, owner: bool) -> (String, Answer<()>) {
        let snapshot = self.ledger.snapshot();
        let group = snapshot.group_of(address(&place.a)).expect("a group of the machine");
        let foreign = group.foreign_pids.first().filter(|_| owner);
        let pid = foreign.copied().unwrap_or_else(|| process().pid);
        let id = format!("r-adopt{}", count());
        let request = Reserve {
            id: id.as_str().into(),
            new_context: format!("c-{id}").into(),
            new_domain: format!("d-{id}").into(),
            holder: "walk".into(),
            label: LABEL.into(),
            requester: "uid:0".to_owned(),
            for_identity: "uid:0".to_owned(),
            policy: Policy::Exclusive,
            delivery: Delivery::Node,
            backend: Backend::Iommufd,
            targets: vec![TargetRequest { group: group.id.clone(), devices: Vec::new() }],
            domain: None,
            join: None,
            memory_bytes: 0,
            ttl_ms: None,
            flags: Flags::default(),
            reset_policy: ResetPolicy::AllowSameLabel,
            hold: Hold::Kernel,
            prepare: false,
        };
        let process = HolderProcess::new(pid, 1);
        let command = Command::Adopt(Box::new(Adopt { request, process }));
        (id, self.tell(vec![command]).await)
    }
}
