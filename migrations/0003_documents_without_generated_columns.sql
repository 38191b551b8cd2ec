-- A generated column isn't free: in a STRICT table SQLite computes it for every row that is
-- written, as it does each CHECK. So the tables keep the documents, and views show their axes.
-- What json_each gives of a row is text, which each ->> parses anew; jsonb_each gives it parsed.
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

-- A commit of the ledger is one statement, so that it is one round trip to SQLite and whole by
-- itself: INSERT INTO batch. Each column is a JSON array of rows, or NULL where there is none; the
-- triggers take it apart. They run in no order that SQLite promises, so what has to follow something
-- stands in one trigger with it. Rows that come and rows that go in one batch are never the same.
CREATE VIEW batch AS SELECT
    NULL AS events,           -- rows of events
    NULL AS events_before,    -- a seq: events up to it go
    NULL AS reservations,     -- [id, record, extra]
    NULL AS reservations_gone,
    NULL AS retarget,         -- reservations whose targets are written anew
    NULL AS targets,          -- [device, group, reservation, owner]
    NULL AS groups,           -- [id, record]
    NULL AS groups_gone,
    NULL AS devices,          -- [address, present, record]
    NULL AS devices_gone,
    NULL AS identities,       -- [address, identity]
    NULL AS baselines,        -- [address, driver, override, intent], where there is none yet
    NULL AS baselines_gone,
    NULL AS contexts,         -- [id, record]
    NULL AS contexts_gone,
    NULL AS domains,          -- [id, record]
    NULL AS domains_gone,
    NULL AS intents,          -- [id, reservation, body, boot, opened]
    NULL AS intents_closed,   -- [id, closed, outcome]
    NULL AS steps,            -- [intent, ordinal, step, detail]
    NULL AS requests,         -- rows of request_ids
    NULL AS answers,          -- [intent, answer, refusal]
    NULL AS history_before_unix_ms, -- closed intents and request ids from before it go
    NULL AS meta;             -- [name, value]

CREATE TRIGGER batch_events INSTEAD OF INSERT ON batch WHEN NEW.events IS NOT NULL
BEGIN
    INSERT INTO events (seq, time_unix_ms, boot_id, actor, cause, request_id, kind, groups, devices, reservation, before, after)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7,
           value ->> 8, value ->> 9, value ->> 10, value ->> 11
    FROM jsonb_each(NEW.events);
END;

CREATE TRIGGER batch_events_before INSTEAD OF INSERT ON batch WHEN NEW.events_before IS NOT NULL
BEGIN
    DELETE FROM events WHERE seq <= NEW.events_before;
END;

CREATE TRIGGER batch_reservations INSTEAD OF INSERT ON batch WHEN NEW.reservations IS NOT NULL
BEGIN
    INSERT OR REPLACE INTO reservations (id, record, extra)
    SELECT value ->> 0, value ->> 1, value ->> 2 FROM jsonb_each(NEW.reservations);
END;

CREATE TRIGGER batch_reservations_gone INSTEAD OF INSERT ON batch WHEN NEW.reservations_gone IS NOT NULL
BEGIN
    DELETE FROM reservations WHERE id IN (SELECT value FROM jsonb_each(NEW.reservations_gone));
END;

-- What moves goes before it comes: a device has one reservation.
CREATE TRIGGER batch_targets INSTEAD OF INSERT ON batch WHEN NEW.retarget IS NOT NULL OR NEW.targets IS NOT NULL
BEGIN
    DELETE FROM targets WHERE reservation IN (SELECT value FROM jsonb_each(NEW.retarget));
    INSERT INTO targets (device, group_id, reservation, owner)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM jsonb_each(NEW.targets);
END;

CREATE TRIGGER batch_groups INSTEAD OF INSERT ON batch WHEN NEW.groups IS NOT NULL
BEGIN
    INSERT OR REPLACE INTO groups (id, record) SELECT value ->> 0, value ->> 1 FROM jsonb_each(NEW.groups);
END;

CREATE TRIGGER batch_groups_gone INSTEAD OF INSERT ON batch WHEN NEW.groups_gone IS NOT NULL
BEGIN
    DELETE FROM groups WHERE id IN (SELECT value FROM jsonb_each(NEW.groups_gone));
END;

CREATE TRIGGER batch_devices INSTEAD OF INSERT ON batch WHEN NEW.devices IS NOT NULL
BEGIN
    INSERT OR REPLACE INTO devices (address, present, record)
    SELECT value ->> 0, value ->> 1, value ->> 2 FROM jsonb_each(NEW.devices);
END;

CREATE TRIGGER batch_devices_gone INSTEAD OF INSERT ON batch WHEN NEW.devices_gone IS NOT NULL
BEGIN
    DELETE FROM devices WHERE address IN (SELECT value FROM jsonb_each(NEW.devices_gone));
END;

CREATE TRIGGER batch_identities INSTEAD OF INSERT ON batch WHEN NEW.identities IS NOT NULL
BEGIN
    INSERT OR REPLACE INTO identities (address, identity)
    SELECT value ->> 0, value ->> 1 FROM jsonb_each(NEW.identities);
END;

CREATE TRIGGER batch_baselines INSTEAD OF INSERT ON batch
WHEN NEW.baselines IS NOT NULL OR NEW.baselines_gone IS NOT NULL
BEGIN
    INSERT OR IGNORE INTO baselines (address, driver, driver_override, intent_id)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM jsonb_each(NEW.baselines);
    DELETE FROM baselines WHERE address IN (SELECT value FROM jsonb_each(NEW.baselines_gone));
END;

CREATE TRIGGER batch_contexts INSTEAD OF INSERT ON batch WHEN NEW.contexts IS NOT NULL
BEGIN
    INSERT OR REPLACE INTO contexts (id, record) SELECT value ->> 0, value ->> 1 FROM jsonb_each(NEW.contexts);
END;

CREATE TRIGGER batch_contexts_gone INSTEAD OF INSERT ON batch WHEN NEW.contexts_gone IS NOT NULL
BEGIN
    DELETE FROM contexts WHERE id IN (SELECT value FROM jsonb_each(NEW.contexts_gone));
END;

CREATE TRIGGER batch_domains INSTEAD OF INSERT ON batch WHEN NEW.domains IS NOT NULL
BEGIN
    INSERT OR REPLACE INTO domains (id, record) SELECT value ->> 0, value ->> 1 FROM jsonb_each(NEW.domains);
END;

CREATE TRIGGER batch_domains_gone INSTEAD OF INSERT ON batch WHEN NEW.domains_gone IS NOT NULL
BEGIN
    DELETE FROM domains WHERE id IN (SELECT value FROM jsonb_each(NEW.domains_gone));
END;

-- An intent can be opened and closed in one batch.
CREATE TRIGGER batch_intents INSTEAD OF INSERT ON batch
WHEN NEW.intents IS NOT NULL OR NEW.intents_closed IS NOT NULL
BEGIN
    INSERT INTO intents (id, reservation, body, boot_id, opened_unix_ms)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM jsonb_each(NEW.intents);
    UPDATE intents SET closed_unix_ms = ended.value ->> 1, outcome = ended.value ->> 2
    FROM jsonb_each(NEW.intents_closed) AS ended WHERE intents.id = ended.value ->> 0;
END;

CREATE TRIGGER batch_steps INSTEAD OF INSERT ON batch WHEN NEW.steps IS NOT NULL
BEGIN
    INSERT INTO intent_steps (intent_id, ordinal, step, detail)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM jsonb_each(NEW.steps);
END;

-- A request can be made and answered in one batch.
CREATE TRIGGER batch_requests INSTEAD OF INSERT ON batch
WHEN NEW.requests IS NOT NULL OR NEW.answers IS NOT NULL
BEGIN
    INSERT INTO request_ids (identity, id, body, created_unix_ms, about, intent_id, answer, refusal)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7
    FROM jsonb_each(NEW.requests);
    UPDATE request_ids SET answer = ended.value ->> 1, refusal = ended.value ->> 2
    FROM jsonb_each(NEW.answers) AS ended
    WHERE request_ids.intent_id = ended.value ->> 0 AND request_ids.answer IS NULL;
END;

CREATE TRIGGER batch_history INSTEAD OF INSERT ON batch WHEN NEW.history_before_unix_ms IS NOT NULL
BEGIN
    DELETE FROM intents WHERE closed_unix_ms < NEW.history_before_unix_ms;
    DELETE FROM request_ids WHERE created_unix_ms < NEW.history_before_unix_ms;
END;

CREATE TRIGGER batch_meta INSTEAD OF INSERT ON batch WHEN NEW.meta IS NOT NULL
BEGIN
    INSERT OR REPLACE INTO meta (name, value) SELECT value ->> 0, value ->> 1 FROM jsonb_each(NEW.meta);
END;
