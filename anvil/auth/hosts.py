"""Which host names stand for this node, and what a client may have signed instead of the Host that arrived.

Owns: the public endpoints, the bucket in a virtual-host-style name, the alternatives SigV4 is tried with. Invariant: an
alternative names the same bucket as the authority the request is routed by. Without that rule a signature for `/b/key` at the
plain endpoint would also open `b/key` in the bucket of a virtual host, so the API must route with `virtual_bucket` and nothing
else. Not here: signatures (`authenticate.py`), addressing by path (`api/s3`).

Proxies rewrite Host (nginx's `$host` loses the port, many send the upstream's name), so alternatives are needed;
X-Forwarded-Host is whatever a client wrote unless the connection comes from a proxy the operator named, and so is
X-Forwarded-For, which is never read.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from anvil.base.errors import InvalidSetting
from anvil.base.limits import PUBLIC_ENDPOINTS_MAX
from anvil.net.stream import RequestHead

_DEFAULT_PORTS = {"http": (":80",), "https": (":443",), "": (":80", ":443")}


def _split(authority: bytes) -> tuple[bytes, bytes]:
    """Lower-case name and `:port` (or nothing)."""
    name, colon, port = authority.rpartition(b":")
    if colon and port.isdigit():
        return name.lower(), colon + port
    return authority.lower(), b""


def is_address(name: str) -> bool:
    """Whether it is an IP address: no bucket can stand before one."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _endpoint(text: str) -> bytes:
    """`https://s3.example.com:443/` -> `s3.example.com`: what clients of that endpoint send as Host."""
    scheme, separator, rest = text.strip().rpartition("://")
    authority = rest.rstrip("/")
    for port in _DEFAULT_PORTS.get(scheme, ()):
        authority = authority.removesuffix(port)
    known = scheme in ("http", "https") if separator else not scheme
    if not known or not authority or not authority.isascii() or any(c.isspace() or c in "/?#@" for c in authority):
        raise InvalidSetting(f"public endpoint {text!r} is not a host, host:port, or an http(s) URL without a path")
    return authority.encode()


class Hosts:
    """The names of this node. `public_endpoints` as clients write them; `trusted_proxies` are addresses or networks.

    Raises InvalidSetting for a text that is neither, and for too many."""

    __slots__ = ("_endpoints", "_trusted")

    def __init__(self, public_endpoints: Sequence[str] = (), trusted_proxies: Sequence[str] = ()) -> None:
        if len(public_endpoints) > PUBLIC_ENDPOINTS_MAX:
            raise InvalidSetting(f"{len(public_endpoints)} public endpoints: at most {PUBLIC_ENDPOINTS_MAX} are supported")
        self._endpoints = tuple((*_split(authority), authority) for authority in map(_endpoint, public_endpoints))
        try:
            self._trusted = tuple(ipaddress.ip_network(text, strict=False) for text in trusted_proxies)
        except ValueError as error:
            raise InvalidSetting(f"trusted proxies: {error}") from None

    def virtual_bucket(self, authority: bytes) -> str | None:
        """The bucket that a Host names before a public endpoint (`photos.s3.example.com`), None for path-style. With nested
        endpoints the longest wins. Names are compared without ports, in lower case."""
        name, _ = _split(authority)
        best: bytes | None = None
        for host, _, _ in self._endpoints:
            if name == host:
                return None
            if name.endswith(b"." + host) and len(name) > len(host) + 1 and not is_address(host.decode()):
                label = name[: -len(host) - 1]
                best = label if best is None or len(label) < len(best) else best
        return None if best is None else best.decode("ascii", "backslashreplace")

    def alternatives(self, head: RequestHead) -> list[bytes]:
        """What else the client may have signed for Host, most likely first; never more than the endpoints and one."""
        bucket = self.virtual_bucket(head.authority)
        name, _ = _split(head.authority)
        found: list[bytes] = []
        forwarded = head.all(b"x-forwarded-host") if self._trusted and self._is_trusted(head.peer) else []
        if forwarded:
            # A proxy that appends puts what it saw itself last; what stands before may be the client's invention.
            last = forwarded[-1].rpartition(b",")[2].strip()
            if last and self.virtual_bucket(last) == bucket:
                found.append(last)
        for host, port, authority in self._endpoints:
            if bucket is None:
                found.append(authority)
            elif name.endswith(b"." + host):
                found.append(name + port)
        return [host for host in dict.fromkeys(found) if host != head.authority]

    def _is_trusted(self, peer: str) -> bool:
        address = peer
        if peer.startswith("["):  # [::1]:4711
            address = peer[1:].partition("]")[0]
        elif peer.count(":") == 1:  # 127.0.0.1:4711
            address = peer.partition(":")[0]
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._trusted)
