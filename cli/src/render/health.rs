//! The condition of devices: what stands against them, and how long they are cordoned.

use berth_proto::{Timestamp, v1};

use super::word;

/// What stands against a device, a line each.
pub(crate) fn causes(health: &v1::DeviceHealth) -> String {
    let line = |cause: &v1::ConditionCause| {
        let since = cause.since.as_ref().map(|since| format!(" since {}", time(since)));
        format!("{} {}{}", cause.code, cause.what, since.unwrap_or_default())
    };
    health.causes.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Why a device is cordoned, and until when.
pub(crate) fn cordon(cordon: &v1::Cordon) -> String {
    let until = cordon.expires_at.as_ref().map(|end| format!("until {}", time(end)));
    let parts = [cordon.note.clone(), until.unwrap_or_default()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

/// A condition in one cell, with its end where it has one.
pub(crate) fn short(device: &v1::Device) -> String {
    let condition = word(device.condition().as_str_name());
    let end = device.cordon.as_ref().and_then(|cordon| cordon.expires_at.as_ref());
    match end.filter(|_| device.condition() == v1::Condition::Cordoned) {
        Some(end) => format!("{condition} until {}", time(end)),
        None => condition,
    }
}

/// The kernel's word for its power state.
pub(crate) fn power(health: &v1::DeviceHealth) -> String {
    match (health.power_state.as_str(), health.asleep) {
        (state, false) => state.to_owned(),
        ("", true) => "asleep".to_owned(),
        (state, true) => format!("{state}, asleep: not looked at further"),
    }
}

/// How its link runs, and could, and what it lacks. A slow one may only idle: that is for the condition.
pub(crate) fn link(health: &v1::DeviceHealth) -> String {
    let Some(link) = &health.link else { return String::new() };
    let speed = |speed: u32| match speed {
        0 => "unknown".to_owned(),
        speed => format!("{}.{} GT/s", speed / 1_000, speed % 1_000 / 100),
    };
    let lacks: &[&str] = match (link.width < link.max_width, link.speed_mts < link.max_speed_mts) {
        (false, false) => &[],
        (true, false) => &["fewer lanes"],
        (false, true) => &["slower"],
        (true, true) => &["fewer lanes", "slower"],
    };
    let lacks = if lacks.is_empty() {
        String::new()
    } else {
        format!(": {} than its ends can do", lacks.join(" and "))
    };
    format!(
        "x{} at {} of x{} at {}{lacks}",
        link.width,
        speed(link.speed_mts),
        link.max_width,
        speed(link.max_speed_mts)
    )
}

/// What Advanced Error Reporting counted.
pub(crate) fn errors(health: &v1::DeviceHealth) -> String {
    let Some(aer) = &health.aer else { return String::new() };
    let v1::AerCounters { correctable, nonfatal, fatal } = aer;
    format!("{correctable} correctable, {nonfatal} nonfatal, {fatal} fatal")
}

/// RFC 3339, as the JSON mapping writes it.
fn time(time: &Timestamp) -> String {
    let value = serde_json::to_value(time).ok();
    value.as_ref().and_then(|value| value.as_str()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_against_a_device_has_its_numbers_and_its_time() {
        let cause = |code: &str, what: &str, since| v1::ConditionCause {
            code: code.to_owned(),
            what: what.to_owned(),
            since,
        };
        let since = Some(Timestamp { seconds: 1_795_456_758, nanos: 0 });
        let health = v1::DeviceHealth {
            causes: vec![cause("AER_NONFATAL", "3", since), cause("LINK_WIDTH", "x4 of x16", None)],
            power_state: "D3hot".to_owned(),
            asleep: true,
            aer: Some(v1::AerCounters { correctable: 7, nonfatal: 3, fatal: 0 }),
            link: Some(v1::Link { width: 4, speed_mts: 2_500, max_width: 16, max_speed_mts: 0 }),
            ..Default::default()
        };
        assert_eq!(
            causes(&health),
            "AER_NONFATAL 3 since 2026-11-23T17:59:18Z\nLINK_WIDTH x4 of x16"
        );
        assert_eq!(power(&health), "D3hot, asleep: not looked at further");
        let narrow = "x4 at 2.5 GT/s of x16 at unknown: fewer lanes than its ends can do";
        assert_eq!(link(&health), narrow);
        let runs = |width, speed_mts| {
            let link = v1::Link { max_width: 16, max_speed_mts: 16_000, width, speed_mts };
            super::link(&v1::DeviceHealth { link: Some(link), ..Default::default() })
        };
        assert_eq!(runs(16, 16_000), "x16 at 16.0 GT/s of x16 at 16.0 GT/s");
        assert!(runs(16, 2_500).ends_with(": slower than its ends can do"));
        assert!(runs(8, 2_500).ends_with(": fewer lanes and slower than its ends can do"));
        assert_eq!(errors(&health), "7 correctable, 3 nonfatal, 0 fatal");
    }

    #[test]
    fn a_cordon_shows_its_note_and_its_end() {
        let end = Some(Timestamp { seconds: 1_795_456_758, nanos: 0 });
        let of =
            |note: &str, expires_at| v1::Cordon { note: note.to_owned(), expires_at, ttl_ms: 0 };
        assert_eq!(cordon(&of("firmware", end)), "firmware, until 2026-11-23T17:59:18Z");
        assert_eq!(cordon(&of("firmware", None)), "firmware");
        let device = |condition: v1::Condition| v1::Device {
            condition: condition.into(),
            cordon: Some(of("", end)),
            ..Default::default()
        };
        let cordoned = device(v1::Condition::Cordoned);
        assert_eq!(short(&cordoned), "cordoned until 2026-11-23T17:59:18Z");
        assert_eq!(short(&device(v1::Condition::Wedged)), "wedged");
    }
}
