-- The layout version under which a drive was found empty, or not. The finding is worth nothing under a later one: the drive may have been
-- in use in between (every drive is empty, and named by no layout, while its node joins).
ALTER TABLE drives ADD COLUMN empty_at bigint;
DROP TRIGGER drives_changed ON drives;
CREATE TRIGGER drives_changed AFTER UPDATE ON drives FOR EACH ROW
    WHEN ((OLD.node_id, OLD.label, OLD.capacity_bytes, OLD.state, OLD.empty, OLD.empty_at)
        IS DISTINCT FROM (NEW.node_id, NEW.label, NEW.capacity_bytes, NEW.state, NEW.empty, NEW.empty_at)) EXECUTE FUNCTION cluster_changed();
