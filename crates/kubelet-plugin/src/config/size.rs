//! Sizes of memory.

/// Bytes, with K, M, G or T for powers of 1024: `16G`.
pub(super) fn bytes_of(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..)? {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    let number: u64 =
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0)
}

#[cfg(test)]
mod tests {
    use super::bytes_of;

    #[test]
    fn sizes_are_powers_of_1024_and_nothing_else_is_one() {
        for (text, bytes) in [
            ("4096", Some(4096)),
            ("8K", Some(8192)),
            ("16G", Some(16 << 30)),
            ("1T", Some(1 << 40)),
            ("0", None),
            ("", None),
            ("G", None),
            ("+1G", None),
            ("1.5G", None),
            ("1g", None),
            ("1GiB", None),
            ("17179869184G", None),
        ] {
            assert_eq!(bytes_of(text), bytes, "{text}");
        }
    }
}
