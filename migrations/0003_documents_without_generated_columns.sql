-- A generated column isn't free: in a STRICT table SQLite computes it for every row that is
-- written, as it does each CHECK. So the tables keep the documents, and views show their axes.
-- Commits are plain statements again: taking JSON arrays apart cost more than the rows.
DROP VIEW batch;
DROP VIEW claims;

CREATE TABLE new_groups (
    id     TEXT PRIMARY KEY,    -- 'g-' and 12 hex digits of a hash of the member addresses
    record TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO new_groups SELECT id, record FROM groups;
DROP TABLE groups;
ALTER TABLE new_groups RENAME TO groups;

CREATE TABLE new_devices (
    address TEXT PRIMARY KEY,   -- '0000:65:00.0'
    present INTEGER NOT NULL CHECK (present IN (0, 1)), -- 0: gone, but something stands against it
    record  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO new_devices SELECT address, present, record FROM devices;
DROP TABLE devices;
ALTER TABLE new_devices RENAME TO devices;

CREATE TABLE new_contexts (
    id     TEXT PRIMARY KEY,    -- 'c-…'
    record TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO new_contexts SELECT id, record FROM contexts;
DROP TABLE contexts;
ALTER TABLE new_contexts RENAME TO contexts;

CREATE TABLE new_domains (
    id     TEXT PRIMARY KEY,    -- 'd-…'
    record TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO new_domains SELECT id, record FROM domains;
DROP TABLE domains;
ALTER TABLE new_domains RENAME TO domains;

CREATE TABLE new_reservations (
    id     TEXT PRIMARY KEY,    -- 'r-' and 12 hex digits
    record TEXT NOT NULL,
    extra  TEXT NOT NULL        -- last failure; how devices were given back
) STRICT, WITHOUT ROWID;
INSERT INTO new_reservations SELECT id, record, extra FROM reservations;
DROP TABLE reservations;
ALTER TABLE new_reservations RENAME TO reservations;

CREATE TABLE new_events (
    seq         INTEGER PRIMARY KEY,
    time_unix_ms INTEGER NOT NULL,
    boot_id     TEXT NOT NULL,
    actor       TEXT NOT NULL,  -- 'uid:0', 'berthd'
    cause       TEXT NOT NULL,  -- the call's name, 'reconcile', 'expiry', 'uevent'
    request_id  TEXT NOT NULL,  -- '' for none
    kind        TEXT NOT NULL,  -- 'reservation.created'
    groups      TEXT NOT NULL,  -- stable ids: a JSON array
    devices     TEXT NOT NULL,  -- addresses: a JSON array
    reservation TEXT NOT NULL,  -- '' for none
    before      TEXT,           -- the object before, proto3 JSON
    after       TEXT            -- and after
) STRICT;
INSERT INTO new_events SELECT * FROM events;
DROP TABLE events;
ALTER TABLE new_events RENAME TO events;

DROP TRIGGER intents_take_their_steps;
CREATE TABLE new_intents (
    id          INTEGER PRIMARY KEY,
    reservation TEXT,           -- NULL for kernel DMA of a device
    body        TEXT NOT NULL,  -- kind and what to do: JSON
    boot_id     TEXT NOT NULL,
    opened_unix_ms INTEGER NOT NULL,
    closed_unix_ms INTEGER,     -- NULL: no outcome yet
    outcome     TEXT            -- 'done', 'superseded' or why it failed
) STRICT;
INSERT INTO new_intents
SELECT id, reservation, body, boot_id, opened_unix_ms, closed_unix_ms, outcome FROM intents;
DROP TABLE intents;
ALTER TABLE new_intents RENAME TO intents;
CREATE INDEX intents_open ON intents (id) WHERE closed_unix_ms IS NULL;
CREATE TRIGGER intents_take_their_steps AFTER DELETE ON intents
BEGIN
    DELETE FROM intent_steps WHERE intent_id = OLD.id;
END;

-- Request ids of the last 24 hours with the answers that were given, refusals among them. A refusal
-- without kernel work has no intent_id.
CREATE TABLE new_request_ids (
    identity  TEXT NOT NULL,    -- who asked
    id        TEXT NOT NULL,
    body      TEXT NOT NULL,    -- hash of the call's name and body, hex
    created_unix_ms INTEGER NOT NULL,
    about     TEXT NOT NULL,    -- what the answer is about: JSON
    intent_id INTEGER,          -- the kernel work that the answer waits for
    answer    TEXT,             -- proto3 JSON; NULL while the work goes on
    refusal   TEXT,             -- why it was refused, or the work failed: JSON
    PRIMARY KEY (identity, id)
) STRICT, WITHOUT ROWID;
INSERT INTO new_request_ids SELECT * FROM request_ids;
DROP TABLE request_ids;
ALTER TABLE new_request_ids RENAME TO request_ids;
CREATE INDEX request_ids_by_time ON request_ids (created_unix_ms);
CREATE INDEX request_ids_by_intent ON request_ids (intent_id) WHERE answer IS NULL;

-- For people: what the documents say of each axis.
CREATE VIEW group_axes AS SELECT id,
    record ->> '$.epoch' AS epoch,              -- highest ever given
    record ->> '$.ownership.kind' AS ownership, -- first axis
    record ->> '$.condition' AS condition       -- third axis
FROM groups;

CREATE VIEW device_axes AS SELECT address, present,
    record ->> '$.group' AS group_id,
    record ->> '$.marks' AS marks,              -- condition -> reason
    record ->> '$.only_label' AS only_label     -- not reset since
FROM devices;

CREATE VIEW context_axes AS SELECT id,
    record ->> '$.label' AS label,
    record ->> '$.policy' AS policy,
    record ->> '$.backend' AS backend
FROM contexts;

CREATE VIEW domain_axes AS SELECT id,
    record ->> '$.context' AS context,
    record ->> '$.label' AS label
FROM domains;

CREATE VIEW reservation_axes AS SELECT id,
    record ->> '$.holder' AS holder,
    record ->> '$.requester' AS requester,       -- who asked
    record ->> '$.for_identity' AS for_identity, -- who may fetch
    record ->> '$.label' AS label,
    record ->> '$.policy' AS policy,
    record ->> '$.delivery' AS delivery,
    record ->> '$.backend' AS backend,
    record ->> '$.state' AS state,               -- second axis
    record ->> '$.epoch' AS epoch,               -- fencing number
    record ->> '$.context' AS context,
    record ->> '$.domain' AS domain,
    record ->> '$.token' AS token,
    record ->> '$.claims' AS claims,
    record ->> '$.pending.kind' AS pending,
    record ->> '$.hold' AS hold,
    record ->> '$.memory_bytes' AS memory_bytes,
    record ->> '$.ttl_ms' AS ttl_ms,
    record ->> '$.expires.boot_ms' AS expires_boot_ms,
    record ->> '$.expires.boot_id' AS expires_boot_id,
    record ->> '$.reset_policy' AS reset_policy
FROM reservations;

-- The devices of reservations that are attached or handed over.
CREATE VIEW claims AS
SELECT targets.device, targets.group_id, targets.reservation, reservation_axes.domain
FROM targets JOIN reservation_axes ON reservation_axes.id = targets.reservation
WHERE reservation_axes.claims > 0;
