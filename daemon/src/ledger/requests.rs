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
            return Ok(Found::Answered(Err(Box::new(refusal)), about));
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

/// How many refusals are remembered.
const REFUSALS: usize = 65_536;

/// Refusals by request id. They are remembered in memory alone: a refusal changed nothing, and what
/// it guards against, an earlier attempt of the same call that arrives late, ends with the daemon.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    known: HashMap<(String, String), (RequestId, u64, Box<Refusal>)>,
    oldest_first: VecDeque<(String, String)>,
    /// Those of the batch under way.
    fresh: Vec<(String, String)>,
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

    pub(super) fn insert(&mut self, meta: &Meta, now_unix_ms: u64, refusal: &Refusal) {
        let Some(request) = &meta.request_id else { return };
        let key = (meta.actor.clone(), request.id.clone());
        let entry = (request.clone(), now_unix_ms, Box::new(refusal.clone()));
        if self.known.insert(key.clone(), entry).is_none() {
            self.oldest_first.push_back(key.clone());
            self.fresh.push(key);
        }
        if self.oldest_first.len() > REFUSALS
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
