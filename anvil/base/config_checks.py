"""Checks of a whole configuration: what must hold between settings, and the forms that a type alone cannot express.

Invariant: each refusal is one line that says what is wrong and how to mend it, and never shows a secret. Not here:
reading settings.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from urllib.parse import urlsplit

from anvil.base.errors import InvalidSetting
from anvil.base.limits import CODE_K_MAX, CODE_M_MAX, DOWNLOAD_S_MAX, DRIVES_MAX, SECRET_CHARS_MIN
from anvil.base.setting_values import parse_address, parse_master_key
from anvil.base.settings import ApiConfig, ClusterConfig, Config, DatabaseConfig, StorageConfig

DEFAULT_SECRETS = ("changeme", "change-me", "change_me", "secret", "password", "anvil", "default", "minioadmin", "example")


def check(config: Config) -> None:
    """Raises InvalidSetting for the first thing that is wrong."""
    parse_address(config.api.listen_addr)
    check_region(config.node.region, "ANVIL_REGION=")
    _check_api(config.api)
    _check_tls(config.api)
    _check_drives(config.storage)
    _check_scheme(config.storage, clustered=bool(config.cluster.listen_addr))
    if config.storage.gc_grace_s <= DOWNLOAD_S_MAX and not config.node.dev_mode:
        raise InvalidSetting(
            f"ANVIL_GC_GRACE_S={config.storage.gc_grace_s:g} must exceed the longest download, {DOWNLOAD_S_MAX:g} s: "
            f"raise it, or set ANVIL_DEV_MODE=true on a machine for trying things out"
        )
    if config.storage.metadata_dump_s >= config.storage.gc_grace_s and not config.node.dev_mode:
        raise InvalidSetting(
            f"ANVIL_METADATA_DUMP_S={config.storage.metadata_dump_s:g} must be less than ANVIL_GC_GRACE_S={config.storage.gc_grace_s:g}: "
            "what a dump names must still be there when it is needed"
        )
    _check_databases(config.database)
    _check_cluster(config.cluster, config.database)
    _check_secrets(config)


def check_region(name: str, what: str) -> None:
    """`what` says it, as in `ANVIL_REGION=`. Raises InvalidSetting."""
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?", name):
        raise InvalidSetting(f"{what}{name!r} must be 1 to 32 lower-case letters, digits and dashes, as in us-east-1")


def check_public_address(addr: str, what: str) -> None:
    """As `check_region`."""
    url = urlsplit(addr if "://" in addr else f"http://{addr}")
    try:
        fine = url.scheme in ("http", "https") and url.hostname and (url.port or 1) and url.path in ("", "/") and not url.query
    except ValueError:
        fine = False
    if not fine or "@" in addr:
        raise InvalidSetting(f"{what}{addr!r} must be host, host:port or http(s)://host[:port]")


def _check_api(api: ApiConfig) -> None:
    for addr in api.public_addrs:
        check_public_address(addr, "ANVIL_PUBLIC_API_ADDR=")
    for domain in api.base_domains:
        if not re.fullmatch(r"(?!-)[a-z0-9-]+(?:\.[a-z0-9-]+)*", domain):
            raise InvalidSetting(f"ANVIL_BASE_DOMAINS={domain!r} must be a lower-case domain without port, as in s3.example.com")
    for network in api.trusted_proxies:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError:
            raise InvalidSetting(f"ANVIL_TRUSTED_PROXIES={network!r} must be an address or a network, as in 10.0.0.0/8") from None


def _check_tls(api: ApiConfig) -> None:
    """Only what can be told without the files: whoever asks for something else need not be able to read the key."""
    for name, path in (("ANVIL_TLS_CERT", api.tls_cert), ("ANVIL_TLS_KEY", api.tls_key)):
        if "-----BEGIN" in path or "\n" in path:
            raise InvalidSetting(f"{name} must be the path of a PEM file, not its content: write it to a file")
    if bool(api.tls_cert) != bool(api.tls_key):
        absent, present = ("ANVIL_TLS_KEY", "ANVIL_TLS_CERT") if api.tls_cert else ("ANVIL_TLS_CERT", "ANVIL_TLS_KEY")
        raise InvalidSetting(f"{absent} is not set, and {present} is: set both for TLS, or neither")
    listen = api.tls_listen
    if listen is None:
        return
    if not api.tls_cert:
        raise InvalidSetting("ANVIL_TLS_LISTEN_ADDR needs a certificate: set ANVIL_TLS_CERT and ANVIL_TLS_KEY, or take it away")
    if listen == api.listen and listen.port:
        raise InvalidSetting(
            f"ANVIL_TLS_LISTEN_ADDR and ANVIL_API_LISTEN_ADDR are both {listen}: give TLS a port of its own, "
            "or take ANVIL_TLS_LISTEN_ADDR away to serve TLS alone"
        )


def _check_drives(storage: StorageConfig) -> None:
    if len(storage.drives) > DRIVES_MAX:
        raise InvalidSetting(f"ANVIL_DRIVES names {len(storage.drives)} folders: a node has at most {DRIVES_MAX}")
    seen: list[Path] = []
    for drive in map(Path, storage.drives):
        for other in seen:
            if drive == other:
                raise InvalidSetting(f"ANVIL_DRIVES names {str(drive)!r} twice: every drive is a folder of its own")
            if drive in other.parents or other in drive.parents:
                raise InvalidSetting(
                    f"ANVIL_DRIVES: {str(drive)!r} and {str(other)!r} lie inside one another: give each a folder of its own"
                )
        seen.append(drive)


def _check_scheme(storage: StorageConfig, *, clustered: bool) -> None:
    if not storage.scheme:
        return
    matched = re.fullmatch(r"(\d{1,2})\+(\d{1,2})", storage.scheme)
    if matched is None:
        raise InvalidSetting(f"ANVIL_SCHEME={storage.scheme!r} is not of the form data+parity, such as 4+2")
    k, m = int(matched[1]), int(matched[2])
    if not (1 <= k <= CODE_K_MAX and m <= CODE_M_MAX):
        raise InvalidSetting(f"ANVIL_SCHEME={storage.scheme!r}: data must be 1 to {CODE_K_MAX} and parity 0 to {CODE_M_MAX}")
    if k + m > len(storage.drives) and not clustered:
        raise InvalidSetting(
            f"ANVIL_SCHEME={storage.scheme} needs {k + m} drives, and ANVIL_DRIVES has {len(storage.drives)}: "
            "add drives or lower the scheme"
        )


def _check_databases(database: DatabaseConfig) -> None:
    if bool(database.global_url) != bool(database.regional_url):
        absent = "ANVIL_REGIONAL_DATABASE_URL" if database.global_url else "ANVIL_GLOBAL_DATABASE_URL"
        raise InvalidSetting(f"{absent} is not set: set both database URLs, or neither for the embedded PostgreSQL")
    for name, url in (("ANVIL_GLOBAL_DATABASE_URL", database.global_url), ("ANVIL_REGIONAL_DATABASE_URL", database.regional_url)):
        if url and not re.match(r"postgres(ql)?://\S+$", url):
            raise InvalidSetting(f"{name} must be a URL of the form postgresql://user:password@host[:port]/database")


def _check_cluster(cluster: ClusterConfig, database: DatabaseConfig) -> None:
    listen = cluster.listen
    if listen is None:
        of_a_cluster = {
            "ANVIL_PUBLIC_CLUSTER_ADDR": cluster.public_addr,
            "ANVIL_ZONE": cluster.zone,
            "ANVIL_NODE_NAME": cluster.name,
        }
        for name, value in of_a_cluster.items():
            if value:
                raise InvalidSetting(f"{name} is for a node with ANVIL_CLUSTER_LISTEN_ADDR: set that too, or take {name} away")
        return
    if database.embedded:
        raise InvalidSetting(
            "ANVIL_CLUSTER_LISTEN_ADDR needs ANVIL_GLOBAL_DATABASE_URL and ANVIL_REGIONAL_DATABASE_URL, the same on all nodes: "
            "the PostgreSQL of one node cannot serve the others"
        )
    address = parse_address(cluster.address, "ANVIL_PUBLIC_CLUSTER_ADDR" if cluster.public_addr else "ANVIL_CLUSTER_LISTEN_ADDR")
    if address.host in ("0.0.0.0", "::"):  # noqa: S104 - told apart, not bound
        raise InvalidSetting(
            f"ANVIL_CLUSTER_LISTEN_ADDR={cluster.listen_addr} listens everywhere, which is no address to reach it under: "
            "set ANVIL_PUBLIC_CLUSTER_ADDR to this node's host:port"
        )
    if not address.port:
        raise InvalidSetting("ANVIL_CLUSTER_LISTEN_ADDR needs a port that the other nodes can know, for instance 7443")
    for name, value in (("ANVIL_ZONE", cluster.zone), ("ANVIL_NODE_NAME", cluster.name)):
        if not re.fullmatch(r"[A-Za-z0-9._-]{0,63}", value):
            raise InvalidSetting(f"{name}={value!r} must be up to 63 letters, digits, dots, dashes and underscores")


def _check_secrets(config: Config) -> None:
    security = config.security
    if security.encryption_key:
        key = parse_master_key(security.encryption_key)
        if len(set(key)) < 8 and not config.node.dev_mode:
            raise InvalidSetting("ANVIL_SECRET_ENCRYPTION_KEY is not random: make one with `openssl rand -hex 32`")
    named = (("ANVIL_JWT_SECRET", security.jwt_secret), ("ANVIL_CLUSTER_SECRET", security.cluster_secret))
    for name, value in named:
        if value and not config.node.dev_mode and weak_secret(value):
            raise InvalidSetting(
                f"{name} is a default or too short (at least {SECRET_CHARS_MIN} characters): make one with `openssl rand -hex 32`"
            )
    if config.metrics.token and len(config.metrics.token) < 16 and not config.node.dev_mode:
        raise InvalidSetting("ANVIL_METRICS_TOKEN is too short (at least 16 characters): make one with `openssl rand -hex 16`")
    given = [value for value in (security.encryption_key, security.jwt_secret, security.cluster_secret) if value]
    if len(set(given)) != len(given) and not config.node.dev_mode:
        raise InvalidSetting(
            "two of ANVIL_SECRET_ENCRYPTION_KEY, ANVIL_JWT_SECRET and ANVIL_CLUSTER_SECRET are equal: make each its own"
        )
    if not config.database.embedded and not config.node.dev_mode:
        for name, value in (("ANVIL_SECRET_ENCRYPTION_KEY", security.encryption_key), *named):
            if not value:
                raise InvalidSetting(
                    f"{name} is not set, and is needed with external databases: make one with `openssl rand -hex 32`"
                )


def weak_secret(value: str) -> bool:
    """Whether a secret is short, a known default, or one character repeated."""
    plain = value.lower()
    return len(value) < SECRET_CHARS_MIN or len(set(value)) < 8 or any(word * 2 in plain for word in DEFAULT_SECRETS)
