-- By which prompt a language model answered, and whether that came too late; the release before writes neither.
SET LOCAL lock_timeout = '5s';
ALTER TABLE insights ADD COLUMN prompt text;
ALTER TABLE insights ADD COLUMN late boolean NOT NULL DEFAULT false;
