-- How a conversation is finished after its last word, as in migrations/sqlite. A release before this one leaves these columns null and makes
-- no rows.
SET LOCAL lock_timeout = '5s';

-- closing, scoring, done, degraded; null while it is live, and of those that were closed before this step.
ALTER TABLE conversations ADD COLUMN finalization text COLLATE "C";
-- Nothing beyond this is taken any more; null while the conversation is live.
ALTER TABLE channels ADD COLUMN closed_pos bigint;

-- One row per step. It is due at next_at, which is null once it is over, outcome says how. fence rises with every claim, whoever claimed it before
-- changes nothing any more. input_hash says on what state of the conversation the steps work, payload what a step needs from the one before.
CREATE TABLE finalize (
    tenant_id       text COLLATE "C" NOT NULL,
    conversation_id text COLLATE "C" NOT NULL,
    step            text COLLATE "C" NOT NULL CHECK (step IN ('drain', 'score', 'publish', 'notify', 'retain', 'upgrade')),
    attempt         bigint           NOT NULL,
    next_at         timestamp,
    fence           bigint           NOT NULL,
    input_hash      text             NOT NULL,
    payload         json             NOT NULL,
    outcome         text COLLATE "C",
    created_at      timestamp        NOT NULL,
    updated_at      timestamp        NOT NULL,
    PRIMARY KEY (tenant_id, conversation_id, step),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations (tenant_id, id) ON DELETE CASCADE
);
-- Of all tenants: whoever looks for work looks for everybody's.
CREATE INDEX finalize_due ON finalize (next_at) WHERE next_at IS NOT NULL;

-- What a conversation came to. A better one takes its place by compare-and-swap on version.
CREATE TABLE results (
    tenant_id       text COLLATE "C" NOT NULL,
    conversation_id text COLLATE "C" NOT NULL,
    version         bigint           NOT NULL,
    quality         text COLLATE "C" NOT NULL CHECK (quality IN ('full', 'degraded')),
    summary         json             NOT NULL,
    input_hash      text             NOT NULL,
    created_at      timestamp        NOT NULL,
    updated_at      timestamp        NOT NULL,
    PRIMARY KEY (tenant_id, conversation_id),
    FOREIGN KEY (tenant_id, conversation_id) REFERENCES conversations (tenant_id, id) ON DELETE CASCADE
);
