SET LOCAL lock_timeout = '5s';
DROP TABLE results;
DROP TABLE finalize;
ALTER TABLE channels DROP COLUMN closed_pos;
ALTER TABLE conversations DROP COLUMN finalization;
