SET LOCAL lock_timeout = '5s';
ALTER TABLE insights DROP COLUMN late;
ALTER TABLE insights DROP COLUMN prompt;
