-- Several regions: endpoints that every node knows, and buckets that are made in one region only.

-- Whether somebody stated the endpoint (ANVIL_PUBLIC_API_ADDR, anvil admin); a listen address never replaces one that was.
ALTER TABLE regions ADD COLUMN stated boolean NOT NULL DEFAULT false;

ALTER TABLE change_log DROP CONSTRAINT change_log_kind_check;
ALTER TABLE change_log ADD CONSTRAINT change_log_kind_check CHECK (kind IN ('app', 'bucket', 'region'));

CREATE FUNCTION log_region_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO change_log (kind, name)
    SELECT DISTINCT 'region', k FROM unnest(ARRAY[OLD.name, NEW.name]) AS k WHERE k IS NOT NULL;
    NOTIFY anvil_catalog;
    RETURN NULL;
END $$;
CREATE TRIGGER regions_changed AFTER INSERT OR UPDATE OR DELETE ON regions FOR EACH ROW EXECUTE FUNCTION log_region_change();

-- As before, and `elsewhere`: this tenant is making the bucket in another region, which alone may finish it (its fence belongs there).
CREATE OR REPLACE FUNCTION claim_bucket(
    p_bucket bigint, p_tenant bigint, p_name text, p_region text, p_sealed_key bytea, p_limit int,
    OUT outcome text, OUT claimed_id bigint
) LANGUAGE plpgsql AS $$
DECLARE b buckets;
BEGIN
    PERFORM FROM tenants t WHERE t.tenant_id = p_tenant FOR UPDATE;
    IF NOT FOUND THEN outcome := 'no_tenant'; RETURN; END IF;
    PERFORM FROM regions r WHERE r.name = p_region;
    IF NOT FOUND THEN outcome := 'no_region'; RETURN; END IF;
    SELECT * INTO b FROM buckets x WHERE x.name = p_name;
    IF NOT FOUND THEN
        IF (SELECT count(*) FROM buckets x WHERE x.tenant_id = p_tenant) >= p_limit THEN outcome := 'too_many'; RETURN; END IF;
        INSERT INTO buckets (bucket_id, tenant_id, name, region, state, sealed_key)
        VALUES (p_bucket, p_tenant, p_name, p_region, 'creating', p_sealed_key) ON CONFLICT (name) DO NOTHING;
        outcome := CASE WHEN FOUND THEN 'claimed' ELSE 'exists' END;
        claimed_id := p_bucket;
    ELSIF b.tenant_id <> p_tenant THEN
        outcome := 'exists';
    ELSE
        outcome := CASE WHEN b.state = 'active' THEN 'owned' WHEN b.region <> p_region THEN 'elsewhere' ELSE b.state END;
        claimed_id := b.bucket_id;
    END IF;
END $$;
