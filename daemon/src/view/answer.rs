//! Answers to calls, as they are stored for repeated ones.

use berth_ownership::Time;

use crate::{
    json,
    model::{AnswerOf, Snapshot},
};

use super::{device::device, domain::domain, explain, reservation::reservation, sriov::sriov};

/// The answer about an object, proto3 JSON; `None` when the object is gone.
#[must_use]
pub fn answer(snapshot: &Snapshot, about: &AnswerOf, now: &Time) -> Option<String> {
    let state = &*snapshot.state;
    let json = match about {
        AnswerOf::Reservation(id) => {
            let extra = snapshot.extras.get(id).map(AsRef::as_ref);
            let record = state.reservation(id)?;
            json::to_string(&reservation(state, record, extra, &snapshot.boot))
        }
        AnswerOf::KernelDma(id) => {
            let facts = snapshot.device_by_id(id)?;
            json::to_string(&explain::kernel_dma_of(snapshot, facts, now))
        }
        AnswerOf::Sriov(id) => json::to_string(&sriov(snapshot, snapshot.device_by_id(id)?)),
        AnswerOf::Device(id) => json::to_string(&device(snapshot, snapshot.device_by_id(id)?)),
        AnswerOf::Domain(id) => json::to_string(&domain(state, state.domain(id)?, None)),
        AnswerOf::Nothing => return Some("{}".to_owned()),
    };
    json.ok()
}
