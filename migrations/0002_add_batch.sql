-- A commit of the ledger is one statement, so that it is one round trip to SQLite and whole by
-- itself: INSERT INTO batch. Each column is a JSON array of rows, or NULL where there is none; the
-- triggers take it apart. They run in no order that SQLite promises, so what has to follow something
-- stands in one trigger with it. Rows that come and rows that go in one batch are never the same.
--
-- request_ids has refusals of calls from now on, too: those that a call got without kernel work
-- have a refusal and no intent_id.
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
    FROM json_each(NEW.events);
END;

CREATE TRIGGER batch_events_before INSTEAD OF INSERT ON batch WHEN NEW.events_before IS NOT NULL
BEGIN
    DELETE FROM events WHERE seq <= NEW.events_before;
END;

CREATE TRIGGER batch_reservations INSTEAD OF INSERT ON batch WHEN NEW.reservations IS NOT NULL
BEGIN
    INSERT OR REPLACE INTO reservations (id, record, extra)
    SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(NEW.reservations);
END;

CREATE TRIGGER batch_reservations_gone INSTEAD OF INSERT ON batch WHEN NEW.reservations_gone IS NOT NULL
BEGIN
    DELETE FROM reservations WHERE id IN (SELECT value FROM json_each(NEW.reservations_gone));
END;

-- What moves goes before it comes: a device has one reservation.
CREATE TRIGGER batch_targets INSTEAD OF INSERT ON batch WHEN NEW.retarget IS NOT NULL OR NEW.targets IS NOT NULL
BEGIN
    DELETE FROM targets WHERE reservation IN (SELECT value FROM json_each(NEW.retarget));
    INSERT INTO targets (device, group_id, reservation, owner)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(NEW.targets);
END;

CREATE TRIGGER batch_groups INSTEAD OF INSERT ON batch WHEN NEW.groups IS NOT NULL
BEGIN
    INSERT OR REPLACE INTO groups (id, record) SELECT value ->> 0, value ->> 1 FROM json_each(NEW.groups);
END;

CREATE TRIGGER batch_groups_gone INSTEAD OF INSERT ON batch WHEN NEW.groups_gone IS NOT NULL
BEGIN
    DELETE FROM groups WHERE id IN (SELECT value FROM json_each(NEW.groups_gone));
END;

CREATE TRIGGER batch_devices INSTEAD OF INSERT ON batch WHEN NEW.devices IS NOT NULL
BEGIN
    INSERT OR REPLACE INTO devices (address, present, record)
    SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(NEW.devices);
END;

CREATE TRIGGER batch_devices_gone INSTEAD OF INSERT ON batch WHEN NEW.devices_gone IS NOT NULL
BEGIN
    DELETE FROM devices WHERE address IN (SELECT value FROM json_each(NEW.devices_gone));
END;

CREATE TRIGGER batch_identities INSTEAD OF INSERT ON batch WHEN NEW.identities IS NOT NULL
BEGIN
    INSERT OR REPLACE INTO identities (address, identity)
    SELECT value ->> 0, value ->> 1 FROM json_each(NEW.identities);
END;

CREATE TRIGGER batch_baselines INSTEAD OF INSERT ON batch
WHEN NEW.baselines IS NOT NULL OR NEW.baselines_gone IS NOT NULL
BEGIN
    INSERT OR IGNORE INTO baselines (address, driver, driver_override, intent_id)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(NEW.baselines);
    DELETE FROM baselines WHERE address IN (SELECT value FROM json_each(NEW.baselines_gone));
END;

CREATE TRIGGER batch_contexts INSTEAD OF INSERT ON batch WHEN NEW.contexts IS NOT NULL
BEGIN
    INSERT OR REPLACE INTO contexts (id, record) SELECT value ->> 0, value ->> 1 FROM json_each(NEW.contexts);
END;

CREATE TRIGGER batch_contexts_gone INSTEAD OF INSERT ON batch WHEN NEW.contexts_gone IS NOT NULL
BEGIN
    DELETE FROM contexts WHERE id IN (SELECT value FROM json_each(NEW.contexts_gone));
END;

CREATE TRIGGER batch_domains INSTEAD OF INSERT ON batch WHEN NEW.domains IS NOT NULL
BEGIN
    INSERT OR REPLACE INTO domains (id, record) SELECT value ->> 0, value ->> 1 FROM json_each(NEW.domains);
END;

CREATE TRIGGER batch_domains_gone INSTEAD OF INSERT ON batch WHEN NEW.domains_gone IS NOT NULL
BEGIN
    DELETE FROM domains WHERE id IN (SELECT value FROM json_each(NEW.domains_gone));
END;

-- An intent can be opened and closed in one batch.
CREATE TRIGGER batch_intents INSTEAD OF INSERT ON batch
WHEN NEW.intents IS NOT NULL OR NEW.intents_closed IS NOT NULL
BEGIN
    INSERT INTO intents (id, reservation, body, boot_id, opened_unix_ms)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(NEW.intents);
    UPDATE intents SET closed_unix_ms = ended.value ->> 1, outcome = ended.value ->> 2
    FROM json_each(NEW.intents_closed) AS ended WHERE intents.id = ended.value ->> 0;
END;

CREATE TRIGGER batch_steps INSTEAD OF INSERT ON batch WHEN NEW.steps IS NOT NULL
BEGIN
    INSERT INTO intent_steps (intent_id, ordinal, step, detail)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3 FROM json_each(NEW.steps);
END;

-- A request can be made and answered in one batch.
CREATE TRIGGER batch_requests INSTEAD OF INSERT ON batch
WHEN NEW.requests IS NOT NULL OR NEW.answers IS NOT NULL
BEGIN
    INSERT INTO request_ids (identity, id, body, created_unix_ms, about, intent_id, answer, refusal)
    SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6, value ->> 7
    FROM json_each(NEW.requests);
    UPDATE request_ids SET answer = ended.value ->> 1, refusal = ended.value ->> 2
    FROM json_each(NEW.answers) AS ended
    WHERE request_ids.intent_id = ended.value ->> 0 AND request_ids.answer IS NULL;
END;

CREATE TRIGGER batch_history INSTEAD OF INSERT ON batch WHEN NEW.history_before_unix_ms IS NOT NULL
BEGIN
    DELETE FROM intents WHERE closed_unix_ms < NEW.history_before_unix_ms;
    DELETE FROM request_ids WHERE created_unix_ms < NEW.history_before_unix_ms;
END;

CREATE TRIGGER batch_meta INSTEAD OF INSERT ON batch WHEN NEW.meta IS NOT NULL
BEGIN
    INSERT OR REPLACE INTO meta (name, value) SELECT value ->> 0, value ->> 1 FROM json_each(NEW.meta);
END;
