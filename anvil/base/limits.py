"""Every bound in Anvil, with its reason. The relations between bounds are asserted at the end.

Units are in the names (`_bytes`, `_s`, `_us`). A bound that S3 fixes says so.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB

# -- S3's own numbers (Amazon S3 User Guide, "Multipart upload limits", "Naming objects") -----------------------------
KEY_BYTES_MAX: Final = 1024
OBJECT_BYTES_MAX: Final = 5 * TIB
PUT_BYTES_MAX: Final = 5 * GIB  # one PutObject, UploadPart or CopyObject
PART_BYTES_MIN: Final = 5 * MIB  # every part but the last
PART_NUMBER_MAX: Final = 10_000
LIST_KEYS_MAX: Final = 1000
DELETE_KEYS_MAX: Final = 1000
USER_METADATA_BYTES_MAX: Final = 2 * KIB
PRESIGNED_S_MAX: Final = 7 * 24 * 3600
CLOCK_SKEW_S_MAX: Final = 15 * 60
BUCKETS_PER_TENANT_MAX: Final = 1000

# -- data path ---------------------------------------------------------------------------------------------------------
STRIPE_BYTES: Final = 1 * MIB  # plaintext per stripe: big enough to amortise a job, small enough for 64 uploads in 400 MiB
INLINE_BYTES_MAX: Final = 2 * KIB - 1  # objects under 2 KiB live in their metadata row
COPIES_BYTES_MAX: Final = 64 * KIB - 1  # objects under 64 KiB are stored as 1+m copies
SEGMENT_SHARD_BYTES_MAX: Final = 256 * KIB  # a shard up to this goes into a segment, a larger one into a file of its own
SEGMENT_BYTES: Final = 64 * MIB
CODE_K_MAX: Final = 16
CODE_M_MAX: Final = 8
SPARE_DRIVES: Final = 2  # a partition lists k+m+2 drives
STRIPES_IN_FLIGHT: Final = 3  # per upload or download: one arriving, one in the digest, one on its way to the drives
BUFFER_POOL_BYTES_MAX: Final = 224 * MIB  # stripe buffers of one worker; who finds none waits, so memory stays bounded
STRAGGLER_S: Final = 5.0  # how long a writer waits for the slowest drives once the quorum is durable
READ_SPARE_AFTER_S: Final = 0.5  # a drive slower than this is doubled by a spare
INLINE_JOB_BYTES_MAX: Final = 64 * KIB  # native jobs up to this size run on the event loop's thread (about 50 us)

# -- HTTP --------------------------------------------------------------------------------------------------------------
HEADER_BYTES_MAX: Final = 16 * KIB  # request line and header fields together (8 KiB of fields beside a long presigned target)
HEADER_FIELDS_MAX: Final = 100
HEADER_TIMEOUT_S: Final = 20.0
IDLE_TIMEOUT_S: Final = 75.0  # proxies keep upstream connections for 60 s
BODY_BYTES_PER_S_MIN: Final = 1 * KIB  # averaged over BODY_STALL_S
BODY_STALL_S: Final = 30.0
XML_BODY_BYTES_MAX: Final = 1 * MIB
COMPLETE_BODY_BYTES_MAX: Final = 4 * MIB  # CompleteMultipartUpload with 10,000 parts and a checksum each
CHUNK_HEADER_BYTES_MAX: Final = 1 * KIB  # aws-chunked: one chunk-size line with its signature
TRAILER_BYTES_MAX: Final = 4 * KIB
DRAIN_BODY_BYTES_MAX: Final = 4 * MIB  # read and dropped after an early error, so that the answer is not lost
WRITE_HIGH_WATER_BYTES: Final = 1 * MIB
CONNECTIONS_MAX: Final = 4096  # per worker
CONNECTIONS_PER_ADDRESS_MAX: Final = 1024
REQUESTS_IN_FLIGHT_MAX: Final = 1024  # per worker; more are answered 503 SlowDown

# -- metadata ----------------------------------------------------------------------------------------------------------
BATCH_ROWS_MAX: Final = 256
BATCH_QUEUE_ROWS_MAX: Final = 8192  # waiting rows of one coalescer; beyond it callers get SlowDown
DATABASE_WAIT_S: Final = 10.0  # how long a request waits for a database that is restarting before it gets 503
STATEMENT_TIMEOUT_S: Final = 30.0
SESSION_LEASE_S: Final = 30.0
SESSION_RENEW_S: Final = 10.0
CATALOG_FRESH_S: Final = 1.0
REGIONAL_CONNECTIONS_MAX: Final = 3  # per worker

# -- background --------------------------------------------------------------------------------------------------------
GC_GRACE_S_DEFAULT: Final = 6 * 3600.0
DOWNLOAD_S_MAX: Final = 4 * 3600.0  # the longest GET that is still sure to find its shards
DRAIN_S: Final = 30.0
READY_EVERY_S: Final = 2.0
READY_CHECK_TIMEOUT_S: Final = 1.0
READY_STALE_S: Final = 10.0
WORKER_RESTART_BACKOFF_S_MAX: Final = 10.0

# -- node --------------------------------------------------------------------------------------------------------------
DRIVES_MAX: Final = 64  # per node; each has its own segments and threads
SECRET_CHARS_MIN: Final = 32
WORKER_HEALTHY_S: Final = 30.0  # a child that lived this long starts its backoff from the beginning again
START_S_MAX: Final = 60.0  # how long a child may take until it says that it serves
STOP_MARGIN_S: Final = 5.0  # beyond the drain time, before a child that does not stop is killed
CHANNEL_FRAME_BYTES_MAX: Final = 16 * MIB  # one message between processes; the largest is a metrics snapshot
CHANNEL_PENDING_MAX: Final = 8192  # calls of one process waiting for an answer; beyond it SlowDown
CHANNEL_CALL_S: Final = 15.0  # longer than DATABASE_WAIT_S, so that the other side's own error arrives
CHANNEL_RECONNECT_S: Final = 0.2
CATALOG_PUSH_S: Final = 0.25  # how often the background process tells the workers that it has read the change log
CATALOG_WAIT_S: Final = 5.0  # how long a request waits for a fresh catalog before 503
CATALOG_ROWS_MAX: Final = 20_000  # cached rows of one kind in one worker
INVALIDATE_ACK_S: Final = 0.5  # how long creating or deleting a bucket waits for the other workers to forget its row
HEARTBEAT_S: Final = 0.5  # how often a worker reports itself, and how often its loop's lag is sampled
LOOP_LAG_S_MAX: Final = 1.0  # a loop that was late by more than this is not responsive
METRICS_SERIES_MAX: Final = 2000  # label sets of one metric; more share one named `_other`
METRICS_PULL_S: Final = 1.0  # how long a scrape waits for a worker's numbers

assert INLINE_BYTES_MAX < COPIES_BYTES_MAX < SEGMENT_SHARD_BYTES_MAX < STRIPE_BYTES <= SEGMENT_BYTES
assert GC_GRACE_S_DEFAULT > DOWNLOAD_S_MAX, "a GET must not outlive the shards it reads"
assert SESSION_RENEW_S * 2 < SESSION_LEASE_S
assert IDLE_TIMEOUT_S > 60
assert BUFFER_POOL_BYTES_MAX >= 64 * STRIPES_IN_FLIGHT * STRIPE_BYTES
assert READY_STALE_S > READY_EVERY_S + READY_CHECK_TIMEOUT_S
assert CATALOG_PUSH_S * 2 <= CATALOG_FRESH_S
assert CHANNEL_CALL_S > DATABASE_WAIT_S
assert HEARTBEAT_S < LOOP_LAG_S_MAX < READY_STALE_S
