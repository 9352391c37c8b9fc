ALTER TABLE insights DROP COLUMN late;
ALTER TABLE insights DROP COLUMN prompt;
