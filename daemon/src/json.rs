//! JSON texts that are kept: each in exactly as much memory as it takes.

use std::cell::RefCell;

use serde::{Serialize, ser::Error as _};
use serde_json::Error;

/// How much memory a thread keeps for writing the next text.
const KEPT: usize = 1 << 16;

thread_local! {
    /// Where a thread writes. To write into a new text each time, which grows in steps, takes as long as
    /// writing itself.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A value as JSON.
///
/// # Errors
/// The value can't be written as JSON.
pub(crate) fn to_string<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<String> {
    // A value that is written within another has a scratch of its own.
    let mut scratch = SCRATCH.take();
    let text = serde_json::to_writer(&mut scratch, value)
        .and_then(|()| str::from_utf8(&scratch).map(str::to_owned).map_err(Error::custom));
    scratch.clear();
    if scratch.capacity() <= KEPT {
        SCRATCH.set(scratch);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::to_string;

    #[test]
    fn a_text_is_as_long_as_it_takes_and_nothing_of_another_is_in_it() {
        let long = "ü\"".repeat(50_000);
        for value in ["", "short", &long, "x"] {
            let text = to_string(value).expect("a string");
            assert_eq!(text, serde_json::to_string(value).expect("a string"));
            assert_eq!(text.capacity(), text.len());
        }
        let bad = std::collections::BTreeMap::from([((1, 2), 3)]);
        to_string(&bad).expect_err("no key");
        assert_eq!(to_string(&7).expect("a number"), "7");
    }
}
