"""Every bound in Anvil, with its reason. The relations between bounds are asserted in `tests/unit/base/test_limits.py`.

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
BUCKET_NAME_CHARS_MAX: Final = 63
OBJECT_BYTES_MAX: Final = 5 * TIB
PUT_BYTES_MAX: Final = 5 * GIB  # one PutObject, UploadPart or CopyObject
PART_BYTES_MIN: Final = 5 * MIB  # every part but the last
PART_NUMBER_MAX: Final = 10_000
LIST_KEYS_MAX: Final = 1000
DELETE_KEYS_MAX: Final = 1000
USER_METADATA_BYTES_MAX: Final = 2 * KIB
USER_METADATA_NAMES_MAX: Final = 80  # an answer over S3 has a header for each: HTTP clients take about 100 in all, Python's too
SYSTEM_METADATA_BYTES_MAX: Final = (
    8 * KIB
)  # S3's bound on the head of a PUT: what a message says must fit into the head of an answer
PRESIGNED_S_MAX: Final = 7 * 24 * 3600
CLOCK_SKEW_S_MAX: Final = 15 * 60
BUCKETS_PER_TENANT_MAX: Final = 1000
LIST_BUCKETS_MAX: Final = 10_000  # ListBuckets max-buckets

# -- data path ---------------------------------------------------------------------------------------------------------
STRIPE_BYTES: Final = 1 * MIB  # plaintext per stripe: big enough to amortise a job, small enough for 64 uploads in 400 MiB
INLINE_BYTES_MAX: Final = 2 * KIB - 1  # objects under 2 KiB live in their metadata row
COPIES_BYTES_MAX: Final = 64 * KIB - 1  # objects under 64 KiB are stored as 1+m copies
SEGMENT_SHARD_BYTES_MAX: Final = 256 * KIB  # a shard up to this goes into a segment, a larger one into a file of its own
SEGMENT_BYTES: Final = 64 * MIB
CODE_K_MAX: Final = 16
CODE_M_MAX: Final = 8
SPARE_DRIVES: Final = 2  # a partition lists k+m+2 drives
STRIPES_IN_FLIGHT: Final = 3  # per upload or download: one at the socket, the others between it and the drives
BUFFER_POOL_BYTES_MAX: Final = 224 * MIB  # stripe buffers of one worker; who finds none waits, so memory stays bounded
STRAGGLER_S: Final = 5.0  # how long a writer waits for the slowest drives once the quorum is durable
READ_SPARE_AFTER_S: Final = 0.5  # a drive slower than this is doubled by a spare
OPEN_PATIENCE_S: Final = 0.5  # a reader looks on other drives while one takes longer than this to find a shard
DAMAGE_REMEMBERED: Final = 4096  # damaged shards a worker has reported and will not report again
MANIFEST_PARTS_CACHED: Final = 40_000  # part rows of completed uploads a worker remembers (they never change)
MANIFEST_FRESH_S: Final = 600.0  # ... but which blobs they are in: blobs that are exchanged stay as long as garbage does
BUFFER_WAIT_S: Final = 10.0  # how long a request waits for stripe buffers before it is told to slow down
BUFFER_COLLECT_S: Final = (
    5.0  # the garbage collector is asked for buffers once in that time, where there are no others: some 30 ms
)
BUFFER_WAITERS_MAX: Final = 2048  # requests waiting for them in one worker; two per request in flight
NATIVE_JOBS_MAX: Final = 8192  # jobs of one thread pool in flight; their buffers are bounded by the buffer pool
INLINE_JOB_BYTES_MAX: Final = 64 * KIB  # native jobs up to this size run on the event loop's thread (about 50 us)

# -- local disk --------------------------------------------------------------------------------------------------------
SEGMENT_FIRST_BYTES: Final = 4 * MIB  # a writer's first segment, quadrupled up to SEGMENT_BYTES: quick to fill with zeros
SEGMENT_ZERO_BYTES: Final = 4 * MIB  # zeros written and flushed at a time, so that commits get in between
APPEND_BATCH_RECORDS: Final = 256  # three buffers each stay under IOV_MAX (1,024)
APPEND_BATCH_BYTES: Final = 4 * MIB  # bounds the latency that one commit adds to the next
APPEND_QUEUE_RECORDS: Final = 4096  # appends waiting on one drive; beyond it callers get SlowDown
COMPACT_BATCH_BYTES: Final = 1 * MIB  # records a compaction holds in memory and hands over at a time
RECORD_HEADER_BYTES_MAX: Final = 1216  # fixed part, longest key, checksum, aligned (shards/format.py)
FOOTER_BYTES_MAX: Final = 64 * KIB  # attributes are bounded by HEADER_BYTES_MAX; what is longer is not a footer
OPEN_READ_BYTES: Final = 80 * KIB  # a record up to this is read whole when it is opened: one pread per small GET
READ_INLINE_BYTES_MAX: Final = 260 * KIB  # a frame of a 4+2 stripe out of the page cache: 40 us, a trip to a thread costs 155
DRIVE_FLOOR_BYTES: Final = 256 * MIB  # free space that writes leave untouched, so that recovery and the index can work
DRIVE_PROBE_S: Final = 2.0  # how often a drive looks whether its folder is there and how full it is
DRIVE_FILES_OPEN_MAX: Final = 256  # cached descriptors per drive and process
INDEX_MAP_BYTES: Final = 256 * GIB  # address space of one drive's index (a sparse file): about 2 * 10^9 small shards
INDEX_PAGE_ENTRIES: Final = 256  # entries per index transaction of scans, recovery and compaction, so that commits get in between
LEFTOVER_YOUNG_S: Final = (
    10.0  # an empty file without a lock is somebody's who is about to lock it, which takes no time, for so long
)
INDEX_CHECK_START_S: Final = (
    0.5  # per drive: a process that starts where one died reads the index; a longer check goes on beside it
)
COMPACT_DEAD_SHARE: Final = 0.5  # sealed segments with more dead bytes than this are rewritten
SCAN_WINDOW_BYTES: Final = 1 * MIB
DRIVE_THREADS: Final = 2  # of each drive in each process: one may wait for a flush while the other reads
DRIVE_CALL_THREADS: Final = 2  # the same, of Python, for upkeep: a scan or recovery may be long, a probe must get in between
DRIVE_STALLED_S: Final = 10.0  # a drive whose oldest job takes longer is left alone until its jobs come back
DRIVE_FLUSH_BYTES: Final = (
    16 * MIB
)  # a large shard is flushed each time it grew by this: no flush takes as long as a hang, nor do 16 at once (26 MB/s)

# -- HTTP --------------------------------------------------------------------------------------------------------------
HEADER_BYTES_MAX: Final = 16 * KIB  # request line and header fields together (8 KiB of fields beside a long presigned target)
HEADER_FIELDS_MAX: Final = 100
HEADER_TIMEOUT_S: Final = 20.0
TLS_HANDSHAKE_S: Final = 20.0  # from accepting a socket to the end of its handshake
TLS_LOOK_S: Final = 5.0  # how often the files of the certificate are looked at
TLS_READ_BYTES: Final = 128 * KIB  # one read from a socket with TLS, still encrypted
TLS_FIRST_READ_BYTES: Final = 17 * KIB  # the same while little content comes: a record, or 600 changes of keys, which take 6 ms
TLS_SLICE_BYTES: Final = 64 * KIB  # encrypted at a time: each connection keeps a buffer of that size
TLS_JOIN_BYTES: Final = 32 * KIB  # pieces of an answer under this are joined before they are encrypted
TLS_REPLY_BYTES_MAX: Final = 64 * KIB  # what TLS itself (key updates, refused renegotiations) may answer on one connection
H2_STREAMS_SHOWN: Final = 32  # SETTINGS_MAX_CONCURRENT_STREAMS: few, so that a proxy opens connections to other workers too
H2_STREAMS_MAX: Final = 256  # served all the same: gRPC clients show a refused stream to the application
H2_WINDOW_BYTES: Final = 64 * KIB  # what a stream may send before somebody reads it; held in memory
H2_READ_WINDOW_BYTES: Final = 1 * MIB  # and once somebody does
H2_WIDE_STREAMS_MAX: Final = 64  # of one worker; the others go on with the small window
H2_CONNECTION_WINDOW_BYTES: Final = 16 * MIB  # never the limit: a stream that is not read must not hold up the others
H2_BATCH_BYTES: Final = 1 * MIB  # of frames, for one system call
H2_FREE_ACTIONS_MAX: Final = (
    1000.0  # resets, pings, settings, priorities, empty frames, dropped fields of a connection in a burst ...
)
H2_FREE_ACTIONS_PER_S: Final = 33.0  # ... and for long
GRPC_MESSAGE_BYTES_MAX: Final = 4 * MIB  # of a request, as grpcio's own default; also after decompression
GRPC_SMALL_MESSAGE_BYTES: Final = 8 * KIB  # taken without asking for room; who has no token may send no larger ones
GRPC_PARSED_FACTOR: Final = 32  # bytes of memory for each byte of a message that is nothing but empty submessages
GRPC_MESSAGES_BYTES_MAX: Final = 256 * MIB  # memory of one worker for larger messages, parsed; beyond it SlowDown
GRPC_STRANGERS_WAITING_MAX: Final = (
    128  # calls without a token, of one worker, whose message is being waited for; beyond it SlowDown
)
GRPC_SHOWN_METHOD_CHARS_MAX: Final = 256  # of a path, in the message that there is no such method
GRPC_DEADLINE_S_MAX: Final = 30 * 24 * 3600.0  # what a client may ask for; a longer one counts as this
GRPC_WATCHES_MAX: Final = 64  # Health.Watch calls of one worker: anybody may begin one, and each lasts until its client ends it
GRPC_WATCH_EVERY_S: Final = 0.5  # how soon they see a change
GRPC_UPLOAD_READ_BYTES: Final = 64 * KIB  # read at a time where messages are small
GRPC_DIRECT_BYTES_MIN: Final = 16 * KIB  # a chunk with more left than this is received where it belongs
IDLE_TIMEOUT_S: Final = 75.0  # proxies keep upstream connections for 60 s
BODY_BYTES_PER_S_MIN: Final = 1 * KIB  # averaged over BODY_STALL_S
BODY_STALL_S: Final = 30.0
XML_BODY_BYTES_MAX: Final = 1 * MIB
COMPLETE_BODY_BYTES_MAX: Final = 4 * MIB  # CompleteMultipartUpload with 10,000 parts and a checksum each
XML_DEPTH_MAX: Final = 8  # the deepest request S3 knows has 4
XML_ELEMENTS_MAX: Final = 100_000  # 10,000 parts with number, etag and checksums
ANSWER_KEEPALIVE_AFTER_S: Final = 10.0  # a copy or a completion that runs longer answers 200 and white space meanwhile
ANSWER_KEEPALIVE_EVERY_S: Final = 10.0  # proxies give up on a silent upstream after 60 s
DELETES_IN_FLIGHT_MAX: Final = 128  # of one DeleteObjects request
CHUNK_HEADER_BYTES_MAX: Final = 1 * KIB  # aws-chunked: one chunk-size line with its signature
TRAILER_BYTES_MAX: Final = 4 * KIB
DRAIN_BODY_BYTES_MAX: Final = (
    9 * MIB
)  # read and dropped for an early error, so that the answer is not lost: the SDKs' part of 8 MiB, framed
WRITE_HIGH_WATER_BYTES: Final = 1 * MIB
NEAR_SEND_BUFFER_BYTES: Final = 512 * KIB  # SO_SNDBUF towards this machine itself: doubled by the kernel, so one stripe
CONNECTIONS_MAX: Final = 4096  # per worker
CONNECTIONS_PER_ADDRESS_MAX: Final = 1024
REFUSED_CONNECTIONS_MAX: Final = 256  # beyond the caps, this many are kept until they were told 503; more are cut at once
READ_BYTES: Final = 64 * KIB  # one read with no better place for the bytes; also how far a small body is read ahead
DECODE_BYTES: Final = 128 * KIB  # one step of aws-chunked decoding on the event loop: under 0.1 ms even with SHA-256
JOIN_BYTES_MAX: Final = 64 * KIB  # an answer up to this is joined with its head into one write
PRESSED_BYTES_PER_S_MIN: Final = 16 * KIB  # instead of 1 KiB/s while requests wait for stripe buffers that slow clients hold
PRESSED_STALL_S: Final = 5.0  # what that is averaged over: short enough for those who wait
WRITE_STALL_S: Final = 60.0  # a client that reads its answer slower than the minimum rate for this long is cut: it holds stripes
LINGER_S: Final = 5.0  # how long a closing connection still listens, so that its last answer is not lost to a reset
HALF_CLOSE_S: Final = 2.0  # a client that shut its sending side and is still unanswered after this is taken for gone
SWEEP_S: Final = 1.0  # granularity of all connection time-outs
ACCEPT_BACKLOG: Final = 1024
REQUESTS_IN_FLIGHT_MAX: Final = 1024  # per worker; more are answered 503 SlowDown

# -- gRPC --------------------------------------------------------------------------------------------------------------
GRPC_ERROR_MESSAGE_BYTES_MAX: Final = 768  # three times that in `grpc-message`, where every byte may be percent-encoded
GRPC_ERROR_FIELD_BYTES_MAX: Final = KEY_BYTES_MAX  # of an error's field; what is longer is cut
GRPC_ERROR_FIELDS_BYTES_MAX: Final = 2 * KIB  # of all of them with their names; those that do not fit are left out
GRPC_RETRY_DELAY_S: Final = 1  # what UNAVAILABLE asks clients to wait

# -- authentication ----------------------------------------------------------------------------------------------------
SIGNING_KEYS_MAX: Final = 4096  # cached per worker, about 300 bytes each; a missing one costs four HMACs (5 us)
SIGNERS_REMEMBERED: Final = 4096  # parsed credentials of Authorization headers, of at most SIGNER_BYTES_REMEMBERED: 7 MiB
SIGNER_BYTES_REMEMBERED: Final = 512
AMZ_TIMES_REMEMBERED: Final = 256  # request times as seconds: all of a second are alike
POLICY_SETS_MAX: Final = 4096  # compiled rights cached per worker, one per app in use
ACCESS_TOKEN_S: Final = 3600  # a stolen token ends by itself; a secret reset ends it at once
ACCESS_TOKEN_SKEW_S: Final = 60  # the clock of the node that issued a token may be ahead by so much
ACCESS_TOKEN_BYTES_MAX: Final = 1 * KIB  # with its scheme; ours have under 500 with the longest access key
ACCESS_TOKENS_CACHED_MAX: Final = 4096  # verified tokens a worker remembers, about 500 bytes each; another one costs 35 us
ACCESS_KEY_CHARS_MAX: Final = 128  # S3's own; a longer client id is nobody's
APP_NAME_CHARS_MAX: Final = 256  # an app named over the API; a longer name is nobody's
RESOURCE_BYTES_MAX: Final = BUCKET_NAME_CHARS_MAX + 1 + KEY_BYTES_MAX + 1  # of a right: bucket, slash, key, star
RIGHTS_PER_APP_MAX: Final = 1000  # granted over the API; every worker holds the rights of the apps in use, and looks through them
BUCKET_POLICY_GRANTS_MAX: Final = 1000  # of one PutBucketPolicy
BUCKET_POLICY_BYTES_MAX: Final = 20 * KIB  # the same; S3's own bound on a bucket policy
BUCKET_RIGHTS_BYTES_MAX: Final = 2 * MIB  # of one GetBucketPolicy: gRPC clients take messages of 4 MiB
POLICY_PUT_TRIES_MAX: Final = 5  # of a PutBucketPolicy without a condition that others overtake
REFUSALS_AUDITED_MAX: Final = 60  # of one app per minute: nobody without a right fills the database with refusals
REFUSED_APPS_MAX: Final = 4096  # apps whose refusals are being counted
PUBLIC_ENDPOINTS_MAX: Final = 16  # each is one more signature tried before a request is refused

# -- metadata ----------------------------------------------------------------------------------------------------------
BATCH_ROWS_MAX: Final = 256
BATCH_QUEUE_ROWS_MAX: Final = 8192  # waiting rows of one coalescer; beyond it callers get SlowDown
DATABASE_WAIT_S: Final = 10.0  # how long a request waits for a database that is restarting before it gets 503
STATEMENT_TIMEOUT_S: Final = 30.0
SESSION_LEASE_S: Final = 30.0
SESSION_RENEW_S: Final = 10.0
SESSION_ROTATE_S: Final = (
    24 * 3600.0
)  # shards of deleted blobs that a drive brings back are known for orphans at the latest after this ...
SESSION_RETIRE_S: Final = 24 * 3600.0  # ... and this: how long one write may take, at 60 KB/s for the largest
CATALOG_FRESH_S: Final = 1.0
REGIONAL_CONNECTIONS_MAX: Final = 3  # per worker
BATCH_SCAN_ROWS_MAX: Final = 1024  # waiting rows looked at to fill one batch (rows of a key already in it are passed over)
BATCH_RETRIES_MAX: Final = 5  # of a batch that lost a serialization or deadlock race (SQLSTATE class 40)
CONNECT_TIMEOUT_S: Final = 5.0
MIGRATION_LOCK_S: Final = 1.0  # how long a migration waits for a table at a time, and everybody else behind it
MIGRATION_WAIT_S: Final = 600.0  # then the start is given up
CONNECT_BACKOFF_S_MAX: Final = 1.0
DATABASE_START_S: Final = 300.0  # embedded PostgreSQL, crash recovery included
DATABASE_STOP_S: Final = 30.0
CATALOG_ROWS_MAX: Final = 20_000  # cached apps, buckets and known-absent names, each
CHANGE_LOG_KEEP_S: Final = 3600.0  # a cache that has not read the change log for so long starts from nothing
USAGE_FOLD_ROWS_MAX: Final = 50_000  # delta rows folded by one statement
BUCKET_CHANGE_STALE_S: Final = 30.0  # a bucket creating or deleting for so long lost its worker: the background resumes it
DROPPED_BUCKETS_KEEP_S: Final = (
    30 * 24 * 3600.0
)  # a creator that stood still for longer may leave a fence behind that nobody needs

# -- client library and CLI --------------------------------------------------------------------------------------------
CLIENT_CHUNK_BYTES: Final = 1 * MIB  # of one message: the server takes 4 MiB, and larger ones only cost memory
CLIENT_MESSAGE_BYTES_MAX: Final = 16 * MIB  # answers: a page of 1,000 keys is 2 MiB at most, a policy of many grants may be more
CLIENT_CALL_S: Final = 60.0  # deadline of a unary call; the server itself gives up on a database after DATABASE_WAIT_S
CLIENT_LONG_CALL_S: Final = 3600.0  # of a copy or a completion: up to 5 GiB are rewritten before the answer
CLIENT_STALL_S: Final = 120.0  # without a byte either way, or an answer after the last: longer than any patience of the server
CLIENT_CONNECT_S: Final = 10.0  # one attempt to connect: an address that swallows packets must not hold a command for long
CLIENT_ATTEMPTS: Final = 4  # of a call that may be repeated, the first included
CLIENT_BACKOFF_S: Final = 0.2  # before the second attempt, doubled for each further one; a random share of it is slept
CLIENT_BACKOFF_S_MAX: Final = 5.0
CLIENT_KEEPALIVE_S: Final = 30.0  # pings while a call is open: proxies forget silent connections after 60 s
CLIENT_KEEPALIVE_ANSWER_S: Final = 20.0
CLIENT_TOKEN_MARGIN_S: Final = 60.0  # a token is renewed so long before it expires: clocks differ, and calls take time to arrive
CLIENT_PART_BYTES: Final = 16 * MIB  # of a multipart upload, while 10,000 of them suffice
CLIENT_MULTIPART_BYTES: Final = 32 * MIB  # what is at least this large goes up in parts
CLIENT_RANGE_BYTES: Final = 16 * MIB  # of one of several downloads of an object side by side
CLIENT_RANGED_BYTES: Final = 32 * MIB  # what is at least this large comes down so
CLIENT_PARALLEL: Final = 4  # parts or ranges of one object, or objects of one command, under way at a time
CLIENT_STREAM_BYTES_MAX: Final = 128 * MIB  # parts of a stream held in memory until they are acknowledged, above one
CLIENT_STREAM_PARTS: Final = 1000  # of a stream of unknown length: after so many parts their size is doubled ...
CLIENT_STREAM_PART_BYTES_MAX: Final = 2 * GIB  # ... up to this: with it 10,000 parts hold the largest object
CLIENT_BLOCKS_AHEAD: Final = 4  # read from standard input before somebody takes them
CLIENT_PROFILE_FILE_BYTES_MAX: Final = 1 * MIB  # a profile is 200 bytes: what is longer is another file

# -- anvil bench -------------------------------------------------------------------------------------------------------
BENCH_PROCESSES_MAX: Final = 256
BENCH_CONNECTIONS_MAX: Final = 16_384  # of one run; ports of one address end at 28,000
BENCH_DURATION_S_MAX: Final = 86_400.0  # each second of each operation is kept, about 2 KiB
BENCH_COUNT_MAX: Final = 1_000_000_000
BENCH_OBJECTS_MAX: Final = 100_000_000  # 28 bytes of a process for each object that it knows
BENCH_PREFIXES_MAX: Final = 100_000
BENCH_READ_BYTES: Final = 256 * KIB  # of one read from a socket: one buffer in each process
BENCH_PIECE_BYTES: Final = 256 * KIB  # of a body, written at a time
BENCH_JOIN_BYTES: Final = 64 * KIB  # a body up to this is joined with its head into one write
BENCH_PATTERN_BYTES: Final = 4 * MIB - 3  # a prime: no two aligned stripes of a large object are the same
BENCH_HEAD_BYTES_MAX: Final = 64 * KIB  # of an answer
BENCH_BODY_BYTES_MAX: Final = 16 * MIB  # of an answer that is kept: a page of keys, an error
BENCH_CONNECT_S: Final = 10.0
BENCH_BACKOFF_S: Final = 0.05  # before a broken connection is made anew, doubled each time ...
BENCH_BACKOFF_S_MAX: Final = 1.0
BENCH_LOST_S: Final = 10.0  # a process none of whose requests was answered for so long gives up
BENCH_SWEEP_S: Final = 0.5  # how often a process looks for requests that take too long
BENCH_START_MARGIN_S: Final = 0.25  # from the order to the first request, so that all processes begin at once
BENCH_LATENCY_NS_MAX: Final = 3_600_000_000_000  # what takes longer than an hour counts as an hour
BENCH_MESSAGE_BYTES_MAX: Final = 1 * GIB  # of a process to the command: a day of seconds
BENCH_REPORT_BYTES_MAX: Final = 1 * GIB
BENCH_SHOWN_MAX: Final = 10  # examples of damaged objects in a report
BENCH_ERROR_KINDS_MAX: Final = 100  # told apart by one process; more are counted as `other`
BENCH_CLEAN_TRIES: Final = 3  # of a page that is removed
BENCH_SATURATED: Final = 0.8  # share of a core from which a client's process is called saturated
BENCH_BUCKETS_MIN: Final = 5  # seconds: fewer say nothing about noise

# -- backup ------------------------------------------------------------------------------------------------------------
PACK_BYTES: Final = 256 * MIB  # a pack is closed once it is as long: what an interrupted backup has to copy again, at most
PACK_HEAD_BYTES_MAX: Final = 64 * KIB  # what an entry says of its blob: key, attributes and checksums have bounds of their own
PACK_WRITE_BYTES: Final = 1 * MIB  # gathered before they are written, and read at a time
INDEX_READ_ENTRIES: Final = 128  # of a pack's index read at a time, and kept packed while a walk is on: 4 KiB ...
INDEX_READ_BYTES_MAX: Final = 64 * MIB  # ... of all packs; of more than 16,000 (4 TiB) less is read at a time ...
INDEX_READ_ENTRIES_MIN: Final = 8  # ... down to this: 256 bytes beside the 1.5 KiB that each pack takes in a walk anyway
LISTED_READ_ENTRIES: Final = 4096  # of a snapshot's list of blobs in memory
LISTED_ROWS: Final = 5000  # fetched at a time while the list is being made
BACKUP_BYTES_PER_S: Final = 256 * MIB  # of blobs, copied out of or back to the drives
BACKUP_STRIPES_AHEAD: Final = 16  # being read before the one that is being written
RESTORE_BLOBS_IN_FLIGHT: Final = 8  # being written back at a time
RESTORE_SUSPECTS_MAX: Final = 100_000  # blobs with damage met, by id (8 MiB); with more, everything that is there is read
BACKUP_HOLD_LEASE_S: Final = 900.0  # how long a backup that died keeps holding removals
BACKUP_HOLD_RENEW_S: Final = 60.0
BACKUP_STALLED_S: Final = 1800.0  # a backup in which nothing was read or written for so long is given up: it holds all removals
JOB_CANCEL_S: Final = 5.0  # how long a job that is given up may take for each of its steps back ...
JOB_CANCEL_STEPS: Final = 6  # ... before it is left where it hangs
BACKUP_EXAMPLES: Final = 20  # blobs that could not be copied, written back or found, by name
DUMP_SAID_BYTES_MAX: Final = 8 * KIB  # of what pg_dump and pg_restore say, kept for the error message
RESTORE_PIPE_BYTES: Final = 64 * KIB  # from pg_restore to psql at a time; what it sets first is in the first of these
RECOVERY_LOOK_S: Final = 10.0  # how often a node asks whether its region is in recovery mode
RECOVERY_WARN_S: Final = 3600.0  # how often it says so in its log

# -- background --------------------------------------------------------------------------------------------------------
COLLECT_EVERY_S: Final = 5.0
COLLECT_BATCH: Final = 500
COLLECT_TRIES: Final = 3  # of a row that a drive of another node fails, without being away
COLLECT_TRIED_MAX: Final = 10_000  # such rows remembered
COLLECT_BLOBS_IN_FLIGHT: Final = 4  # being unlinked at a time: keeps every drive busy, and leaves the queue to requests
HOLD_REFRESH_S: Final = 1.0  # how often a node asks whether a backup holds removals
LEAVING_LOOK_S: Final = 10.0  # how often drives that no layout names are looked at, until they are empty
HOLD_FRESH_S: Final = 3.0  # an answer older than this counts as "held"
HOLD_SETTLE_S: Final = (
    5.0  # how long setting the hold takes: no process goes by an older answer then, and unlinks under way are over
)
REPAIR_BATCH: Final = 64
REPAIR_BLOBS_IN_FLIGHT: Final = 2  # one being read while the other is written; each holds k+m frames of one stripe
REPAIR_RETRY_S: Final = 10.0  # a debt that cannot be paid now (a drive away) waits so long, so that others get their turn
DUE_LOOKED_AT: Final = 10_000  # rows of garbage and of debts looked at, to learn which slices have any
UNHEALTHY_COUNTED: Final = 100_000  # blobs in debt that the gauge counts exactly
GARBAGE_COUNTED: Final = 100_000  # blobs in the outbox that fsck counts exactly
FSCK_EXAMPLES: Final = 20  # of each kind of trouble that fsck names
FSCK_OPENS_IN_FLIGHT: Final = 16  # blobs of rows being looked for at a time
FSCK_PARTITIONS_AT_ONCE: Final = 64  # looked at with one answer of each drive as to what it holds anything of
FSCK_BYTES_PER_S: Final = 256 * MIB  # read by a deep check
OWNED_PAGE_ROWS: Final = 1000  # read at a time by who walks all rows that own a blob
UPLOADS_EVERY_S: Final = 600.0  # how often uploads that nobody goes on with are looked for
UPLOADS_EXPIRE_S_DEFAULT: Final = 7 * 24 * 3600.0  # longer than any upload that is still being worked on pauses
UPLOADS_EXPIRED_MAX: Final = 100  # aborted by one statement: each takes up to 10,000 parts with it
SESSIONS_EVERY_S: Final = 5.0  # how often leases are looked at: a dead worker's leftovers are collected soon after
SURVEY_REMOVAL_TRIES: Final = 3  # of what a busy node refuses because it came late: the next look is a sweep away
SWEEP_EVERY_S: Final = 3600.0
SWEEP_BUSY_SHARE: Final = 0.05  # of the background process's time; on a big node a sweep takes longer rather than costing more
SURVEY_BUSY_SHARE: Final = 0.5  # the same for a survey with a reason: a drive returned or was replaced, an operator asked
SURVEY_OWNERS_MAX: Final = 2000  # blobs asked about in one statement
LOOK_SHARDS: Final = 4000  # met in one look, about: so many partitions are looked at together ...
LOOK_PARTITIONS_MAX: Final = 64  # ... but not more than these, nor more than ...
LOOK_S: Final = 0.5  # ... take so long, since what was met is acted on only then
INVENTORY_DRIVES_IN_FLIGHT: Final = 8  # asked at a time what they hold of a partition
COMPACT_EVERY_S: Final = 60.0
SCRUB_PASS_S: Final = 14 * 24 * 3600.0  # one scrub of everything takes about this long: bit rot is slow, disks are busy
SCRUB_FASTEST_PARTITION_S: Final = 0.05
FOLD_USAGE_EVERY_S: Final = 10.0
TASK_BACKOFF_S_MAX: Final = 60.0
TASK_LEASE_S: Final = 30.0  # of a claimed task, renewed at a third: whoever dies is replaced after this
TASK_POLL_S_MIN: Final = 1.0  # between two looks into the queue, at random up to the next: nodes do not come at once ...
TASK_POLL_S_MAX: Final = 3.0  # ... and a notification hastens them
TASKS_KEEP_S: Final = 3600.0  # completed ones, for operators to see
WORK_SLICES: Final = 8  # garbage and debts are worked off in so many pieces, each by one node at a time
TASKS_AT_ONCE: Final = 4  # of one node: some wait for disks of others
MOVES_AT_ONCE: Final = 2  # ... and slices of a layout, beside these: they share one throttle, so more gain nothing
AUDIT_LISTED_MAX: Final = 10_000  # entries of one `anvil admin audit`
LOG_SLOW_S_DEFAULT: Final = 2.0  # a request that takes longer, without its client, is worth a line
GC_GRACE_S_DEFAULT: Final = 6 * 3600.0
METADATA_DUMP_S_DEFAULT: Final = 3600.0  # what was overwritten since the last dump is still on the drives: shorter than the grace
METADATA_DUMPS_KEPT: Final = 3  # the newest may be torn or damaged
METADATA_DUMP_LOOK_S: Final = 10.0  # how often the leader looks whether one is due
DUMP_PIECE_BYTES: Final = 8 * MIB  # of rows in one object of a dump: what its writer and reader hold in memory, twice
DUMP_STORED_BYTES_MIN: Final = 4 * KIB  # an object of a dump is never inline: the row would be lost with the database
DUMP_MANIFEST_BYTES_MAX: Final = 64 * MIB  # 100 bytes for each piece: dumps of some 5 TB of rows
ENDED_SESSIONS_KEEP_S: Final = 30 * 86400.0  # of ended sessions it is known for so long that they committed nothing later
SALVAGE_SLACK_S: Final = 600.0  # clocks of nodes and database differ, and a blob is stored some time before its commit ends
SALVAGE_ROWS: Final = 500  # candidates written, or accepted, by one statement
SALVAGE_LISTED_MAX: Final = 1000  # candidates shown at a time
SALVAGE_LOOK_S: Final = 0.5  # how often a command looks how far a dump or a rebuild is
DOWNLOAD_S_MAX: Final = 4 * 3600.0  # the longest GET that is still sure to find its shards
DRAIN_S: Final = 30.0
READY_EVERY_S: Final = 2.0
READY_CHECK_TIMEOUT_S: Final = 1.0
READY_STALE_S: Final = 10.0
HEALTH_S: Final = 3.0  # how long `anvil health` waits for an answer that costs the node nothing
HEALTH_ANSWER_BYTES_MAX: Final = 64 * KIB  # what it reads of that: a line for each check and drive
WORKER_RESTART_BACKOFF_S_MAX: Final = 10.0

# -- cluster -----------------------------------------------------------------------------------------------------------
REPAIR_DELAY_S_DEFAULT: Final = (
    600.0  # a node down for longer has its shards rebuilt elsewhere: a reboot or an upgrade takes less
)
NODE_LEASE_S: Final = 6.0  # a node that has not renewed for so long is down
NODE_RENEW_S: Final = 2.0
LEADER_SILENT_S: Final = 20.0  # a leader that asks its database nothing for so long is one no more
VIEW_EVERY_S: Final = 1.0  # how often a node reads nodes, drives and layouts; a notification hastens it
DRIVES_TELL_S: Final = 30.0  # how often a node writes down how much room its drives have; whether they can be read, at once
PEER_PING_S: Final = 1.0  # how often a process asks each peer how its drives are ...
PEER_PING_IDLE_S: Final = 5.0  # ... and how often a worker that needs it for nothing
PEER_STALLED_S: Final = 3.0  # a peer that leaves a question unanswered for so long is left alone until it answers one
PEER_CONNECT_S: Final = 2.0
PEER_MESSAGE_BYTES: Final = STRIPE_BYTES + 4 * KIB  # of frames of a large shard in one message: one of a stripe that is not cut
PEER_BATCH_READ_BYTES_MAX: Final = (
    320 * KIB
)  # read in a batch with others: a frame of a 4+2 stripe; what is longer comes as a stream
PEER_BATCHES_IN_FLIGHT: Final = 2  # of one drive and kind: while one is on its way, the other is being done
PEER_STREAMS_MAX: Final = 192  # large shards and scans between two processes at a time; beyond it SlowDown
PEER_CALLS_MAX: Final = 16_384  # being served on the cluster port of one worker; what they may hold is bounded by its buffers
PEER_CALLS_PER_NODE_MAX: Final = (
    2048  # of those, of one node, pings aside: each of its processes has a connection; beyond it SlowDown
)
PEER_ANSWER_S: Final = 2 * DRIVE_STALLED_S + PEER_STALLED_S  # a drive of a peer that answers says itself when it is stalled
PEER_LOST_S: Final = 30.0  # a node of which nothing was heard for so long has left its unfinished shards behind
PEER_HEAP_PIECE_BYTES: Final = 8 * MIB  # what grpcio allocates up to this comes from the heap ...
PEER_HEAP_SPARE_BYTES: Final = 16 * MIB  # ... which keeps so much when it is freed: a large shard costs a third of the time
PEER_RECONNECT_S_MIN: Final = 0.1
PEER_RECONNECT_S_MAX: Final = 1.0
PEER_SCAN_PLACES: Final = 128  # in one message of a scan
PEER_BATCH_BYTES_MAX: Final = 2 * MIB  # of small shards in one message; GRPC_MESSAGE_BYTES_MAX is the wall
PEER_BATCH_OPS_MAX: Final = 256
PEER_QUEUE_OPS_MAX: Final = 4096  # waiting for one drive of a peer; beyond it SlowDown
PEER_BUFFERS_BYTES_MAX: Final = (
    64 * MIB
)  # of one worker, for what other nodes write and read: their own pool, or two nodes could wait for each other's requests
PEERS_DRAIN_S: Final = 5.0  # for calls of other nodes, when a worker ends
PEERS_SETTLE_S: Final = 2.0  # how long a process that starts waits to learn which peers are there
PEER_CALL_SKEW_S: Final = 300.0  # clocks of two nodes may differ by so much
PEER_REMOVAL_S: Final = 2.0  # a removal that was so long on its way is refused: who asked may have gone by an older layout
PEER_CLOCK_S: Final = (
    60.0  # so long the fastest call of a node says how its clock goes; one that was set is met after two of these
)
LAYOUT_SETTLE_S: Final = 3.0  # nodes that come or go within this are one change of layout
LAYOUT_REMIND_S: Final = 10.0  # how often a node that waits for the region's first layout says so
LAYOUT_SLICES: Final = 64  # a change of layout is moved and verified in so many pieces
LAYOUT_HISTORY_MAX: Final = 100  # how many layouts are shown
HOLDINGS_READ_S: Final = 600.0  # how long an operator's command may count what is stored, before a node is given up
MOVE_BYTES_PER_S: Final = 128 * MIB  # read by the movers of a node: half of what a disk gives, an eighth of a 10 Gb/s link
MOVE_BLOBS_IN_FLIGHT: Final = 4  # copied at a time: a copy waits for one disk and then for another
RAISE_EVERY_S: Final = 60.0  # how often the leader looks whether older objects are to be written anew
RAISE_BYTES_PER_S: Final = 64 * MIB  # of plaintext written anew by a higher scheme: nobody waits for it
RAISE_BLOBS_IN_FLIGHT: Final = 2
THROTTLE_STEP_S: Final = 0.005  # what is ahead of its rate by less goes on
TASK_ATTEMPTS_MAX: Final = 10
TASK_RETRY_S_MAX: Final = 3600.0  # a failed task is tried again after attempt^4 seconds, but never later than this
TASK_ERROR_CHARS_MAX: Final = 2000  # of what is kept of the last error
TASK_DEAD_KEEP_S: Final = 30 * 86400.0  # so long an operator may have a task tried again that was given up
TASKS_LISTED_MAX: Final = 1000

# -- node --------------------------------------------------------------------------------------------------------------
DRIVES_MAX: Final = 64  # per node; each has its own segments and threads (DRIVE_THREADS)
SECRET_CHARS_MIN: Final = 32
WORKER_HEALTHY_S: Final = 30.0  # a child that lived this long starts its backoff from the beginning again
START_S_MAX: Final = 60.0  # how long a child may take until it says that it serves
FORK_ANSWER_S: Final = 5.0  # how long the fork server may take until it tells how a child ended
LEAVE_TASKS_S: Final = 1.0  # how long tasks that were cancelled at the end of a start are waited for
STOP_MARGIN_S: Final = 5.0  # beyond the drain time, before a child that does not stop is killed
CHANNEL_FRAME_BYTES_MAX: Final = 16 * MIB  # one message between processes; the largest is a metrics snapshot
CHANNEL_PENDING_MAX: Final = 8192  # calls of one process waiting for an answer; beyond it SlowDown
CHANNEL_CALL_S: Final = 15.0  # longer than DATABASE_WAIT_S, so that the other side's own error arrives
CHANNEL_RECONNECT_S: Final = 0.2
CATALOG_PUSH_S: Final = 0.25  # how often the background process tells the workers that it has read the change log
CATALOG_PAUSE_S: Final = 0.02  # at least so long between two readings, however many changes are notified
CATALOG_WAIT_S: Final = 10.0  # how long a request waits for a background process that restarts, or a fresh catalog, before 503
INVALIDATE_ACK_S: Final = 0.5  # how long creating or deleting a bucket waits for the other workers to forget its row
HEARTBEAT_S: Final = 0.5  # how often a worker reports itself, and how often its loop's lag is sampled
# Objects of requests in flight are not garbage: looking for it among the youngest 700, as Python does by default, finds nothing and took a
# tenth of a PUT. What is in no cycle is freed without the collector, however rarely that runs.
GC_YOUNG_OBJECTS: Final = 20_000  # containers made and not freed before the collector looks at the youngest
GC_GENERATION_RUNS: Final = 20  # runs over one generation before the next older one is looked at
LOOP_LAG_S_MAX: Final = 1.0  # a loop that was late by more than this is not responsive
GAUGES_EVERY_S: Final = 5.0  # how often a node reads what the databases know for the metrics
METRICS_SERIES_MAX: Final = 2000  # label sets of one metric; more share one named `_other`
METRICS_DROPPED_MAX: Final = 100_000  # of these, how many a metric tells apart to count them
METRICS_GATHER_S: Final = (
    10.0  # a background process that has begun waits so long for all workers before it tells a sum without them
)
METRICS_PULL_S: Final = 1.0  # how long a scrape waits for a worker's numbers
