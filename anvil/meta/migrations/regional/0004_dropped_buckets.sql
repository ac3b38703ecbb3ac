-- Whoever creates a bucket adds its fence some time after he claimed its name, and may be arbitrarily late: another process may have
-- finished the creation for him, and the bucket may be deleted again by then. A fence that came back would let through commits of workers
-- that still remember the bucket, into a bucket that nobody can name. So an id that was dropped is remembered (bucket ids are random and
-- never given twice). The two functions exclude each other by an advisory lock: each statement after it sees what the other committed.

CREATE TABLE dropped_buckets (
    bucket_id bigint PRIMARY KEY,
    dropped_us bigint NOT NULL DEFAULT now_us()
);
CREATE INDEX dropped_buckets_since ON dropped_buckets (dropped_us);

-- False if the bucket was dropped: then there is no fence and never will be. Idempotent.
CREATE FUNCTION add_bucket(p_bucket bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(p_bucket);
    PERFORM FROM dropped_buckets d WHERE d.bucket_id = p_bucket;
    IF FOUND THEN RETURN false; END IF;
    INSERT INTO buckets (bucket_id) VALUES (p_bucket) ON CONFLICT DO NOTHING;
    RETURN true;
END $$;

-- As before, and remembers it.
CREATE OR REPLACE FUNCTION drop_bucket(p_bucket bigint) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(p_bucket);
    PERFORM FROM buckets b WHERE b.bucket_id = p_bucket FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO dropped_buckets (bucket_id) VALUES (p_bucket) ON CONFLICT DO NOTHING;
        RETURN 'gone';
    END IF;
    PERFORM FROM objects o WHERE o.bucket_id = p_bucket LIMIT 1;
    IF FOUND THEN RETURN 'not_empty'; END IF;
    PERFORM FROM versions v WHERE v.bucket_id = p_bucket LIMIT 1;
    IF FOUND THEN RETURN 'not_empty'; END IF;
    DELETE FROM uploads u WHERE u.bucket_id = p_bucket;
    DELETE FROM buckets b WHERE b.bucket_id = p_bucket;
    INSERT INTO dropped_buckets (bucket_id) VALUES (p_bucket) ON CONFLICT DO NOTHING;
    RETURN 'done';
END $$;
