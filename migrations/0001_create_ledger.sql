-- The ledger: who may do DMA through every IOMMU group, and how that came to be.
--
-- Each record table holds one JSON document per record, as the ownership state machine has it
-- (`record`), and shows its axes as generated columns: they cost nothing to write and can't differ
-- from the document. Times are milliseconds since 1970-01-01 UTC (`*_unix_ms`) or CLOCK_BOOTTIME
-- of one boot (`*_boot_ms`).

-- What is true of the whole store.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,     -- 'epoch_floor', 'boot_id', 'last_seq', 'last_intent'
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- IOMMU groups, by stable id. The kernel's number isn't stable, so it isn't recorded.
CREATE TABLE groups (
    id     TEXT PRIMARY KEY,    -- 'g-' and 12 hex digits of a hash of the member addresses
    record TEXT NOT NULL CHECK (json_valid(record)),
    epoch  INTEGER GENERATED ALWAYS AS (record ->> '$.epoch') VIRTUAL,          -- highest ever given
    ownership TEXT GENERATED ALWAYS AS (record ->> '$.ownership.kind') VIRTUAL, -- first axis
    condition TEXT GENERATED ALWAYS AS (record ->> '$.condition') VIRTUAL       -- third axis
) STRICT, WITHOUT ROWID;

-- Devices: identity, what the host said of them last, what stands against them.
CREATE TABLE devices (
    address TEXT PRIMARY KEY,   -- '0000:65:00.0'
    present INTEGER NOT NULL CHECK (present IN (0, 1)), -- 0: gone, but something stands against it
    record  TEXT NOT NULL CHECK (json_valid(record)),
    group_id   TEXT GENERATED ALWAYS AS (record ->> '$.group') VIRTUAL,
    marks      TEXT GENERATED ALWAYS AS (record ->> '$.marks') VIRTUAL,      -- condition -> reason
    only_label TEXT GENERATED ALWAYS AS (record ->> '$.only_label') VIRTUAL  -- not reset since
) STRICT, WITHOUT ROWID;

-- Vendor, device, subsystem and serial of a device, re-checked when its address is seen again.
CREATE TABLE identities (
    address TEXT PRIMARY KEY,
    identity TEXT NOT NULL      -- 'vendor:device:subvendor:subdevice:class:serial'
) STRICT, WITHOUT ROWID;

-- Driver and override that a device had before it was first touched.
CREATE TABLE baselines (
    address         TEXT PRIMARY KEY,
    driver          TEXT,       -- NULL: it had none
    driver_override TEXT,       -- NULL: it was unset
    intent_id       INTEGER NOT NULL  -- the intent under which it was touched
) STRICT, WITHOUT ROWID;

-- Contexts: one iommufd or container each, one owner token, one label.
CREATE TABLE contexts (
    id     TEXT PRIMARY KEY,    -- 'c-…'
    record TEXT NOT NULL CHECK (json_valid(record)),
    label   TEXT GENERATED ALWAYS AS (record ->> '$.label') VIRTUAL,
    policy  TEXT GENERATED ALWAYS AS (record ->> '$.policy') VIRTUAL,
    backend TEXT GENERATED ALWAYS AS (record ->> '$.backend') VIRTUAL
) STRICT, WITHOUT ROWID;

-- Domains: one I/O address space in a context each.
CREATE TABLE domains (
    id     TEXT PRIMARY KEY,    -- 'd-…'
    record TEXT NOT NULL CHECK (json_valid(record)),
    context TEXT GENERATED ALWAYS AS (record ->> '$.context') VIRTUAL,
    label   TEXT GENERATED ALWAYS AS (record ->> '$.label') VIRTUAL
) STRICT, WITHOUT ROWID;

-- Reservations: durable promises of groups to holders.
CREATE TABLE reservations (
    id     TEXT PRIMARY KEY,    -- 'r-' and 12 hex digits
    record TEXT NOT NULL CHECK (json_valid(record)),
    extra  TEXT NOT NULL CHECK (json_valid(extra)), -- last failure; how devices were given back
    holder       TEXT GENERATED ALWAYS AS (record ->> '$.holder') VIRTUAL,
    requester    TEXT GENERATED ALWAYS AS (record ->> '$.requester') VIRTUAL,    -- who asked
    for_identity TEXT GENERATED ALWAYS AS (record ->> '$.for_identity') VIRTUAL, -- who may fetch
    label        TEXT GENERATED ALWAYS AS (record ->> '$.label') VIRTUAL,
    policy       TEXT GENERATED ALWAYS AS (record ->> '$.policy') VIRTUAL,
    delivery     TEXT GENERATED ALWAYS AS (record ->> '$.delivery') VIRTUAL,
    backend      TEXT GENERATED ALWAYS AS (record ->> '$.backend') VIRTUAL,
    state        TEXT GENERATED ALWAYS AS (record ->> '$.state') VIRTUAL,        -- second axis
    epoch        INTEGER GENERATED ALWAYS AS (record ->> '$.epoch') VIRTUAL,     -- fencing number
    context      TEXT GENERATED ALWAYS AS (record ->> '$.context') VIRTUAL,
    domain       TEXT GENERATED ALWAYS AS (record ->> '$.domain') VIRTUAL,
    token        TEXT GENERATED ALWAYS AS (record ->> '$.token') VIRTUAL,
    claims       INTEGER GENERATED ALWAYS AS (record ->> '$.claims') VIRTUAL,
    pending      TEXT GENERATED ALWAYS AS (record ->> '$.pending.kind') VIRTUAL,
    hold         TEXT GENERATED ALWAYS AS (record ->> '$.hold') VIRTUAL,
    memory_bytes INTEGER GENERATED ALWAYS AS (record ->> '$.memory_bytes') VIRTUAL,
    ttl_ms       INTEGER GENERATED ALWAYS AS (record ->> '$.ttl_ms') VIRTUAL,
    expires_boot_ms INTEGER GENERATED ALWAYS AS (record ->> '$.expires.boot_ms') VIRTUAL,
    expires_boot_id TEXT GENERATED ALWAYS AS (record ->> '$.expires.boot_id') VIRTUAL,
    reset_policy TEXT GENERATED ALWAYS AS (record ->> '$.reset_policy') VIRTUAL
) STRICT, WITHOUT ROWID;

-- The devices that living reservations have. A device has one reservation at most, and all
-- reservations of a group have one owner: the store refuses a second one by itself.
CREATE TABLE targets (
    device      TEXT PRIMARY KEY,
    group_id    TEXT NOT NULL,
    reservation TEXT NOT NULL,
    owner       TEXT NOT NULL   -- exclusive: the reservation; shared: the domain; group: the token
) STRICT, WITHOUT ROWID;
CREATE INDEX targets_by_group ON targets (group_id);
CREATE INDEX targets_by_reservation ON targets (reservation);
CREATE TRIGGER targets_one_owner BEFORE INSERT ON targets
WHEN EXISTS (SELECT 1 FROM targets WHERE group_id = NEW.group_id AND owner <> NEW.owner)
BEGIN
    SELECT RAISE(ABORT, 'a group would get a second owner');
END;

-- Claims: the devices of reservations that are attached or handed over.
CREATE VIEW claims AS
SELECT targets.device, targets.group_id, targets.reservation, reservations.domain
FROM targets JOIN reservations ON reservations.id = targets.reservation
WHERE reservations.claims > 0;

-- Every change, one row each. `seq` has no gaps; old rows go by retention.
CREATE TABLE events (
    seq         INTEGER PRIMARY KEY,
    time_unix_ms INTEGER NOT NULL,
    boot_id     TEXT NOT NULL,
    actor       TEXT NOT NULL,  -- 'uid:0', 'berthd'
    cause       TEXT NOT NULL,  -- the call's name, 'reconcile', 'expiry', 'uevent'
    request_id  TEXT NOT NULL,  -- '' for none
    kind        TEXT NOT NULL,  -- 'reservation.created'
    groups      TEXT NOT NULL CHECK (json_valid(groups)),  -- stable ids
    devices     TEXT NOT NULL CHECK (json_valid(devices)), -- addresses
    reservation TEXT NOT NULL,  -- '' for none
    before      TEXT CHECK (before IS NULL OR json_valid(before)), -- the object before, proto3 JSON
    after       TEXT CHECK (after IS NULL OR json_valid(after))    -- and after
) STRICT;

-- Kernel work: recorded before it begins, with its outcome once it ended.
CREATE TABLE intents (
    id          INTEGER PRIMARY KEY,
    reservation TEXT,           -- NULL for kernel DMA of a device
    body        TEXT NOT NULL CHECK (json_valid(body)), -- kind and what to do
    boot_id     TEXT NOT NULL,
    opened_unix_ms INTEGER NOT NULL,
    closed_unix_ms INTEGER,     -- NULL: no outcome yet
    outcome     TEXT,           -- 'done', 'superseded' or why it failed
    kind        TEXT GENERATED ALWAYS AS (body ->> '$.kind') VIRTUAL
) STRICT;
CREATE INDEX intents_open ON intents (id) WHERE closed_unix_ms IS NULL;

-- Steps within an intent, noted before what can't be undone by forgetting it.
CREATE TABLE intent_steps (
    intent_id INTEGER NOT NULL,
    ordinal   INTEGER NOT NULL, -- 0, 1, 2, …
    step      TEXT NOT NULL,    -- 'hold dropped', 'unbind'
    detail    TEXT NOT NULL,
    PRIMARY KEY (intent_id, ordinal)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER intents_take_their_steps AFTER DELETE ON intents
BEGIN
    DELETE FROM intent_steps WHERE intent_id = OLD.id;
END;

-- Request ids of the last 24 hours with the answers that were given. A refusal that changed
-- nothing isn't among them: it is remembered as long as the daemon runs.
CREATE TABLE request_ids (
    identity  TEXT NOT NULL,    -- who asked
    id        TEXT NOT NULL,
    body      TEXT NOT NULL,    -- hash of the call's name and body, hex
    created_unix_ms INTEGER NOT NULL,
    about     TEXT NOT NULL CHECK (json_valid(about)), -- what the answer is about
    intent_id INTEGER,          -- the kernel work that the answer waits for
    answer    TEXT,             -- proto3 JSON; NULL while the work goes on
    refusal   TEXT,             -- why the work failed
    PRIMARY KEY (identity, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX request_ids_by_time ON request_ids (created_unix_ms);
CREATE INDEX request_ids_by_intent ON request_ids (intent_id) WHERE answer IS NULL;
