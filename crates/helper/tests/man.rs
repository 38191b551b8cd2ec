//! The man page is made of what `--help` is made of.
#![allow(clippy::unwrap_used, reason = "helpers of a test may panic as tests do")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn man(dir: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_berth-helper")).arg("--man").arg(dir).output().unwrap()
}

/// The long options in a text, in the order of the alphabet.
fn options(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_lowercase() && c != '-');
    let mut found: Vec<String> =
        words.filter(|word| word.starts_with("--") && word.len() > 3).map(str::to_owned).collect();
    found.sort();
    found.dedup();
    found
}

#[test]
fn every_option_is_in_the_man_page() {
    let dir = tempfile::tempdir().unwrap();
    let output = man(dir.path());
    assert!(output.status.success(), "{output:?}");
    let page = fs::read_to_string(dir.path().join("berth-helper.8")).unwrap();
    assert!(page.contains(".TH berth-helper 8"), "{page}");
    assert!(page.contains("one privileged act"), "it says what it is for: {page}");
    let help = Command::new(env!("CARGO_BIN_EXE_berth-helper")).arg("--help").output().unwrap();
    let help = options(&String::from_utf8(help.stdout).unwrap());
    assert!(help.contains(&"--unconfined".to_owned()), "{help:?}");
    assert_eq!(options(&page.replace("\\-", "-")), help);
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let output = man(Path::new("/nonexistent/man"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("/nonexistent/man: ") && said.contains("directory that is there"),
        "{said}"
    );
}
