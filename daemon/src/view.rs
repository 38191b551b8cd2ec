//! What is shown: proto messages made from a snapshot. Nothing here reads the host or the store.

mod answer;
mod degraded;
mod device;
mod doctor;
mod domain;
pub(crate) mod errno;
mod event;
mod explain;
mod explain_memory;
mod group;
mod health;
mod refusal;
mod reservation;
mod sriov;
mod watched;
mod words;
mod writes;

pub use answer::answer;
pub use degraded::degraded;
pub use device::{device, kernel_dma, process, user, uses_kernel_dma};
pub use doctor::{Machine, Scope, diagnose, findings_of};
pub use domain::{context, domain};
pub(crate) use errno::name as errno_name;
pub use event::event;
pub use explain::{Asked, explain, kernel_dma_of};
pub use explain_memory::memory_notes;
pub use group::{group, owner_of};
pub use health::{causes, cordon, health};
pub use refusal::refusal;
pub use reservation::{Boot, claims, given_back, reservation};
pub use sriov::sriov;
pub use watched::WatchedEvent;
pub use words::{
    address, backend, backend_word, condition, condition_word, delivery, delivery_word,
    ownership_kind, policy, policy_word, reset_policy, timestamp,
};
pub use writes::writes;
