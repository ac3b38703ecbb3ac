"""Rights changed on a running node, as the services change them: in effect for S3 with the answer, on every worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from botocore.exceptions import ClientError

from anvil.base.errors import UnknownName
from anvil.model.identity import Action, Actor, BucketRights, Grant, Policy
from anvil.node.channel import Channel, connect
from anvil.node.rights import Change, Named, PutRights, SetPublic
from tests.support.node import AnvilNode, wait_until

T = TypeVar("T")
BY = Actor(1, "AKTEST", "192.0.2.9:1", "req-9")
READ = Policy(Action.OBJECT_READ, "photos/*")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AnvilNode]:
    with AnvilNode(tmp_path / "data", {"ANVIL_WORKERS": "2"}) as running:
        yield running


def ask(node: AnvilNode, question: Callable[[Channel], Awaitable[T]]) -> T:
    """What a worker's services ask of the background process."""

    async def asked() -> T:
        path = node.data_dir / "run" / "background.sock"
        channel = await connect(path, {}, {}, lambda closed: None)
        try:
            return await question(channel)
        finally:
            channel.close()

    return asyncio.run(asked())


def reads(client: Any) -> set[str]:
    """How 30 reads end, over as many connections as it takes to meet both workers."""
    ends = set()
    for _ in range(30):
        try:
            ends.add(client.get_object(Bucket="photos", Key="a")["Body"].read().decode())
        except ClientError as error:
            ends.add(error.response["Error"]["Code"])
        client.close()
    return ends


def told(client: Any, end: str) -> None:
    """All workers know: at once, but for one that was kept from acknowledging it in time (INVALIDATE_ACK_S)."""
    wait_until(f"every read ends with {end}", lambda: reads(client) == {end}, deadline_s=5)


def test_rights_on_a_running_node(node: AnvilNode) -> None:
    owner = node.s3()
    owner.create_bucket(Bucket="photos")
    owner.put_object(Bucket="photos", Key="a", Body=b"content")
    made = node.anvil("admin", "app", "create", "--tenant", "default", "--name", "web", "--json")
    keys = json.loads(made.stdout)
    web = node.s3(access_key=keys["access_key"], secret_key=keys["secret"])
    assert reads(web) == {"AccessDenied"}
    for _ in range(3):
        assert ask(node, lambda channel: channel.call("rights.grant", Change(BY, "web", READ), bool)) is True
        told(web, "content")
        assert ask(node, lambda channel: channel.call("rights.revoke", Change(BY, "web", READ), bool)) is True
        told(web, "AccessDenied")
    for allow, status in ((True, 200), (False, 403)):
        assert (
            ask(node, lambda channel, allow=allow: channel.call("rights.set_public", SetPublic(BY, "photos", allow), bool))
            is True
        )  # type: ignore[misc]
        wait_until(f"{status} to all", lambda status=status: {node.get("/photos/a")[0] for _ in range(30)} == {status})  # type: ignore[misc]
    present = ask(node, lambda channel: channel.call("rights.bucket", Named(1, ("photos",)), BucketRights))
    wanted = BucketRights(True, (Grant(keys["access_key"], READ),), present.etag)
    etag = ask(node, lambda channel: channel.call("rights.put_bucket", PutRights(BY, "photos", wanted), str))
    told(web, "content")
    assert node.get("/photos/a")[0] == 200
    after = ask(node, lambda channel: channel.call("rights.bucket", Named(1, ("photos",)), BucketRights))
    assert (after.grants, after.public_read, after.etag) == (wanted.grants, True, etag)
    with pytest.raises(UnknownName):
        ask(node, lambda channel: channel.call("rights.grant", Change(BY, "nobody", READ), bool))
