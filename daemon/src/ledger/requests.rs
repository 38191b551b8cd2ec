//! Request ids: the same id and body get the same answer.

use std::collections::{HashMap, VecDeque};

use berth_ownership::{Reason, Refusal};

use crate::{
    model::{AnswerOf, ApiError, Meta, RequestId},
    store::StoredRequest,
};

/// Requests that a batch asks about or makes, by identity and id.
#[derive(Debug, Default)]
pub(super) struct Requests {
    known: HashMap<(String, String), StoredRequest>,
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
        Self { known }
    }

    /// Looks a request up.
    pub(super) fn find(&self, meta: &Meta, request: &RequestId) -> Result<Found, ApiError> {
        let Some(known) = self.known.get(&(meta.actor.clone(), request.id.clone())) else {
            return Ok(Found::New);
        };
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
        match (&known.answer, known.intent) {
            (Some(answer), _) => Ok(Found::Answered(Ok(answer.clone()), about)),
            (None, Some(intent)) => Ok(Found::Waiting(intent, about)),
            (None, None) => Ok(Found::Answered(Ok(String::new()), about)),
        }
    }

    pub(super) fn insert(&mut self, request: StoredRequest) {
        self.known.insert((request.identity.clone(), request.id.clone()), request);
    }

    /// Gives the requests that wait for an intent their answer.
    pub(super) fn answer(&mut self, intent: u64, answer: Option<&str>, refusal: Option<&str>) {
        for request in self.known.values_mut().filter(|request| request.intent == Some(intent)) {
            request.answer = answer.map(str::to_owned);
            request.refusal = refusal.map(str::to_owned);
        }
    }
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
    /// Those of the batch under way.
    fresh: Vec<(String, String)>,
    /// By identity: since when, and how many.
    stored: HashMap<String, (u64, u32)>,
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
            && let Ok(refusal) = serde_json::to_string(refusal)
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
        *count += u32::from(room);
        room
    }

    fn remember(&mut self, meta: &Meta, request: &RequestId, now_unix_ms: u64, refusal: &Refusal) {
        let key = (meta.actor.clone(), request.id.clone());
        let entry = (request.clone(), now_unix_ms, Box::new(refusal.clone()));
        if self.known.insert(key.clone(), entry).is_none() {
            self.oldest_first.push_back(key.clone());
            self.fresh.push(key);
        }
        if self.oldest_first.len() > REMEMBERED
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// The batch is durable: what it refused stands.
    pub(super) fn keep(&mut self) {
        self.fresh.clear();
    }

    /// The batch never was: neither was what it refused.
    pub(super) fn undo(&mut self) {
        for key in self.fresh.drain(..) {
            self.known.remove(&key);
            self.oldest_first.retain(|known| *known != key);
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
        about: serde_json::to_string(&request.answer).unwrap_or_default(),
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
}
