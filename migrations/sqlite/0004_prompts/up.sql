-- By which prompt a language model answered, and whether that came too late; the release before writes neither.
ALTER TABLE insights ADD COLUMN prompt TEXT;
ALTER TABLE insights ADD COLUMN late INTEGER NOT NULL DEFAULT 0;
