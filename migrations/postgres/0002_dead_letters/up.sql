-- Entries of the bus that nobody could work on, whole, with why. The id follows from stream, key and payload: given up twice is one row.
SET LOCAL lock_timeout = '5s';

CREATE TABLE dead_letters (
    tenant_id   text COLLATE "C" NOT NULL,
    id          text COLLATE "C" NOT NULL,
    stream      text             NOT NULL,
    entry_key   text             NOT NULL,
    payload     bytea            NOT NULL,
    error       text             NOT NULL,
    attempts    bigint           NOT NULL,
    trace       text             NOT NULL,
    version     text             NOT NULL,
    died_at     timestamp        NOT NULL,
    replayed_at timestamp,
    PRIMARY KEY (tenant_id, id)
);
CREATE INDEX dead_letters_died ON dead_letters (tenant_id, died_at, id);
