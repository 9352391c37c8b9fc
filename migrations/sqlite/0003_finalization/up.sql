-- How a conversation is finished after its last word. A release before this one leaves these columns null and makes no rows.

-- closing, scoring, done, degraded; null while it is live, and of those that were closed before this step.
ALTER TABLE conversations ADD COLUMN finalization TEXT;
-- Nothing beyond this is taken any more; null while the conversation is live.
ALTER TABLE channels ADD COLUMN closed_pos INTEGER;

-- One row per step. It is due at next_at, which is null once it is over, outcome says how. fence rises with every claim, whoever claimed it before
-- changes nothing any more. input_hash says on what state of the conversation the steps work, payload what a step needs from the one before.
CREATE TABLE finalize (
    tenant_id       TEXT    NOT NULL,
    conversation_id TEXT    NOT NULL,
    step            TEXT    NOT NULL CHECK (step IN ('drain', 'score', 'publish', 'notify', 'retain', 'upgrade')),
    attempt         INTEGER NOT NULL,
    next_at         TEXT,
    fence           INTEGER NOT NULL,
    input_hash      TEXT    NOT NULL,
    payload         TEXT    NOT NULL,
    outcome         TEXT,
    created_at      TEXT    NOT NULL,
    updated_at      TEXT    NOT NULL,
    PRIMARY KEY (tenant_id, conversation_id, step),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations (tenant_id, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
-- Of all tenants: whoever looks for work looks for everybody's.
CREATE INDEX finalize_due ON finalize (next_at) WHERE next_at IS NOT NULL;

-- What a conversation came to. A better one takes its place by compare-and-swap on version.
CREATE TABLE results (
    tenant_id       TEXT    NOT NULL,
    conversation_id TEXT    NOT NULL,
    version         INTEGER NOT NULL,
    quality         TEXT    NOT NULL CHECK (quality IN ('full', 'degraded')),
    summary         TEXT    NOT NULL,
    input_hash      TEXT    NOT NULL,
    created_at      TEXT    NOT NULL,
    updated_at      TEXT    NOT NULL,
    PRIMARY KEY (tenant_id, conversation_id),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations (tenant_id, id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
