//! The man page of a program that an administrator runs, from what its help is made of.
#![forbid(unsafe_code)]

use std::{path::Path, process::ExitCode};

use clap::Command;

/// Writes `NAME.8` to a directory, or says on standard error why it can't.
#[must_use]
pub fn write(command: Command, dir: &Path) -> ExitCode {
    let name = command.get_name().to_owned();
    match clap_mangen::Man::new(command).section("8").generate_to(dir) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            let dir = dir.display();
            eprintln!(
                "{name}: write the man page to {dir}: {error}; name a directory that is there"
            );
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Arg;

    use super::*;

    fn command() -> Command {
        let option = |name| Arg::new(name).long(name).help("What it does.");
        Command::new("berth-example")
            .about("Says what it is for.")
            .args([option("first"), option("second-one")])
    }

    #[test]
    fn the_page_says_what_help_says() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(write(command(), dir.path()), ExitCode::SUCCESS);
        let page = fs::read_to_string(dir.path().join("berth-example.8")).expect("a page");
        let page = page.replace("\\-", "-");
        for wanted in [".TH berth-example 8", "Says what it is for.", "--first", "--second-one"] {
            assert!(page.contains(wanted), "{wanted}: {page}");
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error() {
        assert_eq!(write(command(), Path::new("/nonexistent/man")), ExitCode::FAILURE);
    }
}
