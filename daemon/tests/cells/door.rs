//! What the daemon tells itself: facts of the host, of holders and of the clock that no call
//! brings. They go in at the ledger's door, as those who watch holders and hosts bring them, and
//! what comes of them is seen by gRPC.

use std::sync::atomic::{AtomicU32, Ordering};

use berth_ownership::{
    Backend, Command, Delivery, DeviceFacts, Flags, GroupFacts, Hold, HolderProcess, Order, Policy,
    Reserve, ResetPolicy, TargetRequest,
};
use berthd::model::Meta;

use crate::{
    ask::{Answer, LABEL, Refused},
    world::{Kind, World, address},
};

/// Larger than any real pid, so that no process is meant by it.
const PIDS: u32 = 1 << 24;

static COUNT: AtomicU32 = AtomicU32::new(1);

fn count() -> u32 {
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// A process that nobody finds.
pub(crate) fn process() -> HolderProcess {
    HolderProcess { pid: PIDS + count(), start_ticks: 1 }
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
        commands.push(Command::Cordon { device: marker.as_str().into(), why: why.clone() });
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

    /// A reservation whose holder makes its own domains: its delivery is not served by calls yet.
    pub(crate) async fn reserve_unbound(
        &self,
        policy: Policy,
        device: &str,
        join: Option<&str>,
    ) -> Result<String, String> {
        let count = count();
        let id = format!("r-unbound-{count}");
        let snapshot = self.ledger.snapshot();
        let group = snapshot.group_of(address(device)).expect("a group of the machine").id.clone();
        let request = Reserve {
            id: id.as_str().into(),
            new_context: format!("c-unbound-{count}").into(),
            new_domain: format!("d-unbound-{count}").into(),
            holder: "vm".into(),
            label: LABEL.into(),
            requester: "uid:0".to_owned(),
            for_identity: "uid:0".to_owned(),
            policy,
            delivery: Delivery::Unbound,
            backend: Backend::Iommufd,
            targets: vec![TargetRequest { group, devices: vec![device.into()] }],
            domain: None,
            join: join.map(Into::into),
            memory_bytes: 0,
            ttl_ms: None,
            flags: Flags::default(),
            reset_policy: ResetPolicy::AllowSameLabel,
            hold: Hold::Kernel,
            prepare: true,
        };
        let command = Command::Reserve(Box::new(request));
        let applied = self.ledger.submit(command, Meta::internal("walk")).await;
        let applied = applied.map_err(|error| format!("reserving {device} unbound: {error}"))?;
        let ended = match applied.completion {
            Some(completion) => completion.await.map_err(|error| error.to_string())?,
            None => return Err(format!("{id} needs no kernel work")),
        };
        match ended.failure {
            Some(failure) => Err(format!("preparing {id}: {failure}")),
            None => Ok(id),
        }
    }

    /// The holder of a reservation gets its descriptors.
    pub(crate) fn hand_over(id: &str, process: &HolderProcess) -> Command {
        Command::HandOver { order: Order::new(id), process: process.clone() }
    }
}
