-- Conditions, listing and completion: what needs more than one statement, run beside the data.

-- S3's If-Match and If-None-Match against the row that holds the lock. NULL = the header was not sent.
CREATE FUNCTION condition_holds(etag text, if_match jsonb, if_none_match jsonb) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT (if_match IS NULL OR if_match ? '*' OR if_match ? etag)
             AND (if_none_match IS NULL OR NOT (if_none_match ? '*' OR if_none_match ? etag)) $$;

-- The least text above every text that starts with `prefix`, in byte order; NULL when there is none. UTF-8 keeps the order of code
-- points, so the last one is raised: U+D7FF is followed by U+E000 (surrogates are no text), U+10FFFF is dropped.
CREATE FUNCTION prefix_successor(prefix text) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE code int;
BEGIN
    WHILE prefix <> '' LOOP
        code := ascii(right(prefix, 1));
        IF code < 1114111 THEN
            RETURN left(prefix, -1) || chr(CASE code WHEN 55295 THEN 57344 ELSE code + 1 END);
        END IF;
        prefix := left(prefix, -1);
    END LOOP;
    RETURN NULL;
END $$;

-- Above every key (a key has at most 1,024 bytes, so at most 256 of these).
CREATE FUNCTION key_ceiling() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT repeat(chr(1114111), 257) $$;

-- Where a page begins: the least name that may be on it. NULL = the page is empty. Everything under a common prefix <= after_name is
-- behind us, and a name above after_name can be under such a prefix only if after_name itself starts with it.
CREATE FUNCTION page_start(prefix text, delimiter text, after_name text) RETURNS text LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE at int := 0;
BEGIN
    IF after_name COLLATE "C" < prefix THEN
        RETURN prefix;
    ELSIF NOT starts_with(after_name, prefix) THEN
        RETURN NULL;
    END IF;
    IF delimiter <> '' THEN
        at := strpos(substr(after_name, length(prefix) + 1), delimiter);
    END IF;
    IF at > 0 THEN
        RETURN prefix_successor(left(after_name, length(prefix) + at - 1 + length(delimiter)));
    END IF;
    RETURN after_name;
END $$;

-- One page of keys and common prefixes strictly after after_name, in byte order, at most page_limit. It seeks past each common prefix,
-- so it costs what it returns, whatever lies below a prefix.
CREATE FUNCTION list_page(bucket bigint, prefix text, delimiter text, after_name text, page_limit int)
RETURNS TABLE (name text, is_prefix boolean, object_size bigint, object_etag text, object_modified_us bigint, object_checksum bytea)
LANGUAGE plpgsql STABLE AS $$
DECLARE
    start text COLLATE "C" := page_start(prefix, delimiter, after_name);
    ceiling text COLLATE "C" := coalesce(prefix_successor(prefix), key_ceiling());
    behind int := length(prefix) + 1;
    found_rows int := 0;
    at int;
    jumped boolean;
    r record;
BEGIN
    IF delimiter = '' THEN
        RETURN QUERY SELECT o.key, false, o.size, o.etag, o.modified_us, o.checksum FROM objects o
            WHERE o.bucket_id = bucket AND o.key >= start AND o.key < ceiling AND o.key <> after_name ORDER BY o.key LIMIT page_limit;
        RETURN;
    END IF;
    WHILE start IS NOT NULL AND found_rows < page_limit LOOP
        jumped := false;
        FOR r IN SELECT o.key, o.size, o.etag, o.modified_us, o.checksum FROM objects o
            WHERE o.bucket_id = bucket AND o.key >= start AND o.key < ceiling AND o.key <> after_name ORDER BY o.key
            LIMIT page_limit - found_rows
        LOOP
            at := strpos(substr(r.key, behind), delimiter);
            found_rows := found_rows + 1;
            IF at > 0 THEN
                name := left(r.key, behind + at - 2 + length(delimiter));
                is_prefix := true; object_size := NULL; object_etag := NULL; object_modified_us := NULL; object_checksum := NULL;
                RETURN NEXT;
                start := prefix_successor(name);
                jumped := true;
                EXIT;
            END IF;
            name := r.key; is_prefix := false; object_size := r.size; object_etag := r.etag;
            object_modified_us := r.modified_us; object_checksum := r.checksum;
            RETURN NEXT;
        END LOOP;
        EXIT WHEN NOT jumped;
    END LOOP;
END $$;

-- The same for uploads in progress, in order of (key, initiation, id), after (key_marker, upload_marker). An upload_marker that is no
-- longer there begins the key again: rather one upload twice than one never.
CREATE FUNCTION list_uploads_page(bucket bigint, prefix text, delimiter text, key_marker text, upload_marker bytea, page_limit int)
RETURNS TABLE (name text, is_prefix boolean, upload uploads) LANGUAGE plpgsql STABLE AS $$
DECLARE
    start text COLLATE "C" := page_start(prefix, delimiter, key_marker);
    ceiling text COLLATE "C" := coalesce(prefix_successor(prefix), key_ceiling());
    marker_us bigint := NULL;
    behind int := length(prefix) + 1;
    found_rows int := 0;
    at int;
    jumped boolean;
    r uploads;
BEGIN
    IF upload_marker IS NOT NULL THEN
        SELECT coalesce(max(u.initiated_us), -1) INTO marker_us FROM uploads u
        WHERE u.bucket_id = bucket AND u.upload_id = upload_marker AND u.key = key_marker;
    END IF;
    WHILE start IS NOT NULL AND found_rows < page_limit LOOP
        jumped := false;
        FOR r IN SELECT u.* FROM uploads u
            WHERE u.bucket_id = bucket AND u.version_id IS NULL AND u.key >= start AND u.key < ceiling
              AND (u.key <> key_marker OR (marker_us IS NOT NULL AND (u.initiated_us, u.upload_id) > (marker_us, upload_marker)))
            ORDER BY u.key, u.initiated_us, u.upload_id LIMIT page_limit - found_rows
        LOOP
            at := CASE delimiter WHEN '' THEN 0 ELSE strpos(substr(r.key, behind), delimiter) END;
            found_rows := found_rows + 1;
            IF at > 0 THEN
                name := left(r.key, behind + at - 2 + length(delimiter)); is_prefix := true; upload := NULL;
                RETURN NEXT;
                start := prefix_successor(name);
                jumped := true;
                EXIT;
            END IF;
            name := r.key; is_prefix := false; upload := r;
            RETURN NEXT;
        END LOOP;
        EXIT WHEN NOT jumped;
    END LOOP;
END $$;

-- Make an upload its key's object. Idempotent by upload id. outcome: done, fenced, no_bucket, no_upload, bad_part, precondition, no_key;
-- only `done` has changed anything. Each statement sees what was committed while the ones before it waited for locks.
CREATE FUNCTION complete_upload(
    p_session bytea, p_bucket bigint, p_key text, p_upload bytea, p_version bytea, p_numbers int[], p_etags text[],
    p_size bigint, p_etag text, p_checksum bytea, p_if_match jsonb, p_if_none_match jsonb,
    OUT outcome text, OUT done_version bytea, OUT done_seq bigint, OUT done_us bigint
) LANGUAGE plpgsql AS $$
DECLARE
    u uploads;
    matching int;
    matching_size bigint;
BEGIN
    PERFORM FROM writer_sessions w WHERE w.session_id = p_session FOR KEY SHARE;
    IF NOT FOUND THEN outcome := 'fenced'; RETURN; END IF;
    PERFORM FROM buckets b WHERE b.bucket_id = p_bucket FOR KEY SHARE;
    IF NOT FOUND THEN outcome := 'no_bucket'; RETURN; END IF;

    -- Waits for parts being committed (they hold it FOR SHARE); none can come after.
    SELECT * INTO u FROM uploads x WHERE x.bucket_id = p_bucket AND x.upload_id = p_upload AND x.key = p_key FOR UPDATE;
    IF NOT FOUND THEN outcome := 'no_upload'; RETURN; END IF;
    IF u.version_id IS NOT NULL THEN
        outcome := 'done'; done_version := u.version_id; done_seq := u.seq; done_us := u.modified_us;
        RETURN;
    END IF;

    SELECT count(*), coalesce(sum(p.size), 0) INTO matching, matching_size
    FROM unnest(p_numbers, p_etags) AS l (number, etag)
    CROSS JOIN LATERAL (  -- from the list's side, one index probe each, however many parts there are
        SELECT x.size, x.etag FROM parts x WHERE x.bucket_id = p_bucket AND x.upload_id = p_upload AND x.number = l.number LIMIT 1
    ) AS p WHERE p.etag = l.etag;
    IF matching <> cardinality(p_numbers) OR matching = 0 OR matching_size <> p_size THEN outcome := 'bad_part'; RETURN; END IF;

    IF p_if_match IS NULL THEN
        INSERT INTO objects AS o (bucket_id, key, version_id, size, etag, attributes, checksum, upload_id, part_count)
        VALUES (p_bucket, p_key, p_version, p_size, p_etag, u.attributes, p_checksum, p_upload, matching)
        ON CONFLICT (bucket_id, key) DO UPDATE SET
            version_id = EXCLUDED.version_id, is_null = true, seq = nextval('version_seq'), size = EXCLUDED.size, etag = EXCLUDED.etag,
            modified_us = now_us(), attributes = EXCLUDED.attributes, checksum = EXCLUDED.checksum, blob_id = NULL, scheme = NULL,
            stripe_bytes = NULL, key_mode = NULL, inline = NULL, upload_id = EXCLUDED.upload_id, part_count = EXCLUDED.part_count
        WHERE condition_holds(o.etag, NULL, p_if_none_match)
        RETURNING o.seq, o.modified_us INTO done_seq, done_us;
    ELSE
        UPDATE objects o SET
            version_id = p_version, is_null = true, seq = nextval('version_seq'), size = p_size, etag = p_etag,
            modified_us = now_us(), attributes = u.attributes, checksum = p_checksum, blob_id = NULL, scheme = NULL,
            stripe_bytes = NULL, key_mode = NULL, inline = NULL, upload_id = p_upload, part_count = matching
        WHERE o.bucket_id = p_bucket AND o.key = p_key AND condition_holds(o.etag, p_if_match, p_if_none_match)
        RETURNING o.seq, o.modified_us INTO done_seq, done_us;
    END IF;
    IF done_seq IS NULL THEN
        PERFORM FROM objects o WHERE o.bucket_id = p_bucket AND o.key = p_key;
        outcome := CASE WHEN FOUND OR p_if_match IS NULL OR p_if_match ? '*' THEN 'precondition' ELSE 'no_key' END;
        RETURN;
    END IF;

    DELETE FROM parts p WHERE p.bucket_id = p_bucket AND p.upload_id = p_upload AND p.number NOT IN (SELECT unnest(p_numbers));
    UPDATE uploads x SET version_id = p_version, seq = done_seq, modified_us = done_us
    WHERE x.bucket_id = p_bucket AND x.upload_id = p_upload;
    outcome := 'done'; done_version := p_version;
END $$;

-- Whether garbage may be unlinked now: no backup holds it, and for at least `grace` this database has been the one it is. A restored
-- dump has another system identifier, a promoted standby or a point-in-time recovery another timeline, a restored cluster another
-- epoch; each may know rows that the outbox of before had given up.
CREATE FUNCTION collection_allowed(grace_us bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    epoch jsonb := jsonb_build_array(
        (SELECT system_identifier::text FROM pg_control_system()),
        left(pg_walfile_name(pg_current_wal_lsn()), 8),
        (SELECT value FROM settings WHERE name = 'cluster_epoch'));
    since_us bigint;
BEGIN
    SELECT changed_us INTO since_us FROM settings WHERE name = 'gc_epoch' AND value = epoch;
    IF NOT FOUND THEN
        INSERT INTO settings (name, value) VALUES ('gc_epoch', epoch)
        ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value, changed_us = now_us()
        RETURNING changed_us INTO since_us;
    END IF;
    RETURN since_us <= now_us() - grace_us AND NOT EXISTS (SELECT FROM settings WHERE name = 'backup_hold');
END $$;

-- Whether its owner's row names the blob now. An object's version is not compared: a change of attributes gives the row another one.
-- (Scalar sub-selects: the planner may answer EXISTS by reading a whole table into a hash. Parameters by number, so that
-- tests/integration/meta/test_plans.py can have the body explained.)
CREATE FUNCTION blob_owned(bucket bigint, key text, version bytea, part_number int, blob bytea) RETURNS boolean LANGUAGE sql STABLE
    AS $$ SELECT CASE WHEN $4 > 0
        THEN (SELECT true FROM parts p WHERE p.bucket_id = $1 AND p.upload_id = $3 AND p.number = $4 AND p.blob_id = $5) IS TRUE
        ELSE (SELECT true FROM objects o WHERE o.bucket_id = $1 AND o.key = $2 AND o.blob_id = $5) IS TRUE
          OR (SELECT true FROM versions v WHERE v.bucket_id = $1 AND v.key = $2 AND v.blob_id = $5 LIMIT 1) IS TRUE END $$;

-- Remove a bucket's fence. outcome: done, not_empty, gone. Call it in a transaction of its own: the test for emptiness runs after the
-- fence was locked FOR UPDATE, so it sees every commit that held it, and none can come after. Uploads in progress go with the bucket.
CREATE FUNCTION drop_bucket(p_bucket bigint) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM buckets b WHERE b.bucket_id = p_bucket FOR UPDATE;
    IF NOT FOUND THEN RETURN 'gone'; END IF;
    PERFORM FROM objects o WHERE o.bucket_id = p_bucket LIMIT 1;
    IF FOUND THEN RETURN 'not_empty'; END IF;
    PERFORM FROM versions v WHERE v.bucket_id = p_bucket LIMIT 1;
    IF FOUND THEN RETURN 'not_empty'; END IF;
    DELETE FROM uploads u WHERE u.bucket_id = p_bucket;
    DELETE FROM buckets b WHERE b.bucket_id = p_bucket;
    RETURN 'done';
END $$;
