-- What was on record when a later release took over.
CREATE TABLE next_release (
    reservation TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

INSERT INTO next_release (reservation) SELECT id FROM reservations;
