-- How much room there is on a drive, as its node last said; NULL: it has not said yet. It always changes and nobody waits for it, so it
-- tells nobody. A node also writes whether it can read a drive (state: active or failed), and that does.
ALTER TABLE drives ADD COLUMN free_bytes bigint;
DROP TRIGGER drives_changed ON drives;
CREATE TRIGGER drives_changed AFTER UPDATE ON drives FOR EACH ROW
    WHEN ((OLD.node_id, OLD.label, OLD.capacity_bytes, OLD.state, OLD.empty)
        IS DISTINCT FROM (NEW.node_id, NEW.label, NEW.capacity_bytes, NEW.state, NEW.empty)) EXECUTE FUNCTION cluster_changed();
