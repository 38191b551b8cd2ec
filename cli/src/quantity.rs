//! Sizes and durations as people write them.

use std::time::Duration;

/// Bytes: `4096`, `16M`, `512G`, `1T` (powers of 1,024; `GiB` and `GB` too).
pub(crate) fn bytes(input: &str) -> Result<u64, String> {
    let digits = input.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = input.get(digits.len()..).unwrap_or_default().to_ascii_uppercase();
    let shift = match unit.trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("{input:?} is not a size; write it like 512G, 16M or 4096")),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| format!("{input:?} is not a size; write it like 512G, 16M or 4096"))
}

/// A duration: `500ms`, `60s`, `5m`, `2h`, `1d`; a bare number is seconds.
pub(crate) fn duration(input: &str) -> Result<Duration, String> {
    let digits = input.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let millis = match input.get(digits.len()..).unwrap_or_default() {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(format!("{input:?} is not a duration; write it like 60s, 5m or 500ms")),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(millis))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{input:?} is not a duration; write it like 60s, 5m or 500ms"))
}

/// Milliseconds of a duration, saturating.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Bytes for people: `16 GiB`, `4 KiB`.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    for (shift, unit) in UNITS {
        if bytes >> shift > 0 {
            let whole = bytes >> shift;
            let tenth = ((bytes >> (shift - 10)) & 1023) * 10 / 1024;
            return if tenth == 0 {
                format!("{whole} {unit}")
            } else {
                format!("{whole}.{tenth} {unit}")
            };
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes("512G"), Ok(512 << 30));
        assert_eq!(bytes("16MiB"), Ok(16 << 20));
        assert_eq!(bytes("4096"), Ok(4096));
        for bad in ["", "G", "1X", "-1", "99999999999T"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
        assert_eq!(human(512 << 30), "512 GiB");
        assert_eq!(human(1536), "1.5 KiB");
    }

    #[test]
    fn durations() {
        assert_eq!(duration("60s"), Ok(Duration::from_mins(1)));
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["", "s", "1y", "-5s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
