//! The release after this one, as tests of upgrades have it: `berthd` with one migration more.

#[path = "../../src/main.rs"]
mod berthd_main;

use std::process::ExitCode;

use berthd::store::{migrations, release_with};
use sqlx::migrate::{Migration, Migrator};

fn main() -> ExitCode {
    let more = sqlx::migrate!("examples/next_release/migrations");
    let all: Vec<Migration> = migrations().iter().chain(more.iter()).cloned().collect();
    match release_with(Migrator::with_migrations(all)) {
        Ok(()) => berthd_main::main(),
        Err(_) => ExitCode::FAILURE,
    }
}
