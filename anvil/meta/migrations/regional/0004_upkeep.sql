-- What upkeep asks all the time: whether a blob waits in the outbox, and which debts can be tried now.

-- A sweep must leave alone what the outbox keeps until its grace is over.
CREATE INDEX outbox_blob ON outbox (blob_id);

-- corrupt: those bits of `missing` whose shard was met with wrong content (the others were not met at all). due_us: not to be tried
-- before, so that debts that cannot be paid now do not stand in the way of those that can.
ALTER TABLE degraded ADD COLUMN corrupt int NOT NULL DEFAULT 0, ADD COLUMN due_us bigint NOT NULL DEFAULT 0;
DROP INDEX degraded_since;
CREATE INDEX degraded_due ON degraded (due_us, since_us);
