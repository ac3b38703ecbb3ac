-- Rights changed by a tenant's own apps. Each function is one transaction: the change and the audit rows that tell of it. All are
-- confined to the tenant they are given; a name that is another tenant's is not there.
--
-- Locks are taken in the order bucket, apps by id, policies, so that changes wait for one another; whoever deletes an app meanwhile may
-- lose or win a deadlock, and is run again. A right granted by an operator while a bucket's rights are being replaced stays: it counts
-- as granted afterwards.

-- An app by its access key or its name; the access key counts first.
CREATE FUNCTION find_app(p_tenant bigint, p_named text) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT COALESCE(
        (SELECT x.app_id FROM apps x WHERE x.access_key = p_named AND x.tenant_id = p_tenant),
        (SELECT x.app_id FROM apps x WHERE x.tenant_id = p_tenant AND x.name = p_named))
$$;

-- outcome: changed, unchanged, no_app, too_many. The app's row is locked, so the limit is exact.
CREATE FUNCTION grant_right(
    p_tenant bigint, p_named text, p_action text, p_resource text, p_limit int, p_who text, p_source text, p_request text,
    OUT outcome text, OUT key text
) LANGUAGE plpgsql AS $$
DECLARE v_app apps;
BEGIN
    SELECT * INTO v_app FROM apps x WHERE x.app_id = find_app(p_tenant, p_named) FOR NO KEY UPDATE;
    IF NOT FOUND THEN outcome := 'no_app'; RETURN; END IF;
    key := v_app.access_key;
    outcome := 'unchanged';
    PERFORM FROM policies p WHERE p.app_id = v_app.app_id AND p.action = p_action AND p.resource = p_resource;
    IF FOUND THEN RETURN; END IF;
    IF (SELECT count(*) FROM policies p WHERE p.app_id = v_app.app_id) >= p_limit THEN outcome := 'too_many'; RETURN; END IF;
    INSERT INTO policies (app_id, action, resource) VALUES (v_app.app_id, p_action, p_resource) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN RETURN; END IF;  -- an operator was faster
    outcome := 'changed';
    INSERT INTO audit (who, source, action, resource, result, request_id)
    VALUES (p_who, p_source, 'GrantAccess', concat_ws(' ', key, p_action, p_resource), 'granted', p_request);
END $$;

-- outcome: changed, unchanged, no_app.
CREATE FUNCTION revoke_right(
    p_tenant bigint, p_named text, p_action text, p_resource text, p_who text, p_source text, p_request text,
    OUT outcome text, OUT key text
) LANGUAGE plpgsql AS $$
DECLARE v_app apps;
BEGIN
    SELECT * INTO v_app FROM apps x WHERE x.app_id = find_app(p_tenant, p_named) FOR NO KEY UPDATE;
    IF NOT FOUND THEN outcome := 'no_app'; RETURN; END IF;
    key := v_app.access_key;
    DELETE FROM policies p WHERE p.app_id = v_app.app_id AND p.action = p_action AND p.resource = p_resource;
    outcome := CASE WHEN FOUND THEN 'changed' ELSE 'unchanged' END;
    IF NOT FOUND THEN RETURN; END IF;
    INSERT INTO audit (who, source, action, resource, result, request_id)
    VALUES (p_who, p_source, 'RevokeAccess', concat_ws(' ', key, p_action, p_resource), 'revoked', p_request);
END $$;

-- outcome: changed, unchanged, no_bucket.
CREATE FUNCTION set_public_read(
    p_tenant bigint, p_bucket text, p_allow boolean, p_who text, p_source text, p_request text, OUT outcome text
) LANGUAGE plpgsql AS $$
DECLARE v_bucket buckets;
BEGIN
    SELECT * INTO v_bucket FROM buckets x
    WHERE x.name = p_bucket COLLATE "C" AND x.tenant_id = p_tenant AND x.state = 'active' FOR NO KEY UPDATE;
    IF NOT FOUND THEN outcome := 'no_bucket'; RETURN; END IF;
    IF v_bucket.public_read = p_allow THEN outcome := 'unchanged'; RETURN; END IF;
    UPDATE buckets x SET public_read = p_allow WHERE x.bucket_id = v_bucket.bucket_id;
    INSERT INTO audit (who, source, action, resource, result, request_id)
    VALUES (p_who, p_source, 'SetPublicAccess', p_bucket, CASE WHEN p_allow THEN 'public' ELSE 'private' END, p_request);
    outcome := 'changed';
END $$;

-- Names a state of a bucket's rights: [[app_id, action, resource], ...] in order, and whether everybody may read.
CREATE FUNCTION policy_etag(p_bucket bigint, p_public boolean, p_rights jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT left(encode(sha256(convert_to(jsonb_build_array(p_bucket, p_public, p_rights)::text, 'UTF8')), 'hex'), 32)
$$;

CREATE FUNCTION rights_from(p_rights jsonb) RETURNS TABLE (app_id bigint, action text, resource text) LANGUAGE sql IMMUTABLE AS $$
    SELECT (e ->> 0)::bigint, e ->> 1, e ->> 2 FROM jsonb_array_elements(p_rights) AS e
$$;

-- Replace the rights of a tenant's apps on a bucket and in it (`BUCKET`, `BUCKET/...`) by those given (access keys, actions and resources
-- side by side), and its public flag, if policy_etag of what is there is p_expected.
-- outcome: changed, unchanged, stale, no_bucket, no_app, too_many (the last two name the app in `key`). What is wanted and there already is
-- `unchanged` whatever was expected: so the statement may be repeated when its answer was lost.
CREATE FUNCTION put_bucket_rights(
    p_tenant bigint, p_bucket text, p_expected text, p_public boolean, p_keys text[], p_actions text[], p_resources text[],
    p_limit int, p_who text, p_source text, p_request text,
    OUT outcome text, OUT key text, OUT etag text, OUT changed_keys text[]
) LANGUAGE plpgsql AS $$
DECLARE
    v_bucket buckets;
    v_had jsonb;
    v_wanted jsonb;
    v_present text;
BEGIN
    SELECT * INTO v_bucket FROM buckets x
    WHERE x.name = p_bucket COLLATE "C" AND x.tenant_id = p_tenant AND x.state = 'active' FOR NO KEY UPDATE;
    IF NOT FOUND THEN outcome := 'no_bucket'; RETURN; END IF;
    PERFORM FROM apps x WHERE x.tenant_id = p_tenant AND x.access_key = ANY (p_keys) ORDER BY x.app_id FOR NO KEY UPDATE;
    SELECT w.k INTO key FROM unnest(p_keys) AS w (k)
    WHERE NOT EXISTS (SELECT FROM apps x WHERE x.access_key = w.k AND x.tenant_id = p_tenant) LIMIT 1;
    IF FOUND THEN outcome := 'no_app'; RETURN; END IF;

    SELECT COALESCE(jsonb_agg(jsonb_build_array(r.app_id, r.action, r.resource)
                              ORDER BY r.app_id, r.action COLLATE "C", r.resource COLLATE "C"), '[]') INTO v_had
    FROM (SELECT p.app_id, p.action, p.resource FROM apps x JOIN policies p ON p.app_id = x.app_id
          WHERE x.tenant_id = p_tenant AND (p.resource = p_bucket OR starts_with(p.resource, p_bucket || '/'))
          FOR UPDATE OF p) AS r;
    SELECT COALESCE(jsonb_agg(jsonb_build_array(r.app_id, r.action, r.resource)
                              ORDER BY r.app_id, r.action COLLATE "C", r.resource COLLATE "C"), '[]') INTO v_wanted
    FROM (SELECT DISTINCT x.app_id, w.action, w.resource
          FROM unnest(p_keys, p_actions, p_resources) AS w (k, action, resource)
          JOIN apps x ON x.access_key = w.k AND x.tenant_id = p_tenant) AS r;
    v_present := policy_etag(v_bucket.bucket_id, v_bucket.public_read, v_had);
    etag := policy_etag(v_bucket.bucket_id, p_public, v_wanted);
    IF v_present = etag THEN outcome := 'unchanged'; RETURN; END IF;
    IF v_present <> p_expected THEN outcome := 'stale'; RETURN; END IF;

    SELECT x.access_key INTO key
    FROM (SELECT n.app_id, sum(n.more) AS more
          FROM (SELECT f.app_id, 1 AS more FROM rights_from(v_wanted) f UNION ALL SELECT f.app_id, -1 FROM rights_from(v_had) f) AS n
          GROUP BY n.app_id) AS d
    JOIN apps x ON x.app_id = d.app_id
    WHERE d.more > 0 AND d.more + (SELECT count(*) FROM policies p WHERE p.app_id = d.app_id) > p_limit LIMIT 1;
    IF FOUND THEN outcome := 'too_many'; RETURN; END IF;

    WITH gone AS (SELECT * FROM rights_from(v_had) EXCEPT SELECT * FROM rights_from(v_wanted)),
    come AS (SELECT * FROM rights_from(v_wanted) EXCEPT SELECT * FROM rights_from(v_had)),
    revoked AS (
        DELETE FROM policies p USING gone g WHERE p.app_id = g.app_id AND p.action = g.action AND p.resource = g.resource
        RETURNING p.app_id, p.action, p.resource),
    granted AS (
        INSERT INTO policies (app_id, action, resource) SELECT c.app_id, c.action, c.resource FROM come c ON CONFLICT DO NOTHING
        RETURNING app_id, action, resource),
    changes AS (
        SELECT x.access_key, c.action, c.resource, c.result
        FROM (SELECT r.*, 'revoked' AS result FROM revoked r UNION ALL SELECT g.*, 'granted' FROM granted g) AS c
        JOIN apps x ON x.app_id = c.app_id),
    audited AS (
        INSERT INTO audit (who, source, action, resource, result, request_id)
        SELECT p_who, p_source, 'PutBucketPolicy', concat_ws(' ', c.access_key, c.action, c.resource), c.result, p_request
        FROM changes c)
    SELECT array_agg(DISTINCT c.access_key) INTO changed_keys FROM changes c;
    IF v_bucket.public_read <> p_public THEN
        UPDATE buckets x SET public_read = p_public WHERE x.bucket_id = v_bucket.bucket_id;
        INSERT INTO audit (who, source, action, resource, result, request_id)
        VALUES (p_who, p_source, 'PutBucketPolicy', p_bucket, CASE WHEN p_public THEN 'public' ELSE 'private' END, p_request);
    END IF;
    key := NULL;
    outcome := 'changed';
END $$;
