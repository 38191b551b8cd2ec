//! The daemon while its state can't be written.

use berth_ownership::{Reason, Refusal};

use super::ApiError;

/// Why nothing can be changed at present. What is on record is read, and what runs goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Degraded {
    /// Since when.
    ///
    /// # Units
    /// Milliseconds since 1970-01-01 UTC.
    pub since_unix_ms: u64,
    /// What the system answered, or what comes nearest to what SQLite answered.
    pub errno: i32,
    /// The file or directory that takes no writes.
    pub path: String,
    /// What was attempted, and why it failed.
    pub message: String,
    /// What heals it.
    pub way_out: String,
}

impl Degraded {
    /// What a call that would change something is answered.
    #[must_use]
    pub fn refusal(&self) -> ApiError {
        let text = format!("the state in {} can't be written: {}", self.path, self.message);
        let refusal = Refusal::new(Reason::StateUnwritable, &self.path, text)
            .with_errno(self.errno)
            .with_resolve(vec![
                self.way_out.clone(),
                "ask again under the same request id once `berth capabilities` says `ok`"
                    .to_owned(),
            ]);
        ApiError::Refused(refusal)
    }

    /// All of it in one line.
    #[must_use]
    pub fn line(&self) -> String {
        format!("degraded: {}: {}", self.path, self.message.replace('\n', " "))
    }
}
