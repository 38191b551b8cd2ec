//! Short ways to say commands.

use crate::*;

pub(super) const T0: u64 = 1_000;
pub(super) const TTL: u64 = 500;

pub(super) fn now() -> Time {
    at(T0)
}

pub(super) fn later() -> Time {
    at(T0 + TTL)
}

pub(super) fn at(boot_ms: u64) -> Time {
    Time { unix_ms: UnixMs(7), boot_ms, boot_id: "boot".into() }
}

/// What the machine shows against a device.
pub(super) fn assess(device: impl Into<DeviceId>, codes: &[CauseCode]) -> Command {
    let cause = |code: &CauseCode| Cause { code: *code, what: "3".to_owned(), since_ms: UnixMs(7) };
    let causes = codes.iter().map(cause).collect();
    Command::Assess { device: device.into(), health: Health { causes, counted: None } }
}

pub(super) fn device(id: &str) -> DeviceFacts {
    DeviceFacts::new(id)
}

pub(super) fn driven(id: &str, driver: &str) -> DeviceFacts {
    DeviceFacts { dma: DriverDma::Kernel(driver.to_owned()), ..DeviceFacts::new(id) }
}

pub(super) fn observe(group: &str, devices: Vec<DeviceFacts>) -> Command {
    Command::Observe(GroupFacts { id: group.into(), devices, ..no_owners() })
}

pub(super) fn foreign(group: &str, devices: Vec<DeviceFacts>, pid: u32) -> Command {
    Command::Observe(GroupFacts {
        id: group.into(),
        devices,
        foreign_pids: vec![pid],
        foreign: vec![ForeignProcess { pid, name: "qemu".to_owned(), unit: String::new() }],
    })
}

fn no_owners() -> GroupFacts {
    GroupFacts { id: "".into(), devices: Vec::new(), foreign_pids: Vec::new(), foreign: Vec::new() }
}

pub(super) fn adopt(n: usize, policy: Policy, label: &str, group: &str, pid: u32) -> Command {
    let delivery = Delivery::Node;
    let request = Reserve { delivery, ..reserve(n, policy, label, group) };
    Command::Adopt(Box::new(Adopt { request, process: process(pid) }))
}

pub(super) fn reserve(n: usize, policy: Policy, label: &str, group: &str) -> Reserve {
    Reserve {
        id: format!("r-{n}").into(),
        new_context: format!("c-{n}").into(),
        new_domain: format!("d-{n}").into(),
        holder: format!("vm-{n}").into(),
        label: label.into(),
        requester: "uid:0".to_owned(),
        for_identity: "uid:1000".to_owned(),
        policy,
        delivery: Delivery::Held,
        backend: Backend::Iommufd,
        targets: vec![TargetRequest { group: group.into(), devices: Vec::new() }],
        domain: None,
        join: None,
        memory_bytes: 0,
        ttl_ms: None,
        flags: Flags::default(),
        reset_policy: ResetPolicy::AllowSameLabel,
        hold: Hold::Ledger,
        prepare: false,
    }
}

pub(super) fn ask(request: Reserve) -> Command {
    Command::Reserve(Box::new(request))
}

pub(super) fn id(n: usize) -> ReservationId {
    format!("r-{n}").into()
}

pub(super) fn order(n: usize) -> Order {
    Order::new(id(n))
}

pub(super) fn process(pid: u32) -> HolderProcess {
    HolderProcess::new(pid, 1)
}

pub(super) fn returned(state: &State, n: usize, reset: ResetOutcome) -> Vec<DeviceReturn> {
    let Some(reservation) = state.reservation(&id(n)) else { return Vec::new() };
    reservation
        .devices()
        .chain(reservation.taken.iter())
        .map(|device| DeviceReturn {
            device: device.clone(),
            reset,
            baseline_restored: true,
            note: String::new(),
        })
        .collect()
}

/// Decides, applies and checks what must always hold.
pub(super) fn run(state: &mut State, cmd: &Command) -> Result<Vec<Event>, Box<Refusal>> {
    run_at(state, cmd, &now())
}

pub(super) fn run_at(
    state: &mut State,
    cmd: &Command,
    time: &Time,
) -> Result<Vec<Event>, Box<Refusal>> {
    let events = state.decide(cmd, time)?;
    state.apply_all(&events);
    if let Err(broken) = invariants::check(state) {
        panic!("{broken}, after {cmd:?}");
    }
    Ok(events)
}

/// Runs commands that must be granted.
pub(super) fn run_all(state: &mut State, cmds: &[Command]) {
    for cmd in cmds {
        if let Err(refusal) = run(state, cmd) {
            panic!("{cmd:?} was refused: {refusal}");
        }
    }
}

/// Runs a command that must be refused.
pub(super) fn refused(state: &State, cmd: &Command) -> Refusal {
    match state.decide(cmd, &now()) {
        Ok(events) => panic!("{cmd:?} was granted: {events:?}"),
        Err(refusal) => *refusal,
    }
}

pub(super) fn attach(state: &mut State, n: usize) {
    let attach = Command::Attach { order: order(n), domain: None };
    run_all(state, &[attach, Command::AttachDone { reservation: id(n) }]);
}

pub(super) fn detach(state: &mut State, n: usize) {
    let detach = Command::Detach { order: order(n) };
    run_all(state, &[detach, Command::DetachDone { reservation: id(n) }]);
}

/// Releases, with verified resets where devices were touched.
pub(super) fn release(state: &mut State, n: usize) {
    release_with(state, n, ResetOutcome::Verified);
}

pub(super) fn release_with(state: &mut State, n: usize, reset: ResetOutcome) {
    run_all(state, &[Command::Release { order: order(n), force: true }]);
    let pending = state.reservation(&id(n)).is_some_and(|record| record.pending.is_some());
    if pending {
        let returned = returned(state, n, reset);
        run_all(state, &[Command::ReleaseDone { reservation: id(n), returned }]);
    }
}

/// Two devices of the group `g-2`.
pub(super) const A: &str = "0000:65:00.0";
pub(super) const B: &str = "0000:65:00.1";

/// A reservation of one of them.
pub(super) fn on(n: usize, policy: Policy, address: &str) -> Reserve {
    let devices = vec![DeviceId::from(address)];
    Reserve {
        targets: vec![TargetRequest { group: "g-2".into(), devices }],
        ..reserve(n, policy, "a", "g-2")
    }
}

/// Both are there.
pub(super) fn pair() -> State {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-2", vec![device(A), device(B)])]);
    state
}

/// The first one alone in `g-1`.
pub(super) fn single() -> State {
    let mut state = State::new();
    run_all(&mut state, &[observe("g-1", vec![device(A)])]);
    state
}
