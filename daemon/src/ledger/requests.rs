//! Request ids: the same id and body get the same answer.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    iter,
};

use berth_ownership::{Reason, Refusal};

use crate::{
    json,
    model::{AnswerOf, ApiError, Meta, RequestId},
    store::StoredRequest,
};

/// How an intent ended.
#[derive(Debug, Clone)]
pub(super) struct Closed {
    pub(super) failure: Option<Box<Refusal>>,
    /// The answer of the request that waited for it: proto3 JSON.
    pub(super) answer: Option<String>,
}

/// What a batch makes known of requests, or what the store knows.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// By identity and id.
    known: HashMap<(String, String), StoredRequest>,
    /// The intents that ended, which requests from before may wait for.
    pub(super) closed: HashMap<u64, Closed>,
}

/// What is known of requests beside what a batch itself makes known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Earlier<'a> {
    /// By the batch before it, which isn't durable yet.
    pub(super) before: Option<&'a Requests>,
    /// By batches that became durable after the store was looked into, oldest first.
    pub(super) since: &'a [Requests],
    /// By the store, when it was looked into.
    pub(super) stored: &'a Requests,
}

/// What is known of a request id.
#[derive(Debug)]
pub(super) enum Found {
    /// It is new.
    New,
    /// Its answer stands: proto3 JSON, or why its kernel work failed.
    Answered(Result<String, Box<Refusal>>, AnswerOf),
    /// It was refused.
    Refused(Box<Refusal>),
    /// Its kernel work goes on.
    Waiting(u64, AnswerOf),
}

impl Requests {
    pub(super) fn new(stored: Vec<StoredRequest>) -> Self {
        let known = stored
            .into_iter()
            .map(|request| ((request.identity.clone(), request.id.clone()), request))
            .collect();
        Self { known, closed: HashMap::new() }
    }

    pub(super) fn insert(&mut self, request: StoredRequest) {
        self.known.insert((request.identity.clone(), request.id.clone()), request);
    }

    /// Looks a request up here and in what was known before.
    pub(super) fn find(
        &self,
        earlier: Earlier<'_>,
        meta: &Meta,
        request: &RequestId,
    ) -> Result<Found, ApiError> {
        let newest_first = || {
            let since = earlier.since.iter().rev();
            iter::once(self).chain(earlier.before).chain(since).chain([earlier.stored])
        };
        let key = (meta.actor.clone(), request.id.clone());
        let Some(known) = newest_first().find_map(|layer| layer.known.get(&key)) else {
            return Ok(Found::New);
        };
        let found = stands(known, request)?;
        let Found::Waiting(intent, about) = found else { return Ok(found) };
        // What ended it may not have been durable when the store was looked into.
        Ok(match newest_first().find_map(|layer| layer.closed.get(&intent)) {
            Some(Closed { failure: Some(failure), .. }) => {
                Found::Answered(Err(failure.clone()), about)
            }
            Some(Closed { answer: Some(answer), .. }) => Found::Answered(Ok(answer.clone()), about),
            Some(_) | None => Found::Waiting(intent, about),
        })
    }
}

/// What a stored request is to the same one.
fn stands(known: &StoredRequest, request: &RequestId) -> Result<Found, ApiError> {
    if known.body != hex(&request.body) {
        return Err(reused(&request.id));
    }
    let about: AnswerOf = serde_json::from_str(&known.about)
        .map_err(|error| ApiError::internal(&request.id, error.to_string()))?;
    if let Some(refusal) = &known.refusal {
        let refusal = serde_json::from_str(refusal)
            .map_err(|error| ApiError::internal(&request.id, error.to_string()))?;
        return Ok(match known.intent {
            Some(_) => Found::Answered(Err(Box::new(refusal)), about),
            None => Found::Refused(Box::new(refusal)),
        });
    }
    Ok(match (&known.answer, known.intent) {
        (Some(answer), _) => Found::Answered(Ok(answer.clone()), about),
        (None, Some(intent)) => Found::Waiting(intent, about),
        (None, None) => Found::Answered(Ok(String::new()), about),
    })
}

/// How many refusals of one identity are kept in the store within [`super::task::HISTORY_MS`]. A
/// client that is refused in a loop, each time with a new id, costs no more commits and no more
/// room than this; what comes beyond is remembered until the daemon ends.
const STORED: u32 = 4096;

/// How many refusals are remembered in memory.
const REMEMBERED: usize = 65_536;

/// Refusals that the store doesn't keep, and how many of each identity it keeps.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    known: HashMap<(String, String), (RequestId, u64, Box<Refusal>)>,
    oldest_first: VecDeque<(String, String)>,
    /// By identity: since when, and how many.
    stored: HashMap<String, (u64, u32)>,
    /// Those of the batch that is being decided.
    fresh: Vec<Fresh>,
    /// Those of the batch that is being written.
    written: Vec<Fresh>,
}

/// A refusal that isn't durable.
#[derive(Debug)]
enum Fresh {
    /// Remembered, by identity and id.
    Remembered((String, String)),
    /// Stored, by identity.
    Stored(String),
}

impl Refusals {
    /// The refusal that the same request got before.
    pub(super) fn find(&self, meta: &Meta, now_unix_ms: u64) -> Result<(), ApiError> {
        let Some(request) = &meta.request_id else { return Ok(()) };
        let key = (meta.actor.clone(), request.id.clone());
        let Some((known, at, refusal)) = self.known.get(&key) else { return Ok(()) };
        if now_unix_ms.saturating_sub(*at) > super::task::HISTORY_MS {
            return Ok(());
        }
        if known.body != request.body {
            return Err(reused(&request.id));
        }
        Err(refusal.clone().into())
    }

    /// Takes a refusal of a call with a request id: what the store is to keep comes back.
    pub(super) fn insert(
        &mut self,
        meta: &Meta,
        now_unix_ms: u64,
        refusal: &Refusal,
    ) -> Option<StoredRequest> {
        let request = meta.request_id.as_ref()?;
        if self.has_room(&meta.actor, now_unix_ms)
            && let Ok(refusal) = json::to_string(refusal)
        {
            let stored = stored(meta, request, now_unix_ms, None, None);
            return Some(StoredRequest { refusal: Some(refusal), ..stored });
        }
        self.remember(meta, request, now_unix_ms, refusal);
        None
    }

    fn has_room(&mut self, identity: &str, now_unix_ms: u64) -> bool {
        let window = super::task::HISTORY_MS;
        if !self.stored.contains_key(identity) {
            self.stored.retain(|_, (since, _)| now_unix_ms.saturating_sub(*since) <= window);
        }
        let (since, count) = self.stored.entry(identity.to_owned()).or_insert((now_unix_ms, 0));
        if now_unix_ms.saturating_sub(*since) > window {
            (*since, *count) = (now_unix_ms, 0);
        }
        let room = *count < STORED;
        if room {
            *count += 1;
            self.fresh.push(Fresh::Stored(identity.to_owned()));
        }
        room
    }

    fn remember(&mut self, meta: &Meta, request: &RequestId, now_unix_ms: u64, refusal: &Refusal) {
        let key = (meta.actor.clone(), request.id.clone());
        let entry = (request.clone(), now_unix_ms, Box::new(refusal.clone()));
        if self.known.insert(key.clone(), entry).is_none() {
            self.oldest_first.push_back(key.clone());
        }
        self.fresh.push(Fresh::Remembered(key));
        if self.oldest_first.len() > REMEMBERED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// The batch is decided: it is written now, and the next one is decided.
    pub(super) fn seal(&mut self) {
        self.written.append(&mut self.fresh);
    }

    /// The batch that was written is durable: what it refused stands.
    pub(super) fn keep(&mut self) {
        self.written.clear();
    }

    /// The batch that was written never was, and so neither was what was decided after it: nothing
    /// of what they refused stands.
    pub(super) fn undo(&mut self) {
        let mut forgotten = HashSet::new();
        for fresh in self.written.drain(..).chain(self.fresh.drain(..)) {
            match fresh {
                Fresh::Remembered(key) => {
                    self.known.remove(&key);
                    forgotten.insert(key);
                }
                Fresh::Stored(identity) => {
                    if let Some((_, count)) = self.stored.get_mut(&identity) {
                        *count = count.saturating_sub(1);
                    }
                }
            }
        }
        if !forgotten.is_empty() {
            self.oldest_first.retain(|key| !forgotten.contains(key));
        }
    }
}

fn reused(id: &str) -> ApiError {
    let text = format!("request id {id} was used for another request");
    ApiError::new(Reason::RequestIdReused, id, text)
}

/// A request as it is stored.
pub(super) fn stored(
    meta: &Meta,
    request: &RequestId,
    now_unix_ms: u64,
    intent: Option<u64>,
    answer: Option<String>,
) -> StoredRequest {
    StoredRequest {
        identity: meta.actor.clone(),
        id: request.id.clone(),
        body: hex(&request.body),
        created_unix_ms: now_unix_ms,
        about: json::to_string(&request.answer).unwrap_or_default(),
        intent,
        answer,
        refusal: None,
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(identity: &str, id: u32) -> Meta {
        let request = RequestId {
            id: id.to_string(),
            body: [7; 32],
            answer: AnswerOf::Reservation("r-1".into()),
        };
        Meta { actor: identity.to_owned(), request_id: Some(request), ..Meta::internal("test") }
    }

    #[test]
    fn a_client_that_is_refused_in_a_loop_fills_its_own_room_only() {
        let mut refusals = Refusals::default();
        let refusal = Refusal::new(Reason::GroupOwned, "g-1", "taken");
        for id in 0..STORED {
            let stored = refusals.insert(&ask("uid:1", id), 1_000, &refusal).unwrap();
            assert_eq!((stored.intent, stored.answer), (None, None));
            let kept: Refusal = serde_json::from_str(&stored.refusal.unwrap()).unwrap();
            assert_eq!(kept, *refusal);
        }
        let over = ask("uid:1", STORED);
        assert_eq!(refusals.insert(&over, 2_000, &refusal), None, "no more commits");
        assert!(refusals.find(&over, 3_000).is_err(), "and yet remembered");
        assert!(refusals.insert(&ask("uid:2", 1), 2_000, &refusal).is_some());
        let later = 1_001 + crate::ledger::task::HISTORY_MS;
        assert!(refusals.insert(&ask("uid:1", 1), later, &refusal).is_some(), "a new day");
    }

    #[test]
    fn refusals_go_back_to_what_is_durable() {
        let mut refusals = Refusals::default();
        let refusal = Refusal::new(Reason::GroupOwned, "g-1", "taken");
        for id in 0..STORED {
            refusals.insert(&ask("uid:1", id), 1_000, &refusal).unwrap();
        }
        let [durable, written, decided] = [1, 2, 3].map(|more| ask("uid:1", STORED + more));
        for batch in [&durable, &written] {
            assert_eq!(refusals.insert(batch, 1_000, &refusal), None);
            refusals.keep();
            refusals.seal();
        }
        refusals.insert(&decided, 1_000, &refusal);
        assert!(refusals.find(&decided, 2_000).is_err());
        refusals.undo();
        assert!(refusals.find(&durable, 2_000).is_err(), "it stands");
        for never in [&written, &decided] {
            assert!(refusals.find(never, 2_000).is_ok(), "it never was");
        }
        assert_eq!(refusals.insert(&written, 1_000, &refusal), None, "the store keeps no more");

        let other = ask("uid:2", 1);
        assert!(refusals.insert(&other, 1_000, &refusal).is_some());
        refusals.undo();
        for id in 0..STORED {
            assert!(refusals.insert(&ask("uid:2", id), 1_000, &refusal).is_some(), "{id}");
        }
    }

    fn knows(meta: &Meta, intent: Option<u64>, answer: Option<&str>) -> Requests {
        let request = meta.request_id.as_ref().unwrap();
        let answer = answer.map(str::to_owned);
        Requests::new(vec![stored(meta, request, 1_000, intent, answer)])
    }

    fn ended(intent: u64, answer: &str) -> Requests {
        let closed = Closed { failure: None, answer: Some(answer.to_owned()) };
        Requests { closed: HashMap::from([(intent, closed)]), ..Requests::default() }
    }

    #[test]
    fn what_is_newest_is_known_of_a_request() {
        let (meta, other) = (ask("uid:1", 1), ask("uid:1", 2));
        let request = meta.request_id.as_ref().unwrap();
        let nothing = Requests::default();
        let find = |own: &Requests, before: Option<&Requests>, since: &[Requests], stored| {
            let earlier = Earlier { before, since, stored };
            match own.find(earlier, &meta, request).unwrap() {
                Found::New => "new".to_owned(),
                Found::Answered(answer, _) => answer.unwrap(),
                Found::Waiting(intent, _) => format!("waits for {intent}"),
                Found::Refused(refusal) => panic!("{refusal:?}"),
            }
        };
        assert_eq!(find(&knows(&other, None, Some("a")), None, &[], &nothing), "new");
        assert_eq!(find(&knows(&meta, None, Some("a")), None, &[], &nothing), "a");
        let before = knows(&meta, Some(5), None);
        assert_eq!(find(&nothing, Some(&before), &[], &nothing), "waits for 5");
        assert_eq!(find(&ended(5, "b"), Some(&before), &[], &nothing), "b");
        assert_eq!(find(&ended(6, "b"), Some(&before), &[], &nothing), "waits for 5");
        let since = [knows(&meta, Some(7), None), ended(7, "c")];
        assert_eq!(find(&nothing, None, &since[..1], &nothing), "waits for 7");
        assert_eq!(find(&nothing, None, &since, &nothing), "c");
        let stored = knows(&meta, Some(8), None);
        assert_eq!(find(&nothing, None, &[], &stored), "waits for 8");
        assert_eq!(find(&nothing, Some(&ended(8, "d")), &[], &stored), "d");
        assert_eq!(find(&nothing, None, &[ended(8, "e")], &stored), "e");
    }
}
