//! The vocabularies of the record and of the API, one to one.

use berth_host::BackendKind;
use berth_ownership::{Backend, Condition, Delivery, Expiry, Ownership, Policy, ResetPolicy};
use berth_proto::{Timestamp, v1};

use super::Boot;

/// A PCI address as the API has it.
pub fn address(pci: impl Into<String>) -> v1::DeviceAddress {
    v1::DeviceAddress { kind: Some(v1::device_address::Kind::Pci(pci.into())) }
}

/// A policy as the API has it.
#[must_use]
pub fn policy_word(policy: Policy) -> v1::Policy {
    match policy {
        Policy::Exclusive => v1::Policy::Exclusive,
        Policy::Shared => v1::Policy::Shared,
        Policy::Group => v1::Policy::Group,
    }
}

/// A policy of the API; `None` when it is left open or unknown.
#[must_use]
pub fn policy(number: i32) -> Option<Policy> {
    match v1::Policy::try_from(number).ok()? {
        v1::Policy::Unspecified => None,
        v1::Policy::Exclusive => Some(Policy::Exclusive),
        v1::Policy::Shared => Some(Policy::Shared),
        v1::Policy::Group => Some(Policy::Group),
    }
}

/// A delivery as the API has it.
#[must_use]
pub fn delivery_word(delivery: Delivery) -> v1::Delivery {
    match delivery {
        Delivery::Held => v1::Delivery::Held,
        Delivery::Bound => v1::Delivery::Bound,
        Delivery::Unbound => v1::Delivery::Unbound,
        Delivery::Node => v1::Delivery::Node,
    }
}

/// A delivery of the API; `None` when it is left open or unknown.
#[must_use]
pub fn delivery(number: i32) -> Option<Delivery> {
    match v1::Delivery::try_from(number).ok()? {
        v1::Delivery::Unspecified => None,
        v1::Delivery::Held => Some(Delivery::Held),
        v1::Delivery::Bound => Some(Delivery::Bound),
        v1::Delivery::Unbound => Some(Delivery::Unbound),
        v1::Delivery::Node => Some(Delivery::Node),
    }
}

/// A back end as the API has it.
#[must_use]
pub fn backend_word(backend: Backend) -> v1::Backend {
    match backend {
        Backend::Iommufd => v1::Backend::Iommufd,
        Backend::Type1 => v1::Backend::Type1,
    }
}

/// The record's word for a host's back end.
#[must_use]
pub fn backend(kind: BackendKind) -> Backend {
    match kind {
        BackendKind::Iommufd => Backend::Iommufd,
        BackendKind::Type1 => Backend::Type1,
    }
}

/// A reset policy as the API has it.
#[must_use]
pub fn reset_policy(policy: ResetPolicy) -> v1::ResetPolicy {
    match policy {
        ResetPolicy::Require => v1::ResetPolicy::Require,
        ResetPolicy::AllowSameLabel => v1::ResetPolicy::AllowSameLabel,
        ResetPolicy::None => v1::ResetPolicy::None,
    }
}

/// A condition as the API has it.
#[must_use]
pub fn condition(condition: Condition) -> v1::Condition {
    match condition {
        Condition::Ok => v1::Condition::Ok,
        Condition::Degraded => v1::Condition::Degraded,
        Condition::Failed => v1::Condition::Failed,
        Condition::Cordoned => v1::Condition::Cordoned,
        Condition::Wedged => v1::Condition::Wedged,
        Condition::Quarantined => v1::Condition::Quarantined,
    }
}

/// A condition's word for people.
#[must_use]
pub fn condition_word(condition: Condition) -> &'static str {
    match condition {
        Condition::Ok => "ok",
        Condition::Degraded => "degraded",
        Condition::Failed => "failed",
        Condition::Cordoned => "cordoned",
        Condition::Wedged => "wedged",
        Condition::Quarantined => "quarantined",
    }
}

/// The first axis as the API has it.
#[must_use]
pub fn ownership_kind(ownership: &Ownership) -> v1::owner::Kind {
    match ownership {
        Ownership::Free => v1::owner::Kind::Free,
        Ownership::Kernel { .. } => v1::owner::Kind::Kernel,
        Ownership::Private { .. } => v1::owner::Kind::Private,
        Ownership::Exclusive { .. } => v1::owner::Kind::Exclusive,
        Ownership::Shared { .. } => v1::owner::Kind::Shared,
        Ownership::Group { .. } => v1::owner::Kind::Group,
        Ownership::Foreign { .. } => v1::owner::Kind::Foreign,
    }
}

/// The end of a term as the API has it; `None` where it is of another boot.
#[must_use]
pub(super) fn expiry(expires: &Expiry, boot: &Boot) -> Option<Timestamp> {
    let here = expires.boot_id.as_str() == &*boot.id;
    here.then(|| timestamp(expires.boot_ms.saturating_add_signed(boot.offset_ms)))
}

/// A wall-clock time as the API has it.
///
/// # Units
/// Milliseconds since 1970-01-01 UTC.
#[must_use]
pub fn timestamp(unix_ms: u64) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(unix_ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(unix_ms % 1000).unwrap_or(0) * 1_000_000,
    }
}
