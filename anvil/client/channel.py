"""Where the server is, and the connection to it.

Owns: how an address is read, TLS or not, keepalive and reconnection. Invariant: plaintext is used only where it was asked for
(`http://`, `tls=False`) or the address is this machine's own. Not here: calls.

    http://host[:80]        plaintext              host[:port]        TLS, port 443
    https://host[:443]      TLS                    localhost, 127.*, [::1]   plaintext, port 50051
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import msgspec

from anvil.base import limits
from anvil.base.errors import InvalidSetting

LOCAL_PORT = 50051  # a node's default


class Endpoint(msgspec.Struct, frozen=True):
    host: str  # without brackets
    port: int
    tls: bool
    local: bool  # on this machine: nobody listens in between

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.authority}"


def parse_endpoint(address: str, tls: bool | None = None) -> Endpoint:
    """`tls`: for an address without a scheme. Raises InvalidSetting with one line that says what is wrong."""
    if "://" not in address:
        split = urlsplit(f"//{address}")
    else:
        split = urlsplit(address)
        if split.scheme not in ("http", "https"):
            raise InvalidSetting(
                f"{address!r} is not an address of a server: it begins with http:// or https://, or with neither"
            )
        if tls is not None and tls is not (split.scheme == "https"):
            raise InvalidSetting(f"{address!r} and tls={tls} contradict each other")
        tls = split.scheme == "https"
    try:
        host, port = split.hostname, split.port
    except ValueError:
        raise InvalidSetting(f"{address!r} has no valid port") from None
    if not host or split.path not in ("", "/") or split.query or split.fragment or "@" in split.netloc or " " in host:
        raise InvalidSetting(f"{address!r} is not the address of a server: host, host:port or https://host")
    local = _is_loopback(host)
    if port is None:
        plain = tls is False or (tls is None and local)
        port = (80 if split.scheme else LOCAL_PORT) if plain else 443
    return Endpoint(host, port, not local if tls is None else tls, local)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def read_ca(ca: str | Path | bytes | None) -> bytes | None:
    """PEM certificates, from a file or as they are. Raises InvalidSetting."""
    if ca is None or isinstance(ca, bytes):
        return ca
    try:
        pem = Path(ca).read_bytes()
    except OSError as error:
        raise InvalidSetting(f"the CA certificates {str(ca)!r} cannot be read: {error.strerror}") from None
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise InvalidSetting(f"{str(ca)!r} holds no PEM certificate")
    return pem


def open_channel(endpoint: Endpoint, ca: bytes | None) -> grpc.aio.Channel:
    """A channel of the running loop. It connects with the first call, and again by itself."""
    options = [
        ("grpc.max_receive_message_length", limits.CLIENT_MESSAGE_BYTES_MAX),
        ("grpc.keepalive_time_ms", int(limits.CLIENT_KEEPALIVE_S * 1000)),
        ("grpc.keepalive_timeout_ms", int(limits.CLIENT_KEEPALIVE_ANSWER_S * 1000)),
        ("grpc.initial_reconnect_backoff_ms", int(limits.CLIENT_BACKOFF_S * 1000)),
        ("grpc.min_reconnect_backoff_ms", int(limits.CLIENT_CONNECT_S * 1000)),  # is also the time one attempt may take
        ("grpc.max_reconnect_backoff_ms", int(limits.CLIENT_BACKOFF_S_MAX * 1000)),
        ("grpc.use_local_subchannel_pool", 1),  # a client's connection is its own, also its backoff
    ]
    if endpoint.local:
        options.append(("grpc.enable_http_proxy", 0))  # the environment's proxy does not lead to this machine
    if endpoint.tls:
        return grpc.aio.secure_channel(endpoint.authority, grpc.ssl_channel_credentials(root_certificates=ca), options)
    return grpc.aio.insecure_channel(endpoint.authority, options)
