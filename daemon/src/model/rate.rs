//! How often one identity or label may call, by rules of the configuration.

use std::num::NonZeroU32;

use super::{Caller, Whom};

/// A token bucket: so many calls a second, and so many at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Calls a second, in the long run.
    pub per_second: NonZeroU32,
    /// Calls at once.
    pub burst: NonZeroU32,
}

/// One `[[rate]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rate {
    /// Whom it is about: each of them by itself.
    pub who: Whom,
    /// Calls that may change something; `None` is no limit.
    pub commands: Option<Pace>,
    /// Calls that read.
    pub reads: Option<Pace>,
    /// Where it stands, `FILE:LINE`.
    pub place: String,
}

/// All of `[[rate]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rates(pub Vec<Rate>);

impl Rates {
    /// Whether the gids of callers have to be known.
    #[must_use]
    pub fn asks_for_groups(&self) -> bool {
        self.0.iter().any(|rate| rate.who.asks_for_groups())
    }

    /// The rate of a caller: of its label where it is confined to one, else as [`Whom::most_exact`].
    #[must_use]
    pub fn of(&self, caller: &Caller) -> Option<&Rate> {
        match &caller.tenant {
            Some(label) => Whom::of_label(&self.0, |rate| &rate.who, label)
                .or_else(|| self.0.iter().find(|rate| rate.who == Whom::Others)),
            None => Whom::most_exact(&self.0, |rate| &rate.who, &caller.identity, &caller.gids),
        }
    }
}
