-- Garbage and debts by slice: the leading 6 bits of the blob id (LAYOUT_SLICES), so that several nodes can work side by side without
-- meeting, each on the oldest of its own. The expression is part of the statements in meta/collect.py.
CREATE INDEX outbox_slice ON outbox ((get_byte(blob_id, 0) >> 2), outbox_id);
CREATE INDEX degraded_slice ON degraded ((get_byte(blob_id, 0) >> 2), due_us, since_us);
