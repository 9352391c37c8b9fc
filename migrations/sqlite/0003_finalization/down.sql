DROP TABLE results;
DROP TABLE finalize;
ALTER TABLE channels DROP COLUMN closed_pos;
ALTER TABLE conversations DROP COLUMN finalization;
