"""Every metric of Anvil: its name, labels, meaning. The names are promised to dashboards and alerts (docs/METRICS.md is made of them).

Owns: the declarations. Use: `instruments.API_REQUESTS.labels("s3", "GetObject", "200").inc()`. Invariants: base units,
`_total` on counters only; the operation of a request is one of a fixed list or `other`. Not here: exposition
(`node/exposition.py`).
"""

from __future__ import annotations

from anvil.base.metrics import BATCH, REGISTRY

_counter, _gauge, _histogram = REGISTRY.counter, REGISTRY.gauge, REGISTRY.histogram

# -- API -----------------------------------------------------------------------------------------------------------------
API_REQUESTS = _counter(
    "api_requests_total", "Finished requests; code: HTTP status or gRPC status number.", "api", "operation", "code"
)
API_ERRORS = _counter("api_errors_total", "Answers with an error, by S3 or gRPC error code.", "api", "operation", "error")
API_DURATION = _histogram(
    "api_request_duration_seconds", "From the head of a request to the end of its answer.", "api", "operation"
)
API_TTFB = _histogram("api_ttfb_seconds", "From the head of a request to the first byte of its answer.", "api", "operation")
API_IN_FLIGHT = _gauge("api_requests_in_flight", "Requests being served now.", "api")
API_RECEIVED = _counter("api_received_bytes_total", "Payload bytes received.", "api")
API_SENT = _counter("api_sent_bytes_total", "Payload bytes sent.", "api")
API_REJECTED = _counter(
    "api_rejected_total",
    "Requests and connections refused before anything ran: signature, clock_skew, header, busy ...",
    "reason",
)

# -- TLS -------------------------------------------------------------------------------------------------------------------
TLS_EXPIRY = _gauge(
    "tls_certificate_expiry_timestamp_seconds", "When the certificate in use ends; the first, of several.", merge="min"
)
TLS_RELOADS = _counter("tls_reloads_total", "Changed certificate files met by a worker: ok, or refused.", "result")

# -- storage ---------------------------------------------------------------------------------------------------------------
CLUSTER_WRITE_QUORUM = _gauge("cluster_write_quorum", "1 where a write can reach its quorum, as this node sees it.", merge="max")
CLUSTER_PEERS = _gauge("cluster_peers", "Other nodes of the region.", "state", merge="max")
MEMBERSHIP_EVENTS = _counter("cluster_membership_events_total", "Nodes that joined, left, failed or returned.", "event")
PEER_LAST_SEEN = _gauge("cluster_peer_last_seen_timestamp_seconds", "When a peer last answered.", "peer", merge="max")
INTERNODE_DURATION = _histogram("internode_request_duration_seconds", "Calls to other nodes, from question to answer.", "rpc")
INTERNODE_ERRORS = _counter("internode_errors_total", "Calls to other nodes that failed.", "rpc", "reason")
STORAGE_CAPACITY = _gauge(
    "storage_capacity_bytes", "Size of the drive's file system, when it last answered.", "drive", merge="max"
)
STORAGE_FREE = _gauge(
    "storage_free_bytes", "What Anvil may still use of the drive's file system, when it last answered.", "drive", merge="max"
)
STORAGE_DRIVE_UP = _gauge("storage_drive_up", "1 where the drive takes a write and a flush.", "drive", merge="max")
SHARDS_UNHEALTHY = _gauge("shards_unhealthy", "Shards known to need repair.", "kind", merge="max")
SHARD_REPAIRS = _counter("shard_repairs_total", "Shards rebuilt, or not.", "result")
SHARD_DAMAGE = _counter("shard_damage_total", "Damaged or missing shards met by readers and scrubs.", "drive", "kind")
METADATA_DUMPED = _gauge(
    "metadata_dump_timestamp_seconds", "When the metadata were last dumped to the drives, as the leader knows.", merge="max"
)

# -- cluster ---------------------------------------------------------------------------------------------------------------
PEER_REFUSED = _counter(
    "peer_refused_total", "Calls to the cluster port that did not prove who makes them, by what was wrong.", "reason"
)

# -- usage, backup -----------------------------------------------------------------------------------------------------------------
TENANT_USAGE = _gauge("tenant_usage_bytes", "Bytes of a tenant's visible objects, exact.", "tenant", merge="max")
TENANT_OBJECTS = _gauge("tenant_objects", "Number of a tenant's visible objects, exact.", "tenant", merge="max")
BUCKET_USAGE = _gauge("bucket_usage_bytes", "Bytes of a bucket's visible objects, exact.", "tenant", "bucket", merge="max")
BUCKET_OBJECTS = _gauge("bucket_objects", "Number of a bucket's visible objects, exact.", "tenant", "bucket", merge="max")
USAGE_UPDATED = _gauge("usage_last_update_timestamp_seconds", "When the usage numbers were read.", merge="max")
BACKUP_LAST_SUCCESS = _gauge(
    "backup_last_success_timestamp_seconds",
    "When the last backup of the region was complete; absent before the first.",
    merge="max",
)
BACKUP_HOLD_AGE = _gauge(
    "backup_hold_age_seconds",
    "For how long removals have been held for a backup; 0 while they are not.",
    merge="max",
)

# -- tasks -----------------------------------------------------------------------------------------------------------------
TASKS = _gauge("tasks", "Tasks in the queue.", "type", "status", merge="max")
TASK_OLDEST = _gauge("task_oldest_pending_age_seconds", "How long the oldest due task has waited.", "type", merge="max")
TASK_RUNS = _counter("task_runs_total", "Background tasks that ended: ok, retry, dead.", "type", "result")
TASK_DURATION = _histogram("task_duration_seconds", "How long background tasks ran.", "type")

# -- databases -------------------------------------------------------------------------------------------------------------
DB_UP = _gauge("db_up", "1 where the database answers.", "db", merge="max")
DB_POOL_CONNECTIONS = _gauge("db_pool_connections", "Connections to a database, by state: busy, idle, down.", "db", "state")
DB_BATCH_SIZE = _histogram("db_batch_size", "Rows per coalesced statement.", "statement", buckets=BATCH)

# -- process ---------------------------------------------------------------------------------------------------------------
EVENT_LOOP_LAG = _histogram("event_loop_lag_seconds", "How late the event loop woke up.", "worker")
PROCESS_RESTARTS = _counter("process_restarts_total", "Child processes that died and were started again.", "process")
PROCESSES = _gauge("processes", "Processes of the node, without PostgreSQL.", merge="max")
METRICS_DROPPED_SERIES = _gauge("metrics_dropped_series", "Label sets that were merged into `_other`.")
BUILD_INFO = _gauge("build_info", "Constant 1; the labels say what is running.", "version", "commit", merge="max")
