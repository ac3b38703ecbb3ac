-- Several nodes: who is removed, since when a state holds, what a change of layout still has to move, and who is told of changes.

-- A lease renewal changes no column that is indexed, and finds room on its page: it stays a HOT update. There is to be no index on
-- lease_until (a region has 64 nodes).
ALTER TABLE nodes DROP CONSTRAINT nodes_state_check;
ALTER TABLE nodes ADD CONSTRAINT nodes_state_check CHECK (state IN ('joining', 'active', 'draining', 'down', 'removed'));
ALTER TABLE nodes ADD COLUMN since_us bigint NOT NULL DEFAULT now_us();
ALTER TABLE nodes SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- current: writers use it. old: readers probe it, movers take from it. retired: nothing is where only it says.
ALTER TABLE layouts ADD COLUMN since_us bigint NOT NULL DEFAULT now_us();
UPDATE layouts SET state = 'retired'
    WHERE state <> 'current' AND version < (SELECT max(version) FROM layouts WHERE state = 'old');
ALTER TABLE layouts DROP CONSTRAINT layouts_state_check;
ALTER TABLE layouts ADD CONSTRAINT layouts_state_check CHECK (state IN ('current', 'old', 'retired'));
CREATE UNIQUE INDEX layouts_current ON layouts (state) WHERE state = 'current';

-- What has to be moved and verified before the predecessor of that layout is retired: LAYOUT_SLICES rows, inserted with it.
CREATE TABLE layout_slices (
    version bigint NOT NULL REFERENCES layouts,
    slice int NOT NULL CHECK (slice >= 0),
    done_us bigint,
    shards bigint NOT NULL DEFAULT 0,  -- moved so far
    bytes bigint NOT NULL DEFAULT 0,
    updated_us bigint NOT NULL DEFAULT now_us(),
    PRIMARY KEY (version, slice)
) WITH (fillfactor = 50);
INSERT INTO layout_slices (version, slice)
    SELECT version, n FROM layouts, generate_series(0, 63) AS n
    WHERE state = 'current' AND EXISTS (SELECT FROM layouts WHERE state = 'old');

-- Notifications take a lock of the whole server at commit, so what happens every few seconds (leases) sends none: the conditions are
-- evaluated before anything is queued.
CREATE FUNCTION cluster_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NOTIFY anvil_cluster;
    RETURN NULL;
END $$;

CREATE TRIGGER nodes_come_or_go AFTER INSERT OR DELETE ON nodes FOR EACH ROW EXECUTE FUNCTION cluster_changed();
CREATE TRIGGER nodes_changed AFTER UPDATE ON nodes FOR EACH ROW
    WHEN ((OLD.state, OLD.address, OLD.zone) IS DISTINCT FROM (NEW.state, NEW.address, NEW.zone)) EXECUTE FUNCTION cluster_changed();
CREATE TRIGGER drives_come_or_go AFTER INSERT OR DELETE ON drives FOR EACH ROW EXECUTE FUNCTION cluster_changed();
CREATE TRIGGER drives_changed AFTER UPDATE ON drives FOR EACH ROW
    WHEN (OLD.* IS DISTINCT FROM NEW.*) EXECUTE FUNCTION cluster_changed();
CREATE TRIGGER layouts_come_or_go AFTER INSERT OR DELETE ON layouts FOR EACH ROW EXECUTE FUNCTION cluster_changed();
CREATE TRIGGER layouts_changed AFTER UPDATE ON layouts FOR EACH ROW
    WHEN (OLD.state <> NEW.state) EXECUTE FUNCTION cluster_changed();

-- Open a writer session, unless the layout its process goes by is older than the current one: then false. 0: the process has read none
-- yet, and will read the current one or a later. What is recorded is never older than the current one. The row of the current layout is
-- held until this commits, so a change of layout either waits for it, and whoever counts sessions after the change counts this one; or
-- it is seen here.
CREATE FUNCTION open_session(p_session bytea, p_node bytea, p_worker int, p_layout bigint, p_lease interval) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE v_current bigint;
BEGIN
    LOOP
        SELECT l.version INTO v_current FROM layouts l WHERE l.state = 'current' FOR SHARE;
        EXIT WHEN FOUND;
        -- There is none yet; or another took its place while this waited for its row, which the next statement sees.
        IF NOT EXISTS (SELECT FROM layouts) THEN v_current := 0; EXIT; END IF;
    END LOOP;
    IF p_layout > 0 AND p_layout < v_current THEN RETURN false; END IF;
    INSERT INTO writer_sessions (session_id, node_id, worker, layout_version, lease_until)
    VALUES (p_session, p_node, p_worker, greatest(p_layout, v_current), clock_timestamp() + p_lease)
    ON CONFLICT (session_id) DO NOTHING;
    RETURN true;
END $$;
