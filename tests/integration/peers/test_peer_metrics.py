"""The calls of other nodes, counted as the API `internal`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from anvil.base import instruments
from anvil.base.metrics import REGISTRY, Labels
from anvil.peers.service import METHODS, SERVICE
from tests.contract.memory_drive import MemoryDrive
from tests.contract.shard_samples import make_footer, make_frames, make_header
from tests.integration.net.net_harness import on_loop
from tests.support.h2client import H2Client
from tests.support.peers import peers_of, served

HEAD = (("content-type", "application/grpc"), ("te", "trailers"))


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    for metric in REGISTRY.metrics.values():
        metric.clear()
    yield
    for metric in REGISTRY.metrics.values():
        metric.clear()


def counted() -> dict[Labels, float]:
    return {labels: child.value for labels, child in instruments.API_REQUESTS.children.items() if "Ping" not in labels}


@on_loop
async def test_calls_of_other_nodes_are_counted_by_method_and_status() -> None:
    drive, header = MemoryDrive(b"d" * 16), make_header(4096)
    frames = make_frames(header)
    async with served([drive]) as node, peers_of([node]) as peers:
        await peers.drive(node.row_of(drive)).put(header, frames, make_footer())
        asked = await H2Client.connect(*node.server.addresses[0])
        await asked.ask("POST", f"/{SERVICE}/Batch", HEAD, b"")
        for path in (f"/{SERVICE}/NoSuchMethod", "/another.Service/Batch", "/" + "x" * 500):
            await asked.ask("POST", path, HEAD, b"")
        asked.close()
    assert counted() == {
        ("internal", "Batch", "0"): 1,
        ("internal", "Batch", "16"): 1,
        ("internal", "other", "12"): 3,
    }
    assert instruments.API_ERRORS.labels("internal", "Batch", "UNAUTHENTICATED").value == 1
    assert instruments.API_ERRORS.labels("internal", "other", "UNIMPLEMENTED").value == 3
    assert sum(instruments.API_DURATION.labels("internal", "Batch").counts) == 2
    assert instruments.API_RECEIVED.labels("internal").value > len(frames)
    assert instruments.API_REQUESTS.labels("internal", "Ping", "0").value >= 1


def test_the_methods_are_those_of_the_service() -> None:
    assert {"Ping", "Batch", "PutShard", "ReadShard", "Scan", "Partitions"} == METHODS
