-- Claim a bucket name for a tenant. outcome: claimed, creating (an earlier claim of this tenant to be resumed), owned, exists, deleting,
-- too_many, no_tenant, no_region. The tenant's row is locked, so the limit is exact; the name's uniqueness decides between tenants.
CREATE FUNCTION claim_bucket(
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
        outcome := CASE b.state WHEN 'active' THEN 'owned' ELSE b.state END;
        claimed_id := b.bucket_id;
    END IF;
END $$;
