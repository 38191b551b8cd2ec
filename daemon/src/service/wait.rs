//! Waiting for kernel work, and the answer when it has ended or the wait has.

use std::time::Duration;

use serde::de::DeserializeOwned;

use super::Service;
use crate::model::{AnswerOf, ApiError, Applied, Snapshot};

/// How long a call waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    pub(super) wait_ms: u64,
    pub(super) no_wait: bool,
}

impl Wait {
    /// Takes it out of a request: how long it waits makes no other request of it.
    pub(super) fn take(wait_ms: &mut u64, no_wait: &mut bool) -> Self {
        Self { wait_ms: std::mem::take(wait_ms), no_wait: std::mem::take(no_wait) }
    }
}

impl Service {
    /// The answer to a call: the stored one of a repeated call, else what `show` makes of the
    /// state once the kernel work has ended, or as it is when the wait has.
    pub(super) async fn answer<T: DeserializeOwned>(
        &self,
        applied: Applied,
        wait: Wait,
        about: AnswerOf,
        show: impl Fn(&Snapshot, &AnswerOf) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let about = applied.about.unwrap_or(about);
        match applied.replayed {
            Some(Ok(answer)) if !answer.is_empty() => return parse(&answer),
            Some(Err(refusal)) => return Err(refusal.into()),
            Some(Ok(_)) | None => {}
        }
        let Some(completion) = applied.completion else {
            return show(&applied.snapshot, &about);
        };
        if wait.no_wait {
            return show(&applied.snapshot, &about);
        }
        let wait_ms = if wait.wait_ms == 0 { self.config.get().wait_ms } else { wait.wait_ms };
        let limit = Duration::from_millis(wait_ms.min(self.config.get().max_wait_ms));
        match tokio::time::timeout(limit, completion).await {
            Ok(Ok(completion)) => {
                if let Some(failure) = completion.failure {
                    return Err(failure.into());
                }
                match completion.answer {
                    Some(answer) => parse(&answer),
                    None => show(&completion.snapshot, &about),
                }
            }
            Ok(Err(_)) => Err(ApiError::unavailable(
                "berthd",
                "the daemon stopped while kernel work was under way; start-up sees to it",
            )),
            Err(_) => show(&self.snapshot(), &about),
        }
    }
}

fn parse<T: DeserializeOwned>(answer: &str) -> Result<T, ApiError> {
    serde_json::from_str(answer)
        .map_err(|error| ApiError::internal("request_ids", format!("a stored answer: {error}")))
}
