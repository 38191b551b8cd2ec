//! The changes that lead from an empty database to the schema of this release.

use std::sync::OnceLock;

use sqlx::migrate::Migrator;

static OURS: Migrator = sqlx::migrate!("../migrations");
static LATER: OnceLock<Migrator> = OnceLock::new();

/// All of them, the oldest first.
pub fn migrations() -> &'static Migrator {
    LATER.get().unwrap_or(&OURS)
}

/// For a program that is a later release than this one, as tests of upgrades have it: what it brings a
/// database to. It comes before a store is opened, and once.
///
/// # Errors
/// It was called before; what it was given comes back.
pub fn release_with(migrations: Migrator) -> Result<(), Migrator> {
    LATER.set(migrations)
}
