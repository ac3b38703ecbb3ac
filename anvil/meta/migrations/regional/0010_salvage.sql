-- Salvage: a region rebuilt from a dump of its metadata and from what its drives hold.

-- Sessions that are over. Nothing was committed under one after its row went, so of a blob that a dump does not name, and that was written
-- under one which was over before the dump, it is certain that it was deleted or never committed. Kept for ENDED_SESSIONS_KEEP_S.
CREATE TABLE ended_sessions (
    session_id bytea PRIMARY KEY CHECK (octet_length(session_id) = 16),
    ended_us bigint NOT NULL DEFAULT now_us()
);
CREATE FUNCTION sessions_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ended_sessions (session_id) SELECT session_id FROM old_rows ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER sessions_ended AFTER DELETE ON writer_sessions REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION sessions_ended();

-- What the drives hold and no row names, though it may have been committed after the dump: hidden until an operator accepts it. `missing`:
-- bit i = no drive has shard i; `readable`: there are k others.
CREATE TABLE salvage (
    blob_id bytea PRIMARY KEY CHECK (octet_length(blob_id) = 16),
    bucket_id bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    version_id bytea NOT NULL,
    part_number int NOT NULL,
    size bigint NOT NULL,
    scheme int NOT NULL,
    stripe_bytes int NOT NULL,
    key_mode smallint NOT NULL,
    etag text NOT NULL,
    modified_us bigint NOT NULL,
    attributes jsonb NOT NULL,
    checksum bytea,
    missing int NOT NULL,
    readable boolean NOT NULL
);
CREATE INDEX salvage_owner ON salvage (bucket_id, key, modified_us DESC, blob_id);

-- What stands in the way of accepting it, or ''. older: the row that is there was written later.
CREATE FUNCTION salvage_obstacle(s salvage) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN NOT s.readable THEN 'shards missing'
        WHEN (SELECT true FROM buckets b WHERE b.bucket_id = s.bucket_id) IS NULL THEN 'no bucket'
        WHEN s.part_number = 0 THEN CASE
            WHEN (SELECT true FROM objects o WHERE o.bucket_id = s.bucket_id AND o.key = s.key
                AND o.modified_us > s.modified_us AND o.version_id <> s.version_id)
            THEN 'older' ELSE '' END
        ELSE coalesce((
            SELECT CASE
                WHEN u.key <> s.key THEN 'no upload'
                WHEN p.number IS NULL THEN CASE WHEN u.version_id IS NULL THEN '' ELSE 'no upload' END
                WHEN u.version_id IS NOT NULL THEN CASE WHEN p.etag = s.etag AND p.size = s.size THEN '' ELSE 'older' END
                WHEN p.modified_us > s.modified_us THEN 'older' ELSE '' END
            FROM uploads u LEFT JOIN LATERAL (
                SELECT * FROM parts x WHERE x.bucket_id = u.bucket_id AND x.upload_id = u.upload_id AND x.number = s.part_number
            ) AS p ON true
            WHERE u.bucket_id = s.bucket_id AND u.upload_id = s.version_id), 'no upload') END
$$;

-- Make these visible: of several of one key the latest, in place of an older row. One row for each that is none any more (obstacle '': it
-- is visible; 'older': a later one of the same key was taken) or that stays (what stands in its way). May be repeated.
CREATE FUNCTION salvage_accept(p_blobs bytea[]) RETURNS TABLE (accepted_id bytea, obstacle text) LANGUAGE plpgsql AS $$
DECLARE s salvage;
BEGIN
    PERFORM FROM buckets b WHERE b.bucket_id IN (SELECT c.bucket_id FROM salvage c WHERE c.blob_id = ANY (p_blobs))
        ORDER BY b.bucket_id FOR KEY SHARE;
    FOR s IN SELECT c.* FROM salvage c WHERE c.blob_id = ANY (p_blobs)
        ORDER BY c.bucket_id, c.key, c.part_number, c.modified_us DESC, c.blob_id
    LOOP
        PERFORM FROM salvage c WHERE c.blob_id = s.blob_id FOR UPDATE;
        CONTINUE WHEN NOT FOUND;
        IF s.part_number > 0 THEN
            PERFORM FROM uploads u WHERE u.bucket_id = s.bucket_id AND u.upload_id = s.version_id FOR UPDATE;
        END IF;
        accepted_id := s.blob_id; obstacle := salvage_obstacle(s);
        IF obstacle = '' AND s.part_number = 0 THEN
            INSERT INTO objects AS o (bucket_id, key, version_id, size, etag, modified_us, attributes, checksum, blob_id, scheme,
                stripe_bytes, key_mode)
            VALUES (s.bucket_id, s.key, s.version_id, s.size, s.etag, s.modified_us, s.attributes, s.checksum, s.blob_id, s.scheme,
                s.stripe_bytes, s.key_mode)
            ON CONFLICT (bucket_id, key) DO UPDATE SET
                version_id = EXCLUDED.version_id, is_null = true, seq = nextval('version_seq'), size = EXCLUDED.size,
                etag = EXCLUDED.etag,
                -- The same version in another blob (a raised scheme) changes nothing but where the bytes are.
                modified_us = CASE o.version_id WHEN EXCLUDED.version_id THEN o.modified_us ELSE EXCLUDED.modified_us END,
                attributes = CASE o.version_id WHEN EXCLUDED.version_id THEN o.attributes ELSE EXCLUDED.attributes END,
                checksum = EXCLUDED.checksum, blob_id = EXCLUDED.blob_id, scheme = EXCLUDED.scheme,
                stripe_bytes = EXCLUDED.stripe_bytes, key_mode = EXCLUDED.key_mode, inline = NULL, upload_id = NULL, part_count = 0
            WHERE o.modified_us <= EXCLUDED.modified_us OR o.version_id = EXCLUDED.version_id;
            IF NOT FOUND THEN obstacle := 'older'; END IF;
        ELSIF obstacle = '' THEN
            INSERT INTO parts AS p (bucket_id, upload_id, number, size, etag, modified_us, checksum, blob_id, scheme, stripe_bytes, key_mode)
            VALUES (s.bucket_id, s.version_id, s.part_number, s.size, s.etag, s.modified_us, s.checksum, s.blob_id, s.scheme,
                s.stripe_bytes, s.key_mode)
            ON CONFLICT (bucket_id, upload_id, number) DO UPDATE SET
                size = EXCLUDED.size, etag = EXCLUDED.etag, modified_us = EXCLUDED.modified_us, checksum = EXCLUDED.checksum,
                blob_id = EXCLUDED.blob_id, scheme = EXCLUDED.scheme, stripe_bytes = EXCLUDED.stripe_bytes,
                key_mode = EXCLUDED.key_mode, inline = NULL;
        END IF;
        IF obstacle = '' THEN
            INSERT INTO degraded (blob_id, bucket_id, key, version_id, part_number, size, scheme, stripe_bytes, key_mode, missing)
            SELECT s.blob_id, s.bucket_id, CASE s.part_number WHEN 0 THEN s.key ELSE '' END, s.version_id, s.part_number, s.size, s.scheme,
                s.stripe_bytes, s.key_mode, s.missing
            WHERE s.missing > 0 ON CONFLICT (blob_id) DO NOTHING;
            DELETE FROM salvage c WHERE c.blob_id = s.blob_id;
        END IF;
        RETURN NEXT;
        IF obstacle = '' THEN  -- what this one had overwritten
            FOR accepted_id IN DELETE FROM salvage c WHERE c.bucket_id = s.bucket_id AND c.key = s.key AND c.part_number = s.part_number
                AND (c.part_number = 0 OR c.version_id = s.version_id) AND c.modified_us <= s.modified_us RETURNING c.blob_id
            LOOP
                obstacle := 'older';
                RETURN NEXT;
            END LOOP;
        END IF;
    END LOOP;
END $$;

-- The end of recovery: removals may begin again, after a whole grace. False while anything waits to be accepted or rejected, or the region
-- is closed.
CREATE FUNCTION salvage_end() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM salvage) OR EXISTS (SELECT FROM settings WHERE name = 'recovery' AND value -> 'closed' = 'true') THEN
        RETURN false;
    END IF;
    DELETE FROM settings WHERE name IN ('recovery', 'salvage', 'gc_epoch');
    RETURN true;
END $$;
