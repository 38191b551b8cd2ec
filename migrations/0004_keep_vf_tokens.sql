-- The secret that opens the virtual functions of a physical one on a VFIO driver. It goes where
-- descriptors go and nowhere else: no record, event or answer of the API has it.
CREATE TABLE vf_tokens (
    address TEXT PRIMARY KEY,   -- of the physical function; goes when the device does
    token   TEXT NOT NULL       -- a UUID
) STRICT, WITHOUT ROWID;
