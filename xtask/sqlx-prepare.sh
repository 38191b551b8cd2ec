#!/bin/sh
# Describes every query of the daemon against a database that the migrations make, and keeps the
# descriptions in .sqlx, so that a build needs no database. Run it after a change of a query or of
# a migration. With --check it changes nothing and fails when .sqlx is out of date.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/sqlx"
python3 - "$root/migrations" "$work/berth.db" <<'PYTHON'
import pathlib, sqlite3, sys
database = sqlite3.connect(sys.argv[2])
for migration in sorted(pathlib.Path(sys.argv[1]).glob("*.sql")):
    database.executescript(migration.read_text())
database.commit()
PYTHON
cd "$root"
# The queries are described while they are compiled.
touch daemon/src/lib.rs
DATABASE_URL="sqlite://$work/berth.db" SQLX_OFFLINE_DIR="$work/sqlx" \
    cargo check --quiet --package berthd --lib
if [ "${1:-}" = --check ]; then
    diff -r "$work/sqlx" .sqlx && echo ".sqlx is up to date"
    exit
fi
mkdir -p .sqlx
rm -f .sqlx/*.json
cp "$work"/sqlx/*.json .sqlx/
echo "$(ls .sqlx | wc -l) queries described"
