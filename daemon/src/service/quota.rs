//! What the quotas allow, and how much of it is used.

use std::collections::BTreeSet;

use berth_ownership::{ReservationState, Reserve};
use berth_proto::v1;

use super::{Service, authorize::require};
use crate::model::{
    Account, ApiError, Call, Caller, Payer, Quota, Quotas, Resource, Role, Snapshot, Who, Whom,
};

impl Service {
    /// What a dry run is told of the caller's quotas; the ledger decides of the others.
    pub(super) fn within_quotas(&self, caller: &Caller, request: &Reserve) -> Result<(), ApiError> {
        let quotas = self.ledger.quotas().get();
        Ok(quotas.check_reserve(&self.snapshot().state, request, &caller.payer())?)
    }

    /// How much each identity and label uses of what it may have. Below an orchestrator each sees
    /// its own alone, as does whoever is confined to a label.
    ///
    /// # Errors
    /// The caller may not.
    pub async fn list_quotas(
        &self,
        caller: &Caller,
        _request: v1::ListQuotasRequest,
    ) -> Result<v1::ListQuotasResponse, ApiError> {
        require(caller, Call::ListQuotas)?;
        let (quotas, snapshot) = (self.ledger.quotas().get(), self.snapshot());
        let entries = self.ledger.executor().map(|it| it.dma_entries()).unwrap_or_default();
        let used = |account: &Account, resource| match resource {
            Resource::DmaEntries => entries
                .iter()
                .filter(|(id, _)| {
                    let record = snapshot.state.reservation(id);
                    record.is_some_and(|record| account.has(resource, record))
                })
                .map(|(_, count)| count)
                .sum(),
            _ => account.used(resource, &snapshot.state),
        };
        let mut shown = Vec::new();
        for account in accounts(&quotas, &snapshot, caller) {
            let quota = quota_of(&quotas, &account, &caller.payer());
            let amounts = Resource::ALL.map(|resource| v1::QuotaAmount {
                resource: resource.key().to_owned(),
                used: used(&account, resource),
                limit: quota.and_then(|quota| quota.limit(resource)),
            });
            shown.push(v1::QuotaUse {
                account: account.to_string(),
                quota: quota.map(|quota| quota.who.to_string()).unwrap_or_default(),
                place: quota.map(|quota| quota.place.clone()).unwrap_or_default(),
                amounts: amounts.into(),
            });
        }
        Ok(v1::ListQuotasResponse { quotas: shown })
    }
}

/// Whom the caller is shown: itself, and who else has something or is named, where it may see that.
fn accounts(quotas: &Quotas, snapshot: &Snapshot, caller: &Caller) -> BTreeSet<Account> {
    if let Some(tenant) = &caller.tenant {
        return BTreeSet::from([Account::Label(tenant.to_string())]);
    }
    let mut found = BTreeSet::from([Account::Identity(caller.identity.clone())]);
    if caller.role < Role::Orchestrator {
        return found;
    }
    let records = snapshot.state.reservations();
    for record in records.filter(|record| record.state != ReservationState::Released) {
        found.insert(Account::Identity(record.requester.clone()));
        found.insert(Account::Identity(record.for_identity.clone()));
    }
    found.extend(quotas.0.iter().filter_map(|quota| match &quota.who {
        Whom::Peer(Who::Uid(uid)) => Some(Account::Identity(format!("uid:{uid}"))),
        Whom::Peer(Who::Uri(uri)) => Some(Account::Identity(uri.clone())),
        Whom::Label(label) => Some(Account::Label(label.clone())),
        Whom::Peer(Who::Gid(_) | Who::UriPrefix(_)) | Whom::Others => None,
    }));
    found
}

/// The quota that an account has, as far as its groups are known: those of the caller are.
fn quota_of<'a>(quotas: &'a Quotas, account: &Account, payer: &Payer) -> Option<&'a Quota> {
    match account {
        Account::Identity(identity) => {
            let gids: &[u32] = if *identity == payer.identity { &payer.gids } else { &[] };
            quotas.of_identity(identity, gids)
        }
        Account::Label(label) => quotas
            .of_label(label)
            .or_else(|| quotas.others().filter(|_| payer.tenant.as_deref() == Some(label))),
    }
}
