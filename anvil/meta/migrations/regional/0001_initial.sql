-- The regional database: objects and everything that must commit together with them.
-- Data is keyed by bucket id, never by name. Ids of 16 random bytes are bytea. Times are microseconds since 1970 (now_us()).
-- Nothing here is UNLOGGED or needs an extension, so pg_dump, WAL archiving and replicas work as usual.

CREATE FUNCTION now_us() RETURNS bigint LANGUAGE sql VOLATILE PARALLEL SAFE
    AS $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

-- -- fences -----------------------------------------------------------------------------------------------------------

-- A commit takes FOR KEY SHARE on its bucket's row and on its writer's session: neither can go while it runs.
CREATE TABLE buckets (
    bucket_id bigint PRIMARY KEY CHECK (bucket_id > 0),
    created_us bigint NOT NULL DEFAULT now_us()
);

CREATE TABLE writer_sessions (
    session_id bytea PRIMARY KEY CHECK (octet_length(session_id) = 16),
    node_id bytea NOT NULL CHECK (octet_length(node_id) = 16),
    worker int NOT NULL,
    layout_version bigint NOT NULL DEFAULT 0,
    opened_us bigint NOT NULL DEFAULT now_us(),
    lease_until timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- -- cluster ----------------------------------------------------------------------------------------------------------

CREATE TABLE nodes (
    node_id bytea PRIMARY KEY CHECK (octet_length(node_id) = 16),
    name text NOT NULL,
    zone text NOT NULL DEFAULT '',
    address text NOT NULL DEFAULT '',
    state text NOT NULL CHECK (state IN ('joining', 'active', 'draining', 'down')),
    joined_us bigint NOT NULL DEFAULT now_us(),
    lease_until timestamptz
);

CREATE TABLE drives (
    drive_id bytea PRIMARY KEY CHECK (octet_length(drive_id) = 16),
    node_id bytea NOT NULL REFERENCES nodes,
    label text NOT NULL,
    capacity_bytes bigint NOT NULL CHECK (capacity_bytes >= 0),
    state text NOT NULL CHECK (state IN ('active', 'draining', 'failed', 'gone')),
    added_us bigint NOT NULL DEFAULT now_us()
);
CREATE INDEX drives_node ON drives (node_id);

CREATE TABLE layouts (
    version bigint PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('pending', 'current', 'old', 'retired')),
    packed bytea NOT NULL,
    created_us bigint NOT NULL DEFAULT now_us()
);

-- -- objects ----------------------------------------------------------------------------------------------------------

CREATE SEQUENCE version_seq AS bigint;  -- orders versions; time does not

-- The visible current version of each key. size = 0, or bytes in shards or inline (blob_id), or in the parts of an upload.
CREATE TABLE objects (
    bucket_id bigint NOT NULL,
    key text COLLATE "C" NOT NULL CHECK (octet_length(key) BETWEEN 1 AND 1024),
    version_id bytea NOT NULL CHECK (octet_length(version_id) = 16),
    is_null boolean NOT NULL DEFAULT true,
    seq bigint NOT NULL DEFAULT nextval('version_seq'),
    size bigint NOT NULL CHECK (size >= 0),
    etag text NOT NULL,
    modified_us bigint NOT NULL DEFAULT now_us(),
    attributes jsonb NOT NULL DEFAULT '{}',
    checksum bytea,       -- packed: algorithm, type, parts, value (meta/rows.py)
    blob_id bytea CHECK (octet_length(blob_id) = 16),
    scheme int,           -- packed: matrix << 16 | k << 8 | m
    stripe_bytes int,
    key_mode smallint,
    inline bytea,         -- the sealed bytes themselves; then there are no shards
    upload_id bytea,      -- the parts of this upload are the manifest
    part_count int NOT NULL DEFAULT 0,
    PRIMARY KEY (bucket_id, key),
    CHECK (CASE WHEN blob_id IS NULL THEN inline IS NULL AND (upload_id IS NOT NULL OR size = 0)
                ELSE upload_id IS NULL AND scheme IS NOT NULL AND stripe_bytes IS NOT NULL AND key_mode IS NOT NULL END)
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1,
        autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 1);
ALTER TABLE objects ALTER COLUMN inline SET STORAGE EXTERNAL;
-- No index on blob_id: who asks for a blob's owner (collector, repair, sweep) knows its key, which every shard records. So an overwrite
-- changes no indexed column.

-- Noncurrent versions and delete markers.
CREATE TABLE versions (
    LIKE objects INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE,
    is_delete_marker boolean NOT NULL DEFAULT false,
    PRIMARY KEY (bucket_id, key, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);
CREATE UNIQUE INDEX versions_id ON versions (bucket_id, key, version_id);
CREATE INDEX versions_upload ON versions (upload_id) WHERE upload_id IS NOT NULL;

-- -- multipart --------------------------------------------------------------------------------------------------------

CREATE TABLE uploads (
    bucket_id bigint NOT NULL,
    upload_id bytea NOT NULL CHECK (octet_length(upload_id) = 16),
    key text COLLATE "C" NOT NULL CHECK (octet_length(key) BETWEEN 1 AND 1024),
    initiated_us bigint NOT NULL,
    attributes jsonb NOT NULL DEFAULT '{}',
    owner text NOT NULL,
    checksum_algorithm text,
    checksum_type text,
    -- Set by completion; the row then lives as long as its object.
    version_id bytea,
    seq bigint,
    modified_us bigint,
    PRIMARY KEY (bucket_id, upload_id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX uploads_open ON uploads (bucket_id, key, initiated_us, upload_id) WHERE version_id IS NULL;

CREATE TABLE parts (
    bucket_id bigint NOT NULL,
    upload_id bytea NOT NULL,
    number int NOT NULL CHECK (number BETWEEN 1 AND 10000),
    size bigint NOT NULL CHECK (size >= 0),
    etag text NOT NULL,
    modified_us bigint NOT NULL DEFAULT now_us(),
    checksum bytea,
    blob_id bytea CHECK (octet_length(blob_id) = 16),
    scheme int,
    stripe_bytes int,
    key_mode smallint,
    inline bytea,
    PRIMARY KEY (bucket_id, upload_id, number),
    CHECK (CASE WHEN blob_id IS NULL THEN inline IS NULL AND size = 0
                ELSE scheme IS NOT NULL AND stripe_bytes IS NOT NULL AND key_mode IS NOT NULL END)
) WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);
ALTER TABLE parts ALTER COLUMN inline SET STORAGE EXTERNAL;

-- -- debts, garbage, usage --------------------------------------------------------------------------------------------

-- Both name a blob's owner by primary key: (bucket, key) of an object, part_number = 0; (bucket, version_id = upload id, number) of a
-- part, key = ''.

-- Blobs acknowledged with shards missing, or found damaged: bit i of missing = shard i must be rebuilt. corrupt: those of them whose shard
-- was met with wrong content (the others were not met at all). due_us: not to be tried before, so that debts that cannot be paid now do
-- not stand in the way of those that can.
CREATE TABLE degraded (
    blob_id bytea PRIMARY KEY CHECK (octet_length(blob_id) = 16),
    bucket_id bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    version_id bytea NOT NULL,
    part_number int NOT NULL,
    size bigint NOT NULL,
    scheme int NOT NULL,
    stripe_bytes int NOT NULL,
    key_mode smallint NOT NULL,
    missing int NOT NULL CHECK (missing > 0),
    corrupt int NOT NULL DEFAULT 0,
    due_us bigint NOT NULL DEFAULT 0,
    since_us bigint NOT NULL DEFAULT now_us()
) WITH (fillfactor = 80);
CREATE INDEX degraded_due ON degraded (due_us, since_us);

-- Blobs no row owns any more. Filled by triggers only; a row is deleted when its shards are gone.
CREATE TABLE outbox (
    outbox_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bucket_id bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    version_id bytea NOT NULL,
    part_number int NOT NULL,
    blob_id bytea NOT NULL,
    scheme int NOT NULL,
    since_us bigint NOT NULL DEFAULT now_us()
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 1);
CREATE INDEX outbox_blob ON outbox (blob_id);  -- for the sweep: whose grace is still running

-- Usage of a bucket = its folded row + its delta rows. Deltas are only ever appended (by triggers) and folded (by one process).
CREATE TABLE usage_folded (
    bucket_id bigint PRIMARY KEY,
    objects bigint NOT NULL,
    bytes bigint NOT NULL,
    upload_parts bigint NOT NULL,
    upload_bytes bigint NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE usage_deltas (
    bucket_id bigint NOT NULL,
    objects bigint NOT NULL,
    bytes bigint NOT NULL,
    upload_parts bigint NOT NULL,
    upload_bytes bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 1);

-- gc_epoch: where this database's history was last seen to branch (collect.py). backup_hold: nothing is unlinked while it is there.
CREATE TABLE settings (
    name text PRIMARY KEY,
    value jsonb NOT NULL,
    changed_us bigint NOT NULL DEFAULT now_us()
);
