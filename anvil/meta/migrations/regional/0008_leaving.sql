-- Whether a drive that no layout names any more still holds anything that is owned, as its node last found it; NULL: not looked at since the
-- node started. A node that was drained goes only when its drives are empty.
ALTER TABLE drives ADD COLUMN empty boolean;
