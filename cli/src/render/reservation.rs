//! Reservations.

use berth_proto::v1::{self, reservation::State};

use super::{Meaning, block as fields, cell, table as render, word};
use crate::{address, error::refusal_text, quantity};

/// One line a reservation.
pub(crate) fn table(reservations: &[v1::Reservation]) -> String {
    render(
        &["RESERVATION", "HOLDER", "STATE", "POLICY", "DELIVERY", "BACKEND", "DEVICES", "EPOCH"],
        reservations.iter().map(|reservation| {
            let holder = reservation.holder.as_ref().map(|holder| holder.name.clone());
            vec![
                cell(&reservation.id, Meaning::Plain),
                cell(holder.unwrap_or_default(), Meaning::Plain),
                cell(word(reservation.state().as_str_name()), meaning(reservation.state())),
                cell(word(reservation.policy().as_str_name()), Meaning::Plain),
                cell(word(reservation.delivery().as_str_name()), Meaning::Plain),
                cell(word(reservation.backend().as_str_name()), Meaning::Plain),
                cell(devices(reservation).join(" "), Meaning::Plain),
                cell(reservation.epoch.to_string(), Meaning::Plain),
            ]
        }),
    )
}

fn meaning(state: State) -> Meaning {
    match state {
        State::Held | State::Handed => Meaning::Used,
        State::Reserved | State::Preparing | State::Released => Meaning::Good,
        State::Expired | State::Draining | State::Lost => Meaning::Bad,
        State::Unspecified => Meaning::Plain,
    }
}

fn devices(reservation: &v1::Reservation) -> Vec<String> {
    reservation
        .targets
        .iter()
        .flat_map(|target| &target.devices)
        .map(|device| address::text(Some(device)).to_owned())
        .collect()
}

/// Everything about one reservation.
pub(crate) fn block(reservation: &v1::Reservation) -> String {
    let holder = reservation.holder.clone().unwrap_or_default();
    let memory = match reservation.memory_bytes {
        0 => String::new(),
        bytes => quantity::human(bytes),
    };
    let ttl = match reservation.ttl_ms {
        0 => String::new(),
        millis => format!("{} s", millis / 1000),
    };
    fields(&[
        ("reservation", reservation.id.clone()),
        ("state", state(reservation)),
        ("holder", holder.name),
        ("label", reservation.label.clone()),
        ("for", holder.for_identity),
        ("policy", word(reservation.policy().as_str_name())),
        ("delivery", word(reservation.delivery().as_str_name())),
        ("backend", word(reservation.backend().as_str_name())),
        ("groups", reservation.targets.iter().map(target).collect::<Vec<_>>().join("\n")),
        ("claims", reservation.claims.iter().map(claim).collect::<Vec<_>>().join("\n")),
        ("hold", word(reservation.hold().as_str_name())),
        ("epoch", reservation.epoch.to_string()),
        ("context", reservation.context.clone()),
        ("domain", reservation.domain.clone()),
        ("token", reservation.token.clone()),
        ("memory", memory),
        ("ttl", ttl),
        ("detail", reservation.detail.clone()),
        ("warning", reservation.warnings.join("\n")),
        (
            "given back",
            reservation.given_back.iter().map(given_back).collect::<Vec<_>>().join("\n"),
        ),
        ("last failure", reservation.last_failure.as_ref().map(refusal_text).unwrap_or_default()),
    ])
}

fn state(reservation: &v1::Reservation) -> String {
    let mut name = word(reservation.state().as_str_name());
    if reservation.state() == State::Handed {
        name.push_str(" (the holder has not bound yet)");
    }
    if reservation.pending.is_empty() {
        name
    } else {
        format!("{name} ({} under way)", reservation.pending)
    }
}

fn target(target: &v1::Target) -> String {
    let devices: Vec<&str> = target.devices.iter().map(|d| address::text(Some(d))).collect();
    format!("{} {}", target.group, devices.join(" "))
}

fn claim(claim: &v1::Claim) -> String {
    let mut text = address::text(claim.device.as_ref()).to_owned();
    if !claim.domain.is_empty() {
        text = format!("{text} in {}", claim.domain);
    }
    if !claim.processes.is_empty() {
        text = format!("{text}, {}", super::device::processes(&claim.processes));
    }
    text
}

fn given_back(back: &v1::GivenBack) -> String {
    let driver = if back.driver.is_empty() { "no driver" } else { &back.driver };
    let baseline =
        if back.baseline_restored { "baseline restored" } else { "baseline NOT restored" };
    let note = if back.note.is_empty() { String::new() } else { format!(" ({})", back.note) };
    format!(
        "{} reset {}{note}, {baseline}: {driver}",
        address::text(back.device.as_ref()),
        word(back.reset().as_str_name()),
    )
}
