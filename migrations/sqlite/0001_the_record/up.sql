-- The record. tenant_id stands first in every key and index; ids are text with their prefix; positions are samples, times UTC.
-- Column types are those that PostgreSQL has too: text, bigint (INTEGER), double precision (REAL), boolean (0/1), json and timestamp (TEXT).

CREATE TABLE conversations (
    tenant_id       TEXT    NOT NULL,
    id              TEXT    NOT NULL,
    external_id     TEXT,
    title           TEXT,
    source          TEXT    NOT NULL,
    language        TEXT    NOT NULL,
    tags            TEXT    NOT NULL,
    state           TEXT    NOT NULL CHECK (state IN ('live', 'complete', 'abandoned')),
    started_at      TEXT    NOT NULL,
    ended_at        TEXT,
    -- The best current customer intent and the latest customer sentiment, kept here so that lists filter by index.
    intent          TEXT,
    intent_score    REAL,
    intent_tier     TEXT,
    sentiment       TEXT,
    sentiment_score REAL,
    sentiment_tier  TEXT,
    created_at      TEXT    NOT NULL,
    updated_at      TEXT    NOT NULL,
    version         INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX conversations_external ON conversations (tenant_id, external_id) WHERE external_id IS NOT NULL;
CREATE INDEX conversations_started ON conversations (tenant_id, started_at, id);
CREATE INDEX conversations_state ON conversations (tenant_id, state, started_at, id);
CREATE INDEX conversations_ended ON conversations (tenant_id, ended_at);
CREATE INDEX conversations_intent ON conversations (tenant_id, intent, started_at, id) WHERE intent IS NOT NULL;
CREATE INDEX conversations_sentiment ON conversations (tenant_id, sentiment, started_at, id) WHERE sentiment IS NOT NULL;

CREATE TABLE conversation_tags (
    tenant_id       TEXT NOT NULL,
    tag             TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    PRIMARY KEY (tenant_id, tag, conversation_id),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations (tenant_id, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX conversation_tags_of ON conversation_tags (tenant_id, conversation_id);

-- Where each channel stands. A commit is a compare-and-swap on (epoch, next_seq, safe_pos).
CREATE TABLE channels (
    tenant_id       TEXT    NOT NULL,
    conversation_id TEXT    NOT NULL,
    channel         INTEGER NOT NULL,
    role            TEXT    NOT NULL,
    encoding        TEXT    NOT NULL,
    rate            INTEGER NOT NULL,
    epoch           INTEGER NOT NULL,
    next_seq        INTEGER NOT NULL,
    safe_pos        INTEGER NOT NULL,
    utterances      INTEGER NOT NULL,
    created_at      TEXT    NOT NULL,
    updated_at      TEXT    NOT NULL,
    version         INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, conversation_id, channel),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations (tenant_id, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Speech and gaps. Silence only moves channels.safe_pos. row_id is what full text refers to, and the order of arrival.
CREATE TABLE segments (
    row_id          INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id       TEXT    NOT NULL,
    conversation_id TEXT    NOT NULL,
    channel         INTEGER NOT NULL,
    epoch           INTEGER NOT NULL,
    seq             INTEGER NOT NULL,
    utterance_id    TEXT    NOT NULL,
    kind            TEXT    NOT NULL CHECK (kind IN ('speech', 'gap')),
    start_pos       INTEGER NOT NULL,
    end_pos         INTEGER NOT NULL CHECK (end_pos > start_pos),
    start_ms        INTEGER NOT NULL,
    end_ms          INTEGER NOT NULL,
    text            TEXT    NOT NULL,
    words           TEXT    NOT NULL,
    confidence      REAL    NOT NULL,
    speech_final    INTEGER NOT NULL,
    word_times      TEXT    NOT NULL,
    model           TEXT    NOT NULL,
    decode_ms       INTEGER NOT NULL,
    reason          TEXT,
    trace_id        TEXT    NOT NULL,
    created_at      TEXT    NOT NULL,
    FOREIGN KEY (tenant_id, conversation_id, channel) REFERENCES channels (tenant_id, conversation_id, channel) ON DELETE CASCADE
) STRICT;
CREATE UNIQUE INDEX segments_place ON segments (tenant_id, conversation_id, channel, seq);
CREATE UNIQUE INDEX segments_utterance ON segments (tenant_id, utterance_id);
CREATE UNIQUE INDEX segments_time ON segments (tenant_id, conversation_id, start_ms, channel, seq);

CREATE VIRTUAL TABLE segments_fts USING fts5 (
    text, content = 'segments', content_rowid = 'row_id', tokenize = 'porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER segments_fts_insert AFTER INSERT ON segments WHEN new.kind = 'speech' BEGIN
    INSERT INTO segments_fts (rowid, text) VALUES (new.row_id, new.text);
END;
CREATE TRIGGER segments_fts_delete AFTER DELETE ON segments WHEN old.kind = 'speech' BEGIN
    INSERT INTO segments_fts (segments_fts, rowid, text) VALUES ('delete', old.row_id, old.text);
END;
CREATE TRIGGER segments_fts_update AFTER UPDATE OF text ON segments WHEN old.kind = 'speech' BEGIN
    INSERT INTO segments_fts (segments_fts, rowid, text) VALUES ('delete', old.row_id, old.text);
    INSERT INTO segments_fts (rowid, text) VALUES (new.row_id, new.text);
END;

-- One run of an analysis: same configuration, same trigger. Never changed.
CREATE TABLE analysis_runs (
    tenant_id       TEXT NOT NULL,
    id              TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    task            TEXT NOT NULL,
    trigger         TEXT NOT NULL,
    model           TEXT NOT NULL,
    config_hash     TEXT NOT NULL,
    created_at      TEXT NOT NULL,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations (tenant_id, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX analysis_runs_of ON analysis_runs (tenant_id, conversation_id, id);

-- What an analysis said. The only column that ever changes is superseded_by, from null to the insight that took its place.
CREATE TABLE insights (
    tenant_id       TEXT    NOT NULL,
    id              TEXT    NOT NULL,
    run_id          TEXT    NOT NULL,
    conversation_id TEXT    NOT NULL,
    utterance_id    TEXT    NOT NULL,
    task            TEXT    NOT NULL,
    -- The speaker's role and the utterance's start when it was recorded; null while the utterance is unknown.
    role            TEXT,
    start_ms        INTEGER,
    -- The best label, null when it abstained.
    label           TEXT,
    score           REAL,
    labels          TEXT    NOT NULL,
    abstained       TEXT,
    evidence        TEXT    NOT NULL,
    tier            TEXT    NOT NULL,
    model           TEXT    NOT NULL,
    degraded_from   TEXT,
    config_hash     TEXT    NOT NULL,
    latency_ms      INTEGER NOT NULL,
    superseded_by   TEXT,
    created_at      TEXT    NOT NULL,
    PRIMARY KEY (tenant_id, id),
    FOREIGN KEY (tenant_id, run_id) REFERENCES analysis_runs (tenant_id, id) ON DELETE CASCADE,
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations (tenant_id, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX insights_of ON insights (tenant_id, conversation_id, created_at, id);
CREATE INDEX insights_run ON insights (tenant_id, run_id);
CREATE INDEX insights_superseded ON insights (tenant_id, superseded_by) WHERE superseded_by IS NOT NULL;
-- At most one current insight per utterance and task.
CREATE UNIQUE INDEX insights_current ON insights (tenant_id, utterance_id, task) WHERE superseded_by IS NULL;

-- What must still be announced, written in the transaction of what it announces. (kind, subject) tells a repeated one.
CREATE TABLE outbox (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant_id       TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    kind            TEXT NOT NULL,
    subject         TEXT NOT NULL,
    created_at      TEXT NOT NULL
) STRICT;

-- Small facts about the database itself, such as how far the outbox has been announced.
CREATE TABLE bookkeeping (
    tenant_id  TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    value      INTEGER NOT NULL,
    updated_at TEXT    NOT NULL,
    PRIMARY KEY (tenant_id, name)
) STRICT, WITHOUT ROWID;
