"""Request heads for the tests of authentication, and a catalog of one app."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from anvil.auth.authenticate import Authenticator
from anvil.auth.presign import EMPTY_SHA256, presign, sign
from anvil.auth.types import Authenticated
from anvil.model.identity import App, Policy, Tenant
from anvil.net.stream import RequestHead

NOW = 1369353600  # 2013-05-24T00:00:00Z
ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
ENDPOINT = "http://node.example:50051"
APP = App(1, Tenant(1, "default"), "app", ACCESS_KEY, SECRET, 1, (Policy("*", "*"),))


class Apps:
    """The part of `Catalog` that authentication uses."""

    def __init__(self, *apps: App) -> None:
        self.apps = {app.access_key: app for app in apps}
        self.asked = 0

    async def app(self, access_key: str) -> App | None:
        self.asked += 1
        return self.apps.get(access_key)


def authenticator(now: float = NOW, region: str = "us-east-1", apps: Apps | None = None, **options: Any) -> Authenticator:
    return Authenticator(apps or Apps(APP), region, options.pop("public_endpoints", ()), lambda: now, **options)  # type: ignore[arg-type]


def run(head: RequestHead, **options: Any) -> Authenticated:
    """Authenticate without an event loop: with `Apps` nothing ever waits."""
    coroutine = authenticator(**options).authenticate(head)
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("authentication waited for something")


def head_of(
    method: str,
    url: str,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    peer: str = "203.0.113.9:4711",
    version: str = "1.1",
) -> RequestHead:
    """The head a server sees of that request. A `host` header wins over the URL's."""
    rest = url.partition("://")[2]
    path, _, query = rest[len(urlsplit(url).netloc) :].partition("?")
    pairs = [(name.lower(), value) for name, value in (headers.items() if isinstance(headers, Mapping) else headers)]
    authority = dict(pairs).get("host", urlsplit(url).netloc)
    if version == "2":
        pairs = [pair for pair in pairs if pair[0] != "host"]
    encoded = tuple((name.encode(), value.encode()) for name, value in pairs)
    return RequestHead(method, path.encode(), query.encode(), encoded, authority.encode(), version, peer, None, False)


def signed(
    method: str = "GET",
    url: str = f"{ENDPOINT}/bucket/key",
    headers: Mapping[str, str] | None = None,
    payload: str = EMPTY_SHA256,
    region: str = "us-east-1",
    now: float = NOW,
    secret: str = SECRET,
) -> RequestHead:
    return head_of(method, url, sign(method, url, headers, payload, ACCESS_KEY, secret, region, now))


def presigned(
    method: str = "GET",
    url: str = f"{ENDPOINT}/bucket/key",
    expires_s: int = 3600,
    headers: Mapping[str, str] | None = None,
    region: str = "us-east-1",
    now: float = NOW,
    secret: str = SECRET,
) -> RequestHead:
    return head_of(method, presign(method, url, ACCESS_KEY, secret, region, expires_s, now, headers), headers or {})


def changed(head: RequestHead, **fields: Any) -> RequestHead:
    """The head with other fields; `headers` given as a mapping are replaced (or, with None, dropped) or added one by one."""
    values = {name: getattr(head, name) for name in head.__struct_fields__} | fields
    if isinstance(values["headers"], Mapping):
        wanted: dict[str, str | None] = values["headers"]
        kept = [(name, value) for name, value in head.headers if name.decode() not in wanted]
        values["headers"] = (*kept, *((name.encode(), value.encode()) for name, value in wanted.items() if value is not None))
    return RequestHead(**values)
