//! How much one identity or label may have at a time, by rules of the configuration.
//!
//! What is used is counted from the record, so that a restart forgets nothing. Reservations are
//! counted for who asked for them; memory and mappings for whom they are for, as the kernel counts
//! them by user; and all three for the label, where that has a quota, or the caller is confined to it.

use std::fmt;

use berth_ownership::{Delivery, Reason, Refusal, Reservation, ReservationState, Reserve, State};

use super::Whom;

/// What a reservation of delivery `held` or `bound` that states no memory may register: the pages
/// are pinned in the daemon's name, so it is what the kernel lets an unprivileged process lock
/// (`MLOCK_LIMIT`).
pub const UNSTATED_BYTES: u64 = 8 << 20;

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Reservations that aren't given back.
    Reservations,
    /// Mappings of client memory that the daemon made.
    DmaEntries,
    /// Memory that reservations say may be pinned.
    PinnedBytes,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Reservations, Self::DmaEntries, Self::PinnedBytes];

    /// Its key in the configuration.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::Reservations => "reservations",
            Self::DmaEntries => "dma_entries",
            Self::PinnedBytes => "pinned_bytes",
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Reservations => "reservations",
            Self::DmaEntries => "mappings",
            Self::PinnedBytes => "bytes of pinned memory",
        }
    }
}

/// One `[[quota]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Whom it is about.
    pub who: Whom,
    /// The most reservations; `None` is no limit.
    pub reservations: Option<u64>,
    /// The most mappings.
    pub dma_entries: Option<u64>,
    /// The most bytes.
    pub pinned_bytes: Option<u64>,
    /// Where it stands, `FILE:LINE`.
    pub place: String,
}

impl Quota {
    /// The limit of one resource.
    #[must_use]
    pub fn limit(&self, resource: Resource) -> Option<u64> {
        match resource {
            Resource::Reservations => self.reservations,
            Resource::DmaEntries => self.dma_entries,
            Resource::PinnedBytes => self.pinned_bytes,
        }
    }
}

/// Whose use is counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// `uid:1000`, or a certificate's URI.
    Identity(String),
    /// A label.
    Label(String),
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(identity) => f.write_str(identity),
            Self::Label(label) => write!(f, "label {label}"),
        }
    }
}

impl Account {
    /// Whether a reservation counts for it.
    #[must_use]
    pub fn has(&self, resource: Resource, record: &Reservation) -> bool {
        match (self, resource) {
            (Self::Label(label), _) => record.label.as_str() == label,
            (Self::Identity(identity), Resource::Reservations) => record.requester == *identity,
            (Self::Identity(identity), Resource::DmaEntries | Resource::PinnedBytes) => {
                record.for_identity == *identity
            }
        }
    }

    /// How much is used, by the record; mappings aren't in it.
    #[must_use]
    pub fn used(&self, resource: Resource, state: &State) -> u64 {
        let live = state.reservations().filter(|it| it.state != ReservationState::Released);
        let own = live.filter(|record| self.has(resource, record));
        match resource {
            Resource::Reservations => own.fold(0, |count, _| count + 1),
            Resource::PinnedBytes => own.fold(0_u64, |sum, record| {
                sum.saturating_add(promised_bytes(record.memory_bytes, record.delivery))
            }),
            Resource::DmaEntries => 0,
        }
    }
}

/// What a reservation may pin.
#[must_use]
pub fn promised_bytes(stated: u64, delivery: Delivery) -> u64 {
    match delivery {
        Delivery::Held | Delivery::Bound if stated == 0 => UNSTATED_BYTES,
        _ => stated,
    }
}

/// Who asks for something that a quota may be about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Payer {
    /// `uid:1000`, or a certificate's URI.
    pub identity: String,
    /// Its gids, where they are known.
    pub gids: Vec<u32>,
    /// The label that it is confined to.
    pub tenant: Option<String>,
}

/// More is asked for than a quota allows.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// For whom.
    pub account: &'a Account,
    /// Of what.
    pub resource: Resource,
    /// How much there is.
    pub used: u64,
    /// How much more.
    pub more: u64,
}

/// All of `[[quota]]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quotas(pub Vec<Quota>);

impl Quotas {
    /// Whether the gids of callers have to be known.
    #[must_use]
    pub fn asks_for_groups(&self) -> bool {
        self.0.iter().any(|quota| quota.who.asks_for_groups())
    }

    /// The quota of an identity: see [`Whom::most_exact`].
    #[must_use]
    pub fn of_identity(&self, identity: &str, gids: &[u32]) -> Option<&Quota> {
        Whom::most_exact(&self.0, |quota| &quota.who, identity, gids)
    }

    /// The quota of a label by its name.
    #[must_use]
    pub fn of_label(&self, label: &str) -> Option<&Quota> {
        Whom::of_label(&self.0, |quota| &quota.who, label)
    }

    /// The quota of everybody else, each.
    #[must_use]
    pub fn others(&self) -> Option<&Quota> {
        self.0.iter().find(|quota| quota.who == Whom::Others)
    }

    /// Who is charged for what is asked by `payer`, for `identity`, under `label`; and by which quota.
    #[must_use]
    pub fn charged(
        &self,
        payer: &Payer,
        identity: &str,
        label: &str,
        resource: Resource,
    ) -> Vec<(Account, &Quota)> {
        if let Some(tenant) = &payer.tenant {
            let quota = self.of_label(tenant).or_else(|| self.others());
            return quota
                .map(|quota| (Account::Label(tenant.clone()), quota))
                .into_iter()
                .collect();
        }
        let who = if resource == Resource::Reservations { &payer.identity } else { identity };
        let gids: &[u32] = if who == payer.identity { &payer.gids } else { &[] };
        let own = self.of_identity(who, gids);
        let own = own.map(|quota| (Account::Identity(who.to_owned()), quota));
        let labelled = self.of_label(label).map(|quota| (Account::Label(label.to_owned()), quota));
        own.into_iter().chain(labelled).collect()
    }

    /// Refuses a reservation that would take somebody beyond a quota.
    ///
    /// # Errors
    /// `QUOTA_EXCEEDED`.
    pub fn check_reserve(
        &self,
        state: &State,
        request: &Reserve,
        payer: &Payer,
    ) -> Result<(), Box<Refusal>> {
        if self.0.is_empty() {
            return Ok(());
        }
        let bytes = promised_bytes(request.memory_bytes, request.delivery);
        for (resource, more) in [(Resource::Reservations, 1), (Resource::PinnedBytes, bytes)] {
            let (identity, label) = (&request.for_identity, request.label.as_str());
            for (account, quota) in self.charged(payer, identity, label, resource) {
                let used = account.used(resource, state);
                check(quota, Asked { account: &account, resource, used, more })?;
            }
        }
        Ok(())
    }
}

/// Refuses what goes beyond one quota.
///
/// # Errors
/// `QUOTA_EXCEEDED`, naming the quota, who, what is used and what was asked.
pub fn check(quota: &Quota, asked: Asked<'_>) -> Result<(), Box<Refusal>> {
    let Asked { account, resource, used, more } = asked;
    let Some(limit) = quota.limit(resource) else { return Ok(()) };
    if more == 0 || used.saturating_add(more) <= limit {
        return Ok(());
    }
    let (key, words) = (resource.key(), resource.words());
    let text = format!(
        "{account} may have {limit} {words} ({key} of the quota of {} at {}), has {used} and asks for \
         {more} more",
        quota.who, quota.place
    );
    let give_back = match resource {
        Resource::Reservations => "release a reservation: berth reservation list".to_owned(),
        Resource::DmaEntries => "unregister memory, or register larger pieces".to_owned(),
        Resource::PinnedBytes if used < limit => {
            format!("reserve with --memory {} or less, or release a reservation", limit - used)
        }
        Resource::PinnedBytes => "release a reservation: berth reservation list".to_owned(),
    };
    let raise =
        format!("have {key} raised at {}, then reload: systemctl reload berthd", quota.place);
    Err(Refusal::new(Reason::QuotaExceeded, account, text).with_resolve(vec![give_back, raise]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Who;

    fn quota(who: Whom, reservations: u64) -> Quota {
        let place = "berthd.toml:1".to_owned();
        let reservations = Some(reservations);
        Quota { who, reservations, dma_entries: None, pinned_bytes: None, place }
    }

    fn peer(who: Who, reservations: u64) -> Quota {
        quota(Whom::Peer(who), reservations)
    }

    #[test]
    fn the_most_exact_quota_counts() {
        let quotas = Quotas(vec![
            quota(Whom::Others, 1),
            peer(Who::Gid(7), 2),
            peer(Who::Uid(5), 3),
            peer(Who::UriPrefix("spiffe://site/".into()), 4),
            peer(Who::UriPrefix("spiffe://site/ns/".into()), 5),
            peer(Who::Uri("spiffe://site/ns/one".into()), 6),
            quota(Whom::Label("red".into()), 7),
        ]);
        let of = |identity: &str, gids: &[u32]| {
            quotas.of_identity(identity, gids).and_then(|quota| quota.reservations)
        };
        assert_eq!(of("uid:6", &[]), Some(1));
        assert_eq!(of("uid:6", &[1, 7]), Some(2));
        assert_eq!(of("uid:5", &[7]), Some(3));
        assert_eq!(of("spiffe://site/x", &[]), Some(4));
        assert_eq!(of("spiffe://site/ns/two", &[]), Some(5));
        assert_eq!(of("spiffe://site/ns/one", &[]), Some(6));
        assert_eq!(of("spiffe://site/", &[]), Some(1));
        let who = |payer: &Payer, resource| {
            let charged = quotas.charged(payer, "uid:5", "red", resource).into_iter();
            charged.map(|(account, quota)| (account.to_string(), quota.reservations.unwrap_or(0)))
        };
        let payer = Payer { identity: "uid:6".into(), gids: vec![7], tenant: None };
        let asked: Vec<_> = who(&payer, Resource::Reservations).collect();
        assert_eq!(asked, [("uid:6".to_owned(), 2), ("label red".to_owned(), 7)]);
        let pinned: Vec<_> = who(&payer, Resource::PinnedBytes).collect();
        assert_eq!(pinned, [("uid:5".to_owned(), 3), ("label red".to_owned(), 7)]);
        let blue = Payer { tenant: Some("blue".into()), ..payer };
        let confined: Vec<_> = who(&blue, Resource::PinnedBytes).collect();
        assert_eq!(confined, [("label blue".to_owned(), 1)]);
    }

    #[test]
    fn the_last_one_fits_and_the_next_is_refused_with_the_numbers() {
        let quota = quota(Whom::Others, 3);
        let account = Account::Identity("uid:5".into());
        let asked =
            |used, more| Asked { account: &account, resource: Resource::Reservations, used, more };
        assert!(check(&quota, asked(2, 1)).is_ok());
        assert!(check(&quota, asked(9, 0)).is_ok(), "nothing is asked for");
        let refused = check(&quota, asked(3, 1)).unwrap_err();
        assert_eq!((refused.reason, refused.errno), (Reason::QuotaExceeded, 122));
        for told in ["uid:5", "3 reservations", "berthd.toml:1", "others", "has 3", "asks for 1"] {
            assert!(refused.message.contains(told), "{told}: {refused}");
        }
        assert!(check(&quota, asked(u64::MAX, 1)).is_err(), "it doesn't wrap");
    }
}
