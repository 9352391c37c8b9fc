-- Entries of the bus that nobody could work on, whole, with why. The id follows from stream, key and payload: given up twice is one row.
CREATE TABLE dead_letters (
    tenant_id   TEXT    NOT NULL,
    id          TEXT    NOT NULL,
    stream      TEXT    NOT NULL,
    entry_key   TEXT    NOT NULL,
    payload     BLOB    NOT NULL,
    error       TEXT    NOT NULL,
    attempts    INTEGER NOT NULL,
    trace       TEXT    NOT NULL,
    version     TEXT    NOT NULL,
    died_at     TEXT    NOT NULL,
    replayed_at TEXT,
    PRIMARY KEY (tenant_id, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX dead_letters_died ON dead_letters (tenant_id, died_at, id);
