"""Every setting: its name, type, default, bounds and description, as frozen structs with one section per subsystem.

Owns: the declarations, from which the parsers (`base/config.py`) and the reference page (`base/config_reference.py`) are
made. Invariant: each field carries its environment name and a sentence for operators. Not here: reading, and checks that
need several values.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from anvil.base.limits import (
    DOWNLOAD_S_MAX,
    DRAIN_S,
    GC_GRACE_S_DEFAULT,
    LOG_SLOW_S_DEFAULT,
    METADATA_DUMP_S_DEFAULT,
    REPAIR_DELAY_S_DEFAULT,
    SECRET_CHARS_MIN,
    UPLOADS_EXPIRE_S_DEFAULT,
)
from anvil.base.setting_values import Address, parse_address, parse_master_key

REDACTED = "[redacted]"


def _setting(env: str, text: str, *, secret: bool = False, example: str = "", **bounds: Any) -> Meta:
    return Meta(description=text, extra={"env": env, "secret": secret, "example": example}, **bounds)


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The node as a whole: where it keeps its state and how many processes it has."""

    data_dir: Annotated[
        str,
        _setting(
            "ANVIL_DATA_DIR",
            "Folder for everything the node keeps: identity, secrets, the embedded PostgreSQL, and the default drive.",
            example="/var/lib/anvil",
        ),
    ] = "./anvil-data"
    region: Annotated[
        str,
        _setting("ANVIL_REGION", "Region of this node: lower-case letters, digits and dashes.", example="eu-central-1"),
    ] = "us-east-1"
    workers: Annotated[
        int, _setting("ANVIL_WORKERS", "Request worker processes; 0 means one per CPU.", example="4", ge=0, le=256)
    ] = 0
    dev_mode: Annotated[
        bool,
        _setting("ANVIL_DEV_MODE", "Allow short or default secrets and short grace times. Never in production.", example="true"),
    ] = False
    drain_notice_s: Annotated[
        float,
        _setting(
            "ANVIL_DRAIN_NOTICE_S",
            "Seconds after SIGTERM during which /ready answers 503 while requests are still accepted: load balancers notice.",
            example="10",
            ge=0,
            le=300,
        ),
    ] = 5.0
    drain_s: Annotated[
        float,
        _setting(
            "ANVIL_DRAIN_S", "Seconds that requests in flight get to finish when the node stops.", example="60", ge=0, le=3600
        ),
    ] = DRAIN_S

    @property
    def data_path(self) -> Path:
        return Path(self.data_dir)

    @property
    def worker_count(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))


class ApiConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The public port."""

    listen_addr: Annotated[
        str,
        _setting("ANVIL_API_LISTEN_ADDR", "host:port that the API listens on. IPv6 hosts in brackets.", example="0.0.0.0:50051"),
    ] = "127.0.0.1:50051"
    public_addrs: Annotated[
        tuple[str, ...],
        _setting(
            "ANVIL_PUBLIC_API_ADDR",
            "How clients reach this node, where that differs from the listen address: host[:port] or URL, "
            "several separated by commas. Signatures are also tried against these hosts, for proxies that rewrite Host, "
            "and bucket.host addresses a bucket under each that is a name. Clients that ask another region for a bucket of this one are "
            "sent to the first.",
            example="https://s3.example.com",
        ),
    ] = ()
    base_domains: Annotated[
        tuple[str, ...],
        _setting(
            "ANVIL_BASE_DOMAINS",
            "More domains under which buckets are addressed as host names (bucket.s3.example.com), separated by commas.",
            example="s3.example.com",
        ),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...],
        _setting(
            "ANVIL_TRUSTED_PROXIES",
            "Addresses or networks whose X-Forwarded-Host is believed, separated by commas.",
            example="10.0.0.0/8,fd00::/8",
        ),
    ] = ()

    tls_cert: Annotated[
        str,
        _setting(
            "ANVIL_TLS_CERT",
            "PEM file with the certificate chain, the node's own certificate first. With it the API speaks TLS (HTTP/2 and HTTP/1.1 "
            "by ALPN). Changed files are loaded without a restart.",
            example="/etc/anvil/tls/fullchain.pem",
        ),
    ] = ""
    tls_key: Annotated[
        str,
        _setting(
            "ANVIL_TLS_KEY",
            "PEM file with the private key of that certificate, not encrypted.",
            example="/etc/anvil/tls/privkey.pem",
        ),
    ] = ""
    tls_listen_addr: Annotated[
        str,
        _setting(
            "ANVIL_TLS_LISTEN_ADDR",
            "host:port for TLS beside plaintext on ANVIL_API_LISTEN_ADDR. Without it, a certificate makes ANVIL_API_LISTEN_ADDR itself "
            "speak TLS and nothing is served in plaintext.",
            example="0.0.0.0:50443",
        ),
    ] = ""

    @property
    def listen(self) -> Address:
        return parse_address(self.listen_addr)

    @property
    def tls_listen(self) -> Address | None:
        """Where TLS is spoken beside plaintext."""
        return parse_address(self.tls_listen_addr, "ANVIL_TLS_LISTEN_ADDR") if self.tls_listen_addr else None

    @property
    def scheme(self) -> str:
        """Of the listen address."""
        return "https" if self.tls_cert and not self.tls_listen_addr else "http"

    @property
    def public_urls(self) -> tuple[str, ...]:
        """Base URLs under which clients reach the node; the listen address where nothing else is configured."""
        return tuple(addr if "://" in addr else f"{self.scheme}://{addr}" for addr in self.public_addrs or (self.listen_addr,))

    @property
    def announced_url(self) -> str:
        """What clients that ask another region for a bucket of this one are told; empty where the listen address tells nothing."""
        anywhere = self.listen.host in ("0.0.0.0", "::") or self.listen.port == 0  # noqa: S104 - told apart, not bound
        return self.public_urls[0] if self.public_addrs or not anywhere else ""

    @property
    def public_hosts(self) -> tuple[str, ...]:
        """What a client may have signed as Host: the authorities of the configured public addresses."""
        return tuple(urlsplit(url).netloc for url in self.public_urls) if self.public_addrs else ()

    @property
    def bucket_hosts(self) -> tuple[str, ...]:
        """The names of this node, under each of which `bucket.name` is a bucket. One list for authentication, API and the node's own
        paths: where they read a host name differently, a signature for one bucket opens another."""
        return tuple(dict.fromkeys((*self.public_hosts, *self.base_domains)))


class StorageConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Drives and how data is spread over them."""

    drives: Annotated[
        tuple[str, ...],
        _setting(
            "ANVIL_DRIVES",
            "Folders that hold object data, one per disk, separated by commas. Without it, one inside the data directory.",
            example="/mnt/disk1,/mnt/disk2,/mnt/disk3",
        ),
    ] = ()
    scheme: Annotated[
        str,
        _setting(
            "ANVIL_SCHEME",
            "Erasure coding as data+parity. Needs as many drives as both together. "
            "By default chosen by the number of drives: 1 gives 1+0, 2 1+1, 3 2+1, 4 or 5 2+2, 6 or more 4+2.",
            example="4+2",
        ),
    ] = ""
    gc_grace_s: Annotated[
        float,
        _setting(
            "ANVIL_GC_GRACE_S",
            "Seconds between the deletion of an object and the removal of its data. Must exceed the longest download "
            f"({DOWNLOAD_S_MAX:.0f} s), except in dev mode, and should exceed the age of the oldest backup you would restore.",
            example="86400",
            ge=0,
        ),
    ] = GC_GRACE_S_DEFAULT
    uploads_expire_s: Annotated[
        float,
        _setting(
            "ANVIL_UPLOADS_EXPIRE_S",
            "Seconds after which a multipart upload that got no part meanwhile is aborted, with all its parts; 0 keeps them for ever.",
            example="86400",
            ge=0,
        ),
    ] = UPLOADS_EXPIRE_S_DEFAULT
    metadata_dump_s: Annotated[
        float,
        _setting(
            "ANVIL_METADATA_DUMP_S",
            "Seconds between two dumps of the region's metadata to its drives, to salvage from when its database is lost; 0: none.",
            ge=0,
        ),
    ] = METADATA_DUMP_S_DEFAULT

    @property
    def labels(self) -> tuple[str, ...]:
        """A short name for each drive, for metrics and logs: the folder's own where no other has the same, else its whole
        path.
        """
        names = [Path(drive).name for drive in self.drives]
        return tuple(name if names.count(name) == 1 else drive for name, drive in zip(names, self.drives, strict=True))


class ClusterConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Several nodes that keep one region together. A node without a cluster listener is alone."""

    listen_addr: Annotated[
        str,
        _setting(
            "ANVIL_CLUSTER_LISTEN_ADDR",
            "host:port for the other nodes of the region; empty: this node is alone. Needs both database URLs and ANVIL_CLUSTER_SECRET. "
            "Never expose it to clients.",
            example="0.0.0.0:7443",
        ),
    ] = ""
    public_addr: Annotated[
        str,
        _setting(
            "ANVIL_PUBLIC_CLUSTER_ADDR",
            "host:port under which the other nodes reach this one, where that differs from the listen address.",
            example="10.0.0.11:7443",
        ),
    ] = ""
    name: Annotated[
        str,
        _setting(
            "ANVIL_NODE_NAME",
            "What `anvil admin node list` and the other commands call this node; empty: the machine's host name.",
            example="node-7",
        ),
    ] = ""
    zone: Annotated[
        str,
        _setting(
            "ANVIL_ZONE",
            "Where this node stands (a rack, a room, an availability zone): shards of an object are spread over zones first.",
            example="rack-7",
        ),
    ] = ""
    init_cluster: Annotated[
        bool,
        _setting(
            "ANVIL_INIT_CLUSTER",
            "This node may serve before it has met another one. For the first node of a region; harmless later.",
            example="true",
        ),
    ] = False
    repair_delay_s: Annotated[
        float,
        _setting(
            "ANVIL_REPAIR_DELAY_S",
            "Seconds that a node may be down before its shards are rebuilt on the others. Back earlier, it gets only what it missed.",
            example="600",
            ge=0,
        ),
    ] = REPAIR_DELAY_S_DEFAULT

    @property
    def listen(self) -> Address | None:
        """Where the other nodes are served; None where this node is alone."""
        return parse_address(self.listen_addr, "ANVIL_CLUSTER_LISTEN_ADDR") if self.listen_addr else None

    @property
    def address(self) -> str:
        """What the other nodes are told."""
        return self.public_addr or self.listen_addr


class DatabaseConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The databases. With neither URL, the node runs its own PostgreSQL out of the data directory."""

    global_url: Annotated[
        str,
        _setting(
            "ANVIL_GLOBAL_DATABASE_URL",
            "PostgreSQL URL of the deployment's global database. Set both URLs or neither.",
            secret=True,
            example="postgresql://anvil:...@db1,db2/anvil_global?target_session_attrs=read-write",
        ),
    ] = ""
    regional_url: Annotated[
        str,
        _setting(
            "ANVIL_REGIONAL_DATABASE_URL",
            "PostgreSQL URL of this region's database.",
            secret=True,
            example="postgresql://anvil:...@db1,db2/anvil_us_east_1?target_session_attrs=read-write",
        ),
    ] = ""

    @property
    def embedded(self) -> bool:
        return not self.global_url

    def __repr__(self) -> str:
        return f"DatabaseConfig(embedded={self.embedded})"


class SecurityConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Secrets. With the embedded PostgreSQL those left empty are generated into the data directory at the first start."""

    encryption_key: Annotated[
        str,
        _setting(
            "ANVIL_SECRET_ENCRYPTION_KEY",
            "Master key that wraps the keys of all buckets and apps: 32 bytes as 64 hex digits or base64. "
            "Without it nothing stored can be read: keep a copy.",
            secret=True,
            example="$(openssl rand -hex 32)",
        ),
    ] = ""
    jwt_secret: Annotated[
        str,
        _setting(
            "ANVIL_JWT_SECRET",
            f"Signs access tokens: at least {SECRET_CHARS_MIN} characters.",
            secret=True,
            example="$(openssl rand -hex 32)",
        ),
    ] = ""
    cluster_secret: Annotated[
        str,
        _setting(
            "ANVIL_CLUSTER_SECRET",
            f"Authenticates nodes to one another: at least {SECRET_CHARS_MIN} characters, the same on all nodes.",
            secret=True,
            example="$(openssl rand -hex 32)",
        ),
    ] = ""

    @property
    def master_key(self) -> bytes:
        """The 32 bytes of the encryption key. Raises InvalidSetting when it is not set or malformed."""
        return parse_master_key(self.encryption_key)

    def __repr__(self) -> str:
        return "SecurityConfig(...)"


class LogConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the node says about itself."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], _setting("ANVIL_LOG_LEVEL", "Least severity that is logged.")
    ] = "info"
    format: Annotated[
        Literal["auto", "json", "text"],
        _setting("ANVIL_LOG_FORMAT", "Lines of JSON or of text; auto means text on a terminal and JSON elsewhere."),
    ] = "auto"
    access: Annotated[bool, _setting("ANVIL_LOG_ACCESS", "Log a line for each request.")] = False
    slow_s: Annotated[
        float,
        _setting(
            "ANVIL_LOG_SLOW_S",
            "Log a request that took this long, not counting what the client took, with where the time went; 0 means never.",
            example="10",
            ge=0,
        ),
    ] = LOG_SLOW_S_DEFAULT


class MetricsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Prometheus."""

    token: Annotated[
        str,
        _setting(
            "ANVIL_METRICS_TOKEN",
            "Bearer token that /metrics asks for. Without one, /metrics answers only direct requests from the machine itself.",
            secret=True,
            example="$(openssl rand -hex 16)",
        ),
    ] = ""

    def __repr__(self) -> str:
        return "MetricsConfig(...)"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything. Sections are the tables of the TOML file."""

    node: NodeConfig = NodeConfig()
    api: ApiConfig = ApiConfig()
    storage: StorageConfig = StorageConfig()
    cluster: ClusterConfig = ClusterConfig()
    database: DatabaseConfig = DatabaseConfig()
    security: SecurityConfig = SecurityConfig()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()

    @property
    def secret_values(self) -> tuple[str, ...]:
        """Every secret that is set, for redaction."""
        values = (str(getattr(getattr(self, item.section), item.key)) for item in settings() if item.secret)
        return tuple(value for value in values if value)


class Setting(msgspec.Struct, frozen=True):
    """One setting as the reference and the parsers see it."""

    section: str
    key: str
    env: str
    type: Any  # without Annotated
    annotated: Any
    default: Any
    text: str
    example: str
    secret: bool

    @property
    def toml(self) -> str:
        return f"{self.section}.{self.key}"


@lru_cache(maxsize=1)
def settings() -> tuple[Setting, ...]:
    """Every setting, in the order of the sections."""
    found: list[Setting] = []
    for section in msgspec.structs.fields(Config):
        for field in msgspec.structs.fields(section.type):
            base, meta = get_args(field.type)
            extra: dict[str, Any] = meta.extra
            found.append(
                Setting(
                    section=section.name,
                    key=field.name,
                    env=extra["env"],
                    type=base,
                    annotated=field.type,
                    default=field.default,
                    text=meta.description,
                    example=extra["example"],
                    secret=extra["secret"],
                )
            )
    return tuple(found)
