//! A reservation's life in which a call may fail, and what must be so then.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::{
    super::{
        berthd_leaks::Count,
        berthd_seen::{Kernel, Shown, fits, kernel, patient},
        berthd_tools::{Before, text},
    },
    ask::{Answer, may_break, over_http, over_socket, reasons},
};
use crate::{
    guest::{
        Ctx, access,
        daemon::Daemon,
        injector::{Counted, Fault, Injector},
        memory::Memory,
        sysfs, wait_for,
    },
    topology::{EDU_ROOT, NVME0},
};

/// Of all lives: the device can't be reset, so no other label gets it after the first.
pub(super) const LABEL: &str = "tests";
const IOVA: &str = "0x400000";
const PAGE: u64 = 4096;
/// Between two questions for the same.
const PAUSE: Duration = Duration::from_millis(50);
/// SQLite's file, its log and its index, of the writer, of the ledger's reader and of two others.
const DATABASE: usize = 4 * 3;
const RESERVATIONS: &str = "/api/v1/reservations";

/// What is reserved, and how it is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A device without a driver, handed over.
    Bound,
    /// The same, of which memory is registered.
    Held,
    /// A disk that is taken from its host driver, handed over.
    Taken,
}

pub(super) const LIVES: [Kind; 3] = [Kind::Bound, Kind::Held, Kind::Taken];

impl Kind {
    const fn device(self) -> &'static str {
        match self {
            Self::Bound | Self::Held => EDU_ROOT,
            Self::Taken => NVME0,
        }
    }

    const fn delivery(self) -> &'static str {
        match self {
            Self::Held => "HELD",
            Self::Bound | Self::Taken => "BOUND",
        }
    }
}

/// How a life with a fault went.
#[derive(Debug)]
pub(super) struct End {
    pub(super) hit: bool,
    /// Whether something was refused, and whether that was with the errno of the call.
    pub(super) refused: bool,
    pub(super) exact: bool,
    pub(super) words: String,
}

/// One `berthd` for all lives.
pub(super) struct Bench<'a> {
    pub(super) ctx: &'a Ctx,
    pub(super) daemon: Daemon,
    injector: Injector,
    backend: &'static str,
    reasons: BTreeSet<&'static str>,
    before: BTreeMap<&'static str, Before>,
    epochs: BTreeMap<&'static str, u64>,
    requests: u32,
    /// Descriptors when nobody has anything, by what they are of, and helpers.
    baseline: Option<Count>,
    /// Refusals of all lives, and of this one.
    told: BTreeMap<String, u32>,
    refusals: Vec<(String, i64)>,
}

impl<'a> Bench<'a> {
    pub(super) fn start(ctx: &'a Ctx, backend: &'static str) -> Result<Self> {
        let (daemon, injector) = Injector::start(ctx, patient(ctx)?)?;
        let before = [EDU_ROOT, NVME0].map(|device| (device, Before::of(device)));
        Ok(Self {
            ctx,
            daemon,
            injector,
            backend,
            reasons: reasons()?,
            before: before.into(),
            epochs: BTreeMap::new(),
            requests: 0,
            baseline: None,
            told: BTreeMap::new(),
            refusals: Vec::new(),
        })
    }

    /// How often what was refused, over all lives.
    pub(super) const fn told(&self) -> &BTreeMap<String, u32> {
        &self.told
    }

    /// What is open now, while nobody has anything, is what may be open from now on.
    pub(super) fn settle_baseline(&mut self) -> Result<()> {
        let count = Count::of(self.injector.traced()?)?;
        let of_devices: Vec<_> = count.fds.keys().filter(|kind| is_of_devices(kind)).collect();
        ensure!(of_devices.is_empty(), "open without a reservation: {of_devices:?}");
        println!("nobody has anything: {count:?}");
        self.baseline = Some(count);
        Ok(())
    }

    /// A life without a fault: nothing is refused.
    pub(super) fn plain_life(&mut self, kind: Kind) -> Result<Counted> {
        let counted = self.life(kind, None)?;
        ensure!(!counted.hit, "a call failed without order");
        Ok(counted)
    }

    /// A life in which a call fails.
    pub(super) fn faulty_life(&mut self, kind: Kind, fault: &Fault) -> Result<End> {
        let began = Instant::now();
        let counted = self.life(kind, Some(fault))?;
        let mut words = match (counted.hit, self.refusals.is_empty()) {
            (false, _) => "not reached".to_owned(),
            (true, true) => "nobody was disturbed".to_owned(),
            (true, false) => {
                let words: Vec<&str> = self.refusals.iter().map(|(it, _)| it.as_str()).collect();
                words.join(", ")
            }
        };
        let exact = self.refusals.iter().any(|(_, errno)| *errno == i64::from(fault.errno));
        let refused = !self.refusals.is_empty();
        if self.mend(kind.device())? {
            words += "; quarantined";
        }
        self.nothing_is_left(kind.device())?;
        let words = format!("{words} ({:.1?})", began.elapsed());
        Ok(End { hit: counted.hit, refused, exact, words })
    }

    fn life(&mut self, kind: Kind, fault: Option<&Fault>) -> Result<Counted> {
        self.refusals.clear();
        self.injector.next(fault)?;
        let wanted = json!({
            "holder": "vm1", "label": LABEL, "devices": [{"pci": kind.device()}], "policy": "EXCLUSIVE",
            "delivery": kind.delivery(), "backend": self.backend.to_uppercase(),
            "takeFromHost": kind == Kind::Taken,
        });
        let reserved = self.insist(kind, fault, None, "reserve", |daemon, request| {
            let mut wanted = wanted.clone();
            wanted["requestId"] = json!(request);
            over_http(daemon, &format!("POST {RESERVATIONS}"), &wanted)
        })?;
        let id = text(&reserved, "id")?;
        self.look_when_done(kind, fault, &id)?;
        self.insist(kind, fault, Some(&id), "attach", |daemon, request| {
            let line = format!("POST {RESERVATIONS}/{id}/attach");
            over_http(daemon, &line, &json!({"requestId": request}))
        })?;
        self.look_when_done(kind, fault, &id)?;
        if kind == Kind::Held {
            self.register(kind, fault, &id)?;
        } else {
            // Whatever comes is closed at once.
            self.insist(kind, fault, Some(&id), "fetch", |daemon, _| {
                over_socket(daemon, &json!({"op": "fetch", "reservation": id}), None)
            })?;
        }
        self.insist(kind, fault, None, "release", |daemon, request| {
            let line = format!("DELETE {RESERVATIONS}/{id}?requestId={request}");
            match over_http(daemon, &line, &Value::Null)? {
                // It was going on when it was refused.
                Err(refusal) if refusal["reason"] == "NOT_FOUND" => Ok(Ok(Value::Null)),
                answer => Ok(answer),
            }
        })?;
        self.injector.next(None)
    }

    fn register(&mut self, kind: Kind, fault: Option<&Fault>, id: &str) -> Result<()> {
        let memory = Memory::sealed(PAGE)?;
        let mut request = json!({
            "op": "register", "reservation": id, "iova": IOVA, "lengthBytes": PAGE, "offset": 0,
            "write": true, "read": true,
        });
        let mut broken = false;
        for op in ["register", "unregister"] {
            if op == "unregister" {
                request = json!({
                    "op": op, "reservation": id, "iova": IOVA, "lengthBytes": PAGE,
                });
            }
            let memory = (op == "register").then_some(&memory);
            self.insist(kind, fault, Some(id), op, |daemon, _| {
                match over_socket(daemon, &request, memory) {
                    // Whether it was done is unknown then; the release ends it.
                    Err(error) if may_break(fault) => {
                        println!("{op} broke: {error:#}");
                        broken = true;
                        Ok(Ok(Value::Null))
                    }
                    Ok(Err(refusal)) if broken => Ok(Ok(refusal)),
                    answer => answer,
                }
            })?;
        }
        Ok(())
    }

    /// Asks until it is done: what was refused because a call failed is done when it is asked again.
    /// After each refusal the kernel is looked at; a reservation of this id goes on then.
    fn insist(
        &mut self,
        kind: Kind,
        fault: Option<&Fault>,
        id: Option<&str>,
        step: &str,
        mut once: impl FnMut(&Daemon, &str) -> Result<Answer>,
    ) -> Result<Value> {
        let deadline = Instant::now() + self.ctx.patience();
        let mut request = self.next_request();
        loop {
            match once(&self.daemon, &request) {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(refusal)) => {
                    ensure!(fault.is_some(), "{step} was refused without a fault: {refusal}");
                    self.is_typed(step, &refusal)?;
                    self.look(kind, step, id).with_context(|| format!("after {refusal}"))?;
                    if refusal["reason"] == "QUARANTINED" {
                        self.mend(kind.device())?;
                    }
                    request = self.next_request();
                }
                // The same id then: it is the same order.
                Err(error) if may_break(fault) => println!("{step} broke: {error:#}"),
                Err(error) => return Err(error.context(step.to_owned())),
            }
            ensure!(self.daemon.is_alive()?, "berthd ended in {step}");
            ensure!(Instant::now() < deadline, "{step} is never done");
            sleep(PAUSE);
        }
    }

    fn next_request(&mut self) -> String {
        self.requests += 1;
        format!("request-{}", self.requests)
    }

    /// A reason of the closed list, an errno, what it is about, and words.
    fn is_typed(&mut self, step: &str, refusal: &Value) -> Result<()> {
        let reason = text(refusal, "reason")?;
        let errno = text(refusal, "errnoName")?;
        let known = self.reasons.contains(reason.as_str()) && reason != "INTERNAL";
        ensure!(known, "{step}: {reason} is no reason: {refusal}");
        let number = refusal["errno"].as_i64().unwrap_or(0);
        ensure!(number > 0 && errno.starts_with('E'), "{step}: no errno: {refusal}");
        ensure!(!text(refusal, "object")?.is_empty(), "{step}: about nothing: {refusal}");
        let words = refusal["detail"].as_str().or_else(|| refusal["message"].as_str());
        ensure!(words.is_some_and(|words| !words.is_empty()), "{step}: no words: {refusal}");
        self.refusals.push((format!("{step} {reason} {errno}"), number));
        *self.told.entry(format!("{reason} {errno}")).or_default() += 1;
        Ok(())
    }

    /// What was answered as done the kernel shows, too: an error that was swallowed isn't done.
    fn look_when_done(&mut self, kind: Kind, fault: Option<&Fault>, id: &str) -> Result<()> {
        // To ask for it could be what fails.
        if fault.is_none() || may_break(fault) {
            return Ok(());
        }
        self.look(kind, "what was done", Some(id)).context("answered as done, and it isn't")
    }

    /// The record and the kernel agree once what was begun is undone; nothing is free meanwhile that is
    /// not, and an answered reservation stays.
    fn look(&mut self, kind: Kind, step: &str, id: Option<&str>) -> Result<()> {
        let deadline = Instant::now() + self.ctx.patience();
        loop {
            let (shown, now) = self.seen(kind.device())?;
            let lives = |id: &str| shown.live.iter().any(|(live, _)| live == id);
            let gone = step == "reserve" && !shown.live.is_empty();
            let lost = id.is_some_and(|id| !lives(id));
            let before = self.before.get(kind.device()).context("an odd device")?;
            match fits(&shown, &now, before, false) {
                Ok(()) if !gone && !lost => return Ok(()),
                Ok(()) if Instant::now() > deadline => {
                    bail!("a refused reservation lives, or another is gone: {shown:?}, {now:?}")
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context(format!("shown {shown:?}, kernel {now:?}")));
                }
                _ => sleep(PAUSE),
            }
        }
    }

    fn seen(&mut self, device: &'static str) -> Result<(Shown, Kernel)> {
        let epoch = self.epochs.entry(device).or_default();
        let shown = Shown::of(&self.daemon, device, epoch)?;
        let now = kernel(device);
        if shown.is_free() && now.busy {
            // Unless it was taken between the two questions.
            let again = Shown::of(&self.daemon, device, epoch)?;
            let free = again.is_free() && kernel(device).busy;
            ensure!(!free, "said to be free, and it isn't: {again:?}, {now:?}");
        }
        Ok((shown, now))
    }

    /// Clears a quarantine, as an operator does who looked after the device; false where there is none.
    fn mend(&mut self, device: &'static str) -> Result<bool> {
        let (shown, _) = self.seen(device)?;
        if !shown.is_quarantined() {
            return Ok(false);
        }
        let words = ["quarantine", "clear", device, "--reason", "a call was made to fail"];
        self.daemon.cli(&words)?.ok()?;
        let before = self.before.get(device).context("an odd device")?;
        sysfs::to_host(device, before.driver())?;
        Ok(true)
    }

    /// Everything was given back: the device is as it was, nobody has it, no descriptor and no helper is
    /// left.
    fn nothing_is_left(&mut self, device: &'static str) -> Result<()> {
        let driver = self.before.get(device).context("an odd device")?.driver();
        let rest = if driver.is_some() { "KERNEL" } else { "FREE" };
        let deadline = Instant::now() + self.ctx.patience();
        loop {
            let (shown, now) = self.seen(device)?;
            ensure!(shown.live.is_empty(), "released, and still there: {shown:?}, {now:?}");
            // That a driver has it again it hears from the kernel.
            if shown.ownership == rest {
                break;
            }
            ensure!(Instant::now() < deadline, "not as it was: {shown:?}, {now:?}");
            sleep(PAUSE);
        }
        self.before.get(device).context("an odd device")?.is_back()?;
        for node in ["/dev/iommu", "/dev/vfio/vfio"].map(Path::new).iter().filter(|it| it.exists())
        {
            let access = access::of(node)?;
            ensure!(!access.listed, "{} is still open: {access:?}", node.display());
        }
        let Some(baseline) = &self.baseline else { return Ok(()) };
        let pid = self.injector.traced()?;
        let mut last = None;
        let within = || {
            let now = Count::of(pid).ok()?;
            let good = is_within(&now, baseline);
            last = Some(now);
            good.then_some(())
        };
        wait_for("what is left to close", self.ctx.patience(), within)
            .with_context(|| format!("open before {baseline:?}, and now {last:?}"))
    }
}

fn is_within(now: &Count, baseline: &Count) -> bool {
    let database = |kind: &str| kind.contains("/state/berth.db");
    let files: usize = now.fds.iter().filter(|(kind, _)| database(kind)).map(|(_, n)| n).sum();
    files <= DATABASE
        && now.children <= baseline.children
        && now
            .fds
            .iter()
            .filter(|(kind, _)| !database(kind))
            .all(|(kind, count)| baseline.fds.get(kind) >= Some(count))
}

fn is_of_devices(kind: &str) -> bool {
    ["/dev/vfio", "/dev/iommu"].iter().any(|node| kind.starts_with(node))
}
