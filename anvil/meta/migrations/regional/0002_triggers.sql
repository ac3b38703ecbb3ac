-- Outbox and usage are kept by these statement-level triggers alone: whatever statement changes objects, versions or parts, by
-- whatever path, the transition tables hold exactly the rows it really changed, also those inserted after its snapshot.
--
-- Usage: an object counts 1 and its size, a noncurrent version likewise. Every part counts as upload_part; an object made of parts
-- takes its own off again (-part_count, -size), so that what remains is uploads in progress, with no row touched at completion.

CREATE TYPE retired AS (bucket_id bigint, key text, version_id bytea, part_number int, blob_id bytea, scheme int);

-- The one place where content leaves an owner row: `gone` blobs go to the outbox, uploads that lost their object go with their
-- parts (whose own trigger comes back here). Object lock will refuse here.
CREATE FUNCTION retire(blobs retired[], uploads_bucket bigint[], lost_uploads bytea[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF cardinality(blobs) > 0 THEN
        INSERT INTO outbox (bucket_id, key, version_id, part_number, blob_id, scheme) SELECT * FROM unnest(blobs);
    END IF;
    IF cardinality(lost_uploads) > 0 THEN
        -- = ANY (ARRAY[x]) instead of = x: usable as an index condition, but never as a reason to read the whole table in order.
        DELETE FROM uploads u USING unnest(uploads_bucket, lost_uploads) AS l (bucket_id, upload_id)
        WHERE u.bucket_id = ANY (ARRAY[l.bucket_id]) AND u.upload_id = ANY (ARRAY[l.upload_id])
          AND (SELECT true FROM versions v WHERE v.upload_id = l.upload_id AND v.upload_id IS NOT NULL LIMIT 1) IS NULL;
    END IF;
END $$;

-- objects and versions -------------------------------------------------------------------------------------------------

CREATE FUNCTION content_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO usage_deltas
    SELECT bucket_id, count(*), sum(size), -sum(part_count), -coalesce(sum(size) FILTER (WHERE upload_id IS NOT NULL), 0)
    FROM new_rows GROUP BY bucket_id;
    RETURN NULL;
END $$;

CREATE FUNCTION content_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE r record;
BEGIN
    INSERT INTO usage_deltas
    SELECT bucket_id, -count(*), -sum(size), sum(part_count), coalesce(sum(size) FILTER (WHERE upload_id IS NOT NULL), 0)
    FROM old_rows GROUP BY bucket_id;
    SELECT array_agg(ROW(bucket_id, key, version_id, 0, blob_id, scheme)::retired)
               FILTER (WHERE blob_id IS NOT NULL AND inline IS NULL) AS b,
           array_agg(bucket_id) FILTER (WHERE upload_id IS NOT NULL) AS ub,
           array_agg(upload_id) FILTER (WHERE upload_id IS NOT NULL) AS u
    INTO r FROM old_rows;
    PERFORM retire(r.b, r.ub, r.u);
    RETURN NULL;
END $$;

CREATE FUNCTION content_updated() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE r record;
BEGIN
    INSERT INTO usage_deltas
    SELECT bucket_id, 0, sum(bytes), sum(upload_parts), sum(upload_bytes) FROM (
        SELECT bucket_id, size AS bytes, -part_count AS upload_parts, CASE WHEN upload_id IS NULL THEN 0 ELSE -size END AS upload_bytes
        FROM new_rows
        UNION ALL
        SELECT bucket_id, -size, part_count, CASE WHEN upload_id IS NULL THEN 0 ELSE size END FROM old_rows
    ) AS change GROUP BY bucket_id HAVING sum(bytes) <> 0 OR sum(upload_parts) <> 0 OR sum(upload_bytes) <> 0;
    SELECT array_agg(ROW(bucket_id, key, version_id, 0, blob_id, scheme)::retired)
               FILTER (WHERE blob_id IS NOT NULL AND inline IS NULL) AS b,
           array_agg(bucket_id) FILTER (WHERE upload_id IS NOT NULL) AS ub,
           array_agg(upload_id) FILTER (WHERE upload_id IS NOT NULL) AS u
    INTO r FROM old_rows
    -- A change of attributes keeps its content.
    WHERE coalesce(blob_id, upload_id)
          NOT IN (SELECT coalesce(n.blob_id, n.upload_id) FROM new_rows n WHERE coalesce(n.blob_id, n.upload_id) IS NOT NULL);
    PERFORM retire(r.b, r.ub, r.u);
    RETURN NULL;
END $$;

CREATE TRIGGER objects_inserted AFTER INSERT ON objects REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION content_inserted();
CREATE TRIGGER objects_updated AFTER UPDATE ON objects REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION content_updated();
CREATE TRIGGER objects_deleted AFTER DELETE ON objects REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION content_deleted();

CREATE TRIGGER versions_inserted AFTER INSERT ON versions REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION content_inserted();
CREATE TRIGGER versions_updated AFTER UPDATE ON versions REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION content_updated();
CREATE TRIGGER versions_deleted AFTER DELETE ON versions REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION content_deleted();

-- uploads and parts ----------------------------------------------------------------------------------------------------

-- An upload takes its parts with it. The statement below sees parts committed while the delete waited for the upload's row.
CREATE FUNCTION uploads_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM parts p USING old_rows o WHERE p.bucket_id = ANY (ARRAY[o.bucket_id]) AND p.upload_id = ANY (ARRAY[o.upload_id]);
    RETURN NULL;
END $$;

CREATE FUNCTION parts_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO usage_deltas SELECT bucket_id, 0, 0, count(*), sum(size) FROM new_rows GROUP BY bucket_id;
    RETURN NULL;
END $$;

CREATE FUNCTION parts_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE r record;
BEGIN
    INSERT INTO usage_deltas SELECT bucket_id, 0, 0, -count(*), -sum(size) FROM old_rows GROUP BY bucket_id;
    SELECT array_agg(ROW(bucket_id, '', upload_id, number, blob_id, scheme)::retired) AS b
    INTO r FROM old_rows WHERE blob_id IS NOT NULL AND inline IS NULL;
    PERFORM retire(r.b, NULL, NULL);
    RETURN NULL;
END $$;

CREATE FUNCTION parts_updated() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE r record;
BEGIN
    INSERT INTO usage_deltas
    SELECT bucket_id, 0, 0, 0, sum(bytes)
    FROM (SELECT bucket_id, size AS bytes FROM new_rows UNION ALL SELECT bucket_id, -size FROM old_rows) AS change
    GROUP BY bucket_id HAVING sum(bytes) <> 0;
    SELECT array_agg(ROW(bucket_id, '', upload_id, number, blob_id, scheme)::retired) AS b
    INTO r FROM old_rows
    WHERE blob_id IS NOT NULL AND inline IS NULL AND blob_id NOT IN (SELECT n.blob_id FROM new_rows n WHERE n.blob_id IS NOT NULL);
    PERFORM retire(r.b, NULL, NULL);
    RETURN NULL;
END $$;

CREATE TRIGGER uploads_deleted AFTER DELETE ON uploads REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION uploads_deleted();
CREATE TRIGGER parts_inserted AFTER INSERT ON parts REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION parts_inserted();
CREATE TRIGGER parts_updated AFTER UPDATE ON parts REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION parts_updated();
CREATE TRIGGER parts_deleted AFTER DELETE ON parts REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION parts_deleted();
