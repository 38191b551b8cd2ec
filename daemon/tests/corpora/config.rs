//! `berthd.toml`, whatever is in it: it is refused with its line and a way out, or it says the same
//! however it is laid out.

use berthd::config::{Args, Config, ConfigError};
use clap::Parser as _;

/// Checks a file of these bytes.
pub(crate) fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // Certificates are read, and these files have no end.
    if text.contains("/dev") || text.contains("/proc") {
        return;
    }
    let args = Args::try_parse_from(["berthd"]).expect("no arguments");
    let read = |text: &str| Config::parse(text, None, &args);
    let found = read(text);
    if let Err(error) = &found {
        refused(text, error);
    }
    // A remark above moves every line, and nothing else.
    let moved = read(&format!("# a remark\n\n{text}"));
    match (&found, &moved) {
        (Ok(found), Ok(moved)) => assert_eq!(anywhere(found), anywhere(moved)),
        (
            Err(ConfigError::Line { line, key, message, .. }),
            Err(ConfigError::Line { line: below, key: same, message: again, .. }),
        ) => {
            assert_eq!((line + 2, key, message), (*below, same, again), "{text:?}");
        }
        (found, moved) => panic!("{text:?}: {found:?}, and below a remark {moved:?}"),
    }
    // A key that nobody knows is never passed over.
    if found.is_ok() {
        let error = read(&format!("berth_knows_no_such_key = 1\n{text}")).expect_err("refused");
        assert!(error.to_string().contains("berth_knows_no_such_key"), "{error}");
    }
}

/// All of it, but for the lines that rules say they are on.
fn anywhere(config: &Config) -> String {
    let text = format!("{config:?}");
    let mut parts = text.split("berthd.toml:");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

fn refused(text: &str, error: &ConfigError) {
    let ConfigError::Line { line, key, message, way_out, .. } = error else {
        panic!("{text:?}: {error}");
    };
    assert!((1..=text.matches('\n').count() + 1).contains(line), "{error}");
    assert!(!key.is_empty() && !message.is_empty() && !way_out.is_empty(), "{error:?}");
    let said = error.to_string();
    assert!(said.lines().count() <= 1, "a line of a log: {said:?}");
}
