//! What was stored for the next daemon: a note is understood whole or not at all.

use berthd::fdstore::{KeptFd, note_again, note_named};

/// Checks the bytes as a stored note, as a note's text, and as the name of a descriptor.
pub(crate) fn check(bytes: &[u8]) {
    stored(bytes);
    let framed = [&16u64.to_ne_bytes()[..], &(bytes.len() as u64).to_ne_bytes(), bytes].concat();
    stored(&framed);
    if let Ok(name) = std::str::from_utf8(bytes) {
        named(name);
        named(&format!("berth.note.{name}"));
    }
}

fn stored(file: &[u8]) {
    match note_again(file) {
        Ok(again) => {
            assert_eq!(note_again(&again).expect("what was written is read"), again);
            let text: serde_json::Value = serde_json::from_slice(&again[16..]).expect("JSON");
            assert_eq!(text["format"], 1);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn named(name: &str) {
    let Some((context, again)) = note_named(name) else { return };
    assert_eq!(again, name, "of context {context:?}");
    assert!(KeptFd::is_kept(name));
}
