"""One real node for all of these tests, with short time-outs, two tenants and one app with narrow rights.

Invariant: after the last test the node has logged no error, no secret, no token and no signature: whatever was thrown at it was the
client's fault and was answered as such.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.support.node import AnvilNode, wait_until
from tests.support.rawclient import Client

PUBLIC_HOST = "s3.test"
FORBIDDEN_IN_LOGS = re.compile(
    r"Traceback|\"level\":\"error\",\"process\":\"[\w-]*\",\"logger\":\"anvil\.(api|auth|net|wire|engine)"
    r"|AWS4-HMAC-SHA256 Credential|Signature=(?!\[redacted)[0-9a-fA-F]{16}|eyJ[\w-]{16,}\.eyJ",
    re.IGNORECASE,
)


class World(NamedTuple):
    """`own` may do everything in tenant `default`, `other` everything in another tenant, `reader` only object:read on
    `attacked/public/*` in `default`."""

    node: AnvilNode
    own: Client
    other: Client
    reader: Client
    nobody: Client

    def admin(self, *arguments: str) -> None:
        done = self.node.anvil("admin", *arguments)
        assert done.returncode == 0, done.stderr

    def app(self, tenant: str, name: str, *rights: tuple[str, str]) -> Client:
        """A new app with these (action, resource)."""
        done = self.node.anvil("admin", "app", "create", "--tenant", tenant, "--name", name, "--json")
        assert done.returncode == 0, done.stderr
        keys = json.loads(done.stdout)
        for action, resource in rights:
            self.admin("policy", "grant", "--app", keys["access_key"], "--action", action, "--resource", resource)
        return Client(self.node, keys["access_key"], keys["secret"])


def check_logs(world: World) -> None:
    text = world.node.log_text()
    secrets = [client.secret for client in (world.own, world.other, world.reader)]
    assert not [secret for secret in secrets if secret in text.split("Try it:")[-1]], "a secret key was logged"
    found = FORBIDDEN_IN_LOGS.search(text)
    assert found is None, text[max(0, found.start() - 500) : found.end() + 1500]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    settings = {
        "ANVIL_WORKERS": "1",
        "ANVIL_LOG_LEVEL": "debug",
        "ANVIL_LOG_FORMAT": "json",
        "ANVIL_PUBLIC_API_ADDR": f"http://{PUBLIC_HOST}",
        "ANVIL_TRUSTED_PROXIES": "192.0.2.0/24",
    }
    folder = tmp_path_factory.mktemp("attacked") / "data"
    with AnvilNode(folder, settings, command=("tests.support.impatient_server",)) as node:
        made = World(node, Client(node), Client(node), Client(node), Client(node, "", ""))
        made.admin("tenant", "create", "rival")
        other = made.app("rival", "all", ("*", "*"))
        reader = made.app("default", "reader", ("object:read", "attacked/public/*"))
        made = made._replace(other=other, reader=reader)
        for bucket in ("attacked", "second"):
            assert made.own("PUT", f"/{bucket}").status == 200
        for key in ("kept", "public/kept"):
            assert made.own("PUT", f"/attacked/{key}", b"old").status == 200
        assert made.own("PUT", "/second/kept", b"second").status == 200
        wait_until("the new apps are known", lambda: other("GET", "/").status == 200)
        yield made
        assert made.own("GET", "/attacked/kept").body == b"old"
        assert made.own("GET", "/second/kept").body == b"second"
        check_logs(made)
