//! Deciding one message on a draft.

use std::sync::Arc;

use berth_host::PciAddress;
use berth_ownership::{Command, DeviceId, Event, Reason, Refusal};
use berth_uapi::VfToken;
use imbl::OrdMap;

use super::{
    Scan,
    draft::Draft,
    facts,
    message::{Message, Reply},
    requests::{self, Earlier, Found, Refusals},
    unknown,
};
use crate::{
    model::{
        AnswerOf, ApiError, Applied, Baseline, InventoryIndex, Looked, Meta, Quotas, StepNote,
    },
    store::{BaselineRow, StepRow},
    view,
};

/// An answer that waits for the commit.
#[derive(Debug)]
pub(super) enum Answer {
    Applied(Reply<Applied>, Result<Decided, ApiError>),
    Done(Reply<()>, Result<(), ApiError>),
    VfToken(Reply<VfToken>, VfToken),
}

/// What a command came to, before the commit.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) events: Vec<Event>,
    /// The last event that it led to, or that there was.
    pub(super) seq: u64,
    /// The intent whose end the caller may wait for.
    pub(super) intent: Option<u64>,
    pub(super) about: Option<AnswerOf>,
    pub(super) replayed: Option<Result<String, Box<Refusal>>>,
}

/// What calls with a request id are decided by, beside the draft.
#[derive(Debug)]
pub(super) struct Known<'a> {
    pub(super) earlier: Earlier<'a>,
    pub(super) refusals: &'a mut Refusals,
    pub(super) quotas: &'a Quotas,
}

/// Decides a message. What it is answered waits for the commit.
pub(super) fn decide(draft: &mut Draft, known: &mut Known<'_>, message: Message) -> Answer {
    let answer = decided(draft, known, message);
    draft.answer_owed();
    answer
}

fn decided(draft: &mut Draft, known: &mut Known<'_>, message: Message) -> Answer {
    match message {
        Message::Submit { commands, meta, attempt, reply } => {
            Answer::Applied(reply, submit(draft, known, &commands, &meta, attempt))
        }
        Message::Refuse { refusal, meta, reply } => {
            let result = repeated(draft, known, &meta).and_then(|before| match before {
                Some(before) => Ok(before),
                None => {
                    keep_refusal(draft, known, &meta, &refusal);
                    Err(refusal.into())
                }
            });
            Answer::Applied(reply, result)
        }
        Message::Outcome { intent, outcome, looked, meta, reply } => {
            let result = draft.outcome(intent, &outcome, &meta).map_err(ApiError::from);
            if result.is_ok() {
                refresh(draft, looked, &Meta::internal(format!("intent {intent}")));
            }
            Answer::Applied(reply, result.map(|events| plain(draft, events)))
        }
        Message::Note { intent, note, reply } => Answer::Done(reply, step(draft, intent, note)),
        Message::Baselines { intent, baselines, reply } => {
            Answer::Done(reply, record_baselines(draft, intent, baselines))
        }
        Message::VfToken { device, fresh, reply } => {
            Answer::VfToken(reply, keep_vf_token(draft, device, fresh))
        }
        Message::Refresh { looked, meta, reply } => {
            let events = refresh(draft, looked, &meta);
            Answer::Applied(reply, Ok(plain(draft, events)))
        }
        Message::Observe { scan, meta, reply } => {
            let events = observe(draft, *scan, &meta);
            Answer::Applied(reply, Ok(plain(draft, events)))
        }
        Message::Condition { found, reply } => {
            for (command, meta) in &found.assessed {
                record(draft, std::slice::from_ref(command), meta);
            }
            draft.book.health.extend(found.shown);
            Answer::Done(reply, Ok(()))
        }
        Message::Turn { reply } => Answer::Done(reply, Ok(())),
    }
}

fn plain(draft: &Draft, events: Vec<Event>) -> Decided {
    Decided { events, seq: draft.book.seq, intent: None, about: None, replayed: None }
}

/// What a request that was made before came to; `None` for a new one.
fn repeated(draft: &Draft, known: &Known<'_>, meta: &Meta) -> Result<Option<Decided>, ApiError> {
    let Some(request) = &meta.request_id else { return Ok(None) };
    let decided = |intent, about, replayed| {
        let seq = draft.book.seq;
        Some(Decided { events: Vec::new(), seq, intent, about: Some(about), replayed })
    };
    match draft.requests.find(known.earlier, meta, request)? {
        Found::New => known.refusals.find(meta, draft.now().unix_ms.0).map(|()| None),
        Found::Refused(refusal) => Err(refusal.into()),
        Found::Answered(answer, about) => Ok(decided(None, about, Some(answer))),
        Found::Waiting(intent, about) => {
            let ends = draft.book.intents.contains_key(&intent)
                || draft.requests.closed.contains_key(&intent);
            Ok(decided(ends.then_some(intent), about, None))
        }
    }
}

fn submit(
    draft: &mut Draft,
    known: &mut Known<'_>,
    commands: &[Command],
    meta: &Meta,
    attempt: bool,
) -> Result<Decided, ApiError> {
    if let Some(before) = repeated(draft, known, meta)? {
        return Ok(before);
    }
    let saved = (commands.len() > 1).then(|| draft.savepoint());
    let opened = draft.opened.len();
    let mut events = Vec::new();
    for command in commands {
        let within = within_quotas(draft, known.quotas, command, meta);
        match within.and_then(|()| draft.command(command, meta, None)) {
            Ok(more) => events.extend(more),
            Err(refusal) => {
                if let Some(saved) = saved {
                    draft.back_to(saved);
                }
                tracing::info!(
                    actor = meta.actor,
                    cause = meta.cause,
                    object = refusal.object,
                    reason = refusal.reason.name(),
                    "refused: {}",
                    refusal.message
                );
                if !attempt {
                    keep_refusal(draft, known, meta, &refusal);
                }
                return Err(refusal.into());
            }
        }
    }
    let intent = draft.opened.get(opened..).and_then(<[_]>::last).map(|intent| intent.id);
    remember(draft, meta, intent);
    let about = meta.request_id.as_ref().map(|request| request.answer.clone());
    Ok(Decided { events, seq: draft.book.seq, intent, about, replayed: None })
}

/// Whether a caller's quotas have room for what is asked. What came before in the batch counts.
fn within_quotas(
    draft: &Draft,
    quotas: &Quotas,
    command: &Command,
    meta: &Meta,
) -> Result<(), Box<Refusal>> {
    let request = match command {
        Command::Reserve(request) => request,
        Command::Adopt(adopt) => &adopt.request,
        _ => return Ok(()),
    };
    let Some(payer) = &meta.payer else { return Ok(()) };
    quotas.check_reserve(&draft.book.state, request, payer)
}

/// Keeps the refusal of a call with a request id, so that the same call gets it again.
fn keep_refusal(draft: &mut Draft, known: &mut Known<'_>, meta: &Meta, refusal: &Refusal) {
    let now_unix_ms = draft.now().unix_ms.0;
    if let Some(stored) = known.refusals.insert(meta, now_unix_ms, refusal) {
        draft.rows.requests.push(stored.clone());
        draft.requests.insert(stored);
    }
}

/// Keeps the answer of a call with a request id, or what it will be about.
fn remember(draft: &mut Draft, meta: &Meta, intent: Option<u64>) {
    let Some(request) = &meta.request_id else { return };
    let now = draft.now();
    let answer = match intent {
        Some(intent) => {
            draft.book.waiting.insert(intent, request.answer.clone());
            None
        }
        None => Some(
            view::answer(&draft.book.snapshot(), &request.answer, &now)
                .unwrap_or_else(|| "{}".to_owned()),
        ),
    };
    let stored = requests::stored(meta, request, now.unix_ms.0, intent, answer);
    draft.rows.requests.push(stored.clone());
    draft.requests.insert(stored);
}

pub(super) fn step(draft: &mut Draft, intent: u64, note: StepNote) -> Result<(), ApiError> {
    open(draft, intent)?;
    let ordinal = draft.book.steps.get(&intent).copied().unwrap_or(0);
    draft.book.steps.insert(intent, ordinal + 1);
    draft.rows.steps.push(StepRow(intent, ordinal, note.step, note.detail));
    Ok(())
}

pub(super) fn record_baselines(
    draft: &mut Draft,
    intent: u64,
    baselines: Vec<Baseline>,
) -> Result<(), ApiError> {
    open(draft, intent)?;
    for baseline in baselines {
        if draft.book.baselines.contains_key(&baseline.device) {
            continue;
        }
        draft.rows.baselines.push(BaselineRow(
            baseline.device.to_string(),
            baseline.driver.clone(),
            baseline.driver_override.clone(),
            intent,
        ));
        draft.book.baselines.insert(baseline.device.clone(), Arc::new(baseline));
    }
    Ok(())
}

/// The token that is kept, or from now on this one.
fn keep_vf_token(draft: &mut Draft, device: DeviceId, fresh: VfToken) -> VfToken {
    if let Some(kept) = draft.book.vf_tokens.get(&device) {
        return *kept;
    }
    draft.rows.vf_tokens.push((device.to_string(), fresh));
    draft.book.vf_tokens.insert(device, fresh);
    fresh
}

fn open(draft: &Draft, intent: u64) -> Result<(), ApiError> {
    if draft.book.intents.contains_key(&intent) {
        return Ok(());
    }
    let text = format!("intent {intent} has ended already");
    Err(ApiError::new(Reason::NoOperation, intent, text))
}

/// Takes devices that were looked at again.
pub(super) fn refresh(draft: &mut Draft, looked: Vec<Looked>, meta: &Meta) -> Vec<Event> {
    let commands = facts::of_look(&draft.book, &looked);
    let events = record(draft, &commands, meta);
    draft.book.looks += 1;
    for looked in looked {
        let address: PciAddress = looked.facts.address;
        draft.book.looked_at.insert(address, draft.book.looks);
        draft.book.fresh.insert(address, Arc::new(looked));
    }
    events
}

/// Takes a whole scan.
pub(super) fn observe(draft: &mut Draft, mut scan: Scan, meta: &Meta) -> Vec<Event> {
    // Once more: something may have been reserved since the scan was completed.
    draft.book.known().keep_ids(&mut scan.inventory);
    let (commands, identities) = facts::of_scan(&draft.book, &scan);
    let mut events = record(draft, &commands, meta);
    events.extend(unknown::mark(draft, &scan));
    for (device, identity) in identities {
        draft.rows.identities.push((device.to_string(), identity.clone()));
        draft.book.identities.insert(device, identity.into());
    }
    draft.book.index = Arc::new(InventoryIndex::new(&scan.inventory, scan.uses));
    draft.book.inventory = Arc::new(scan.inventory);
    let newer: OrdMap<PciAddress, u64> = std::mem::take(&mut draft.book.looked_at)
        .into_iter()
        .filter(|(_, look)| *look > scan.after_looks)
        .collect();
    draft.book.fresh = std::mem::take(&mut draft.book.fresh)
        .into_iter()
        .filter(|(address, _)| newer.contains_key(address))
        .collect();
    draft.book.looked_at = newer;
    let boot = draft.book.boot.id.to_string();
    draft.rows.meta.push(("boot_id".to_owned(), boot));
    events
}

/// Facts are recorded; one that can't be is logged and leaves the others alone.
pub(super) fn record(draft: &mut Draft, commands: &[Command], meta: &Meta) -> Vec<Event> {
    let mut events = Vec::new();
    for command in commands {
        match draft.command(command, meta, None) {
            Ok(more) => events.extend(more),
            Err(refusal) => tracing::warn!(object = refusal.object, %refusal, "a fact was refused"),
        }
    }
    events
}
