//! Whether a reservation's memory can be pinned at all.

use berth_ownership::{Delivery, Reason, Refusal};

use crate::{acts::memlock::SLACK_BYTES, model::ApiError};

/// Refuses what the machine can't pin, before anything is touched for it: what a device may reach
/// stays in memory, so that there has to be as much.
///
/// # Errors
/// `MEMLOCK_LIMIT` with the numbers.
pub(super) fn fits(
    memory_bytes: u64,
    delivery: Delivery,
    machine: Option<u64>,
) -> Result<(), ApiError> {
    let beside = match delivery {
        // The daemon maps what is registered, and nothing else.
        Delivery::Held => 0,
        Delivery::Bound | Delivery::Unbound | Delivery::Node => SLACK_BYTES,
    };
    let wanted = memory_bytes.saturating_add(beside);
    let Some(machine) = machine.filter(|machine| memory_bytes > 0 && wanted > *machine) else {
        return Ok(());
    };
    let most = machine.saturating_sub(beside);
    let text = format!(
        "reserve {memory_bytes} bytes: they and {beside} for what a VMM maps beside are pinned for as \
         long as the device may reach them, and this host has {machine} bytes of memory"
    );
    let refusal = Refusal::new(Reason::MemlockLimit, "memory_bytes", text).with_resolve(vec![
        format!("reserve with --memory {most} or less"),
        "use a host with more memory".to_owned(),
    ]);
    Err(ApiError::Refused(refusal))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: u64 = 1 << 30;

    #[test]
    fn what_the_machine_has_not_is_refused_with_the_numbers() {
        let most = MACHINE - SLACK_BYTES;
        for delivery in [Delivery::Bound, Delivery::Unbound, Delivery::Node] {
            assert!(fits(most, delivery, Some(MACHINE)).is_ok());
            let refused = fits(most + 1, delivery, Some(MACHINE)).unwrap_err();
            assert_eq!(refused.reason(), Reason::MemlockLimit);
            for told in [most + 1, SLACK_BYTES, MACHINE] {
                assert!(refused.refusal().message.contains(&told.to_string()), "{refused}");
            }
            assert!(refused.refusal().resolve[0].contains(&most.to_string()));
        }
        assert!(fits(MACHINE, Delivery::Held, Some(MACHINE)).is_ok());
        assert!(fits(MACHINE + 1, Delivery::Held, Some(MACHINE)).is_err());
        assert!(fits(u64::MAX, Delivery::Node, Some(MACHINE)).is_err());
        // Nothing said, or nothing known.
        assert!(fits(0, Delivery::Node, Some(1)).is_ok());
        assert!(fits(u64::MAX, Delivery::Node, None).is_ok());
    }
}
