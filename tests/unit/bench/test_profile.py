"""What a sample of the profiler is counted as."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.profile import layer_of, layers

CHILD = "run (anvil/node/supervisor.py:51);_serve (anvil/node/forkserver.py:239);main (anvil/node/child.py:145)"


@pytest.mark.parametrize(
    ("inner", "layer"),
    [
        ("", "event loop"),
        ("Runner.run (asyncio/runners.py:118)", "event loop"),
        ("Connection.run (anvil/net/connection.py:9);Outbound.send_lines (anvil/net/outbound.py:52)", "net: send"),
        ("Connection.run (anvil/net/connection.py:9);sub (re.py:9)", "net"),
        ("S3Api.handle (anvil/api/s3/app.py:9)", "api/s3"),
        ("S3Api.handle (anvil/api/s3/app.py:9);put (anvil/engine/engine.py:1);encode (msgspec/x.py:2)", "engine"),
        ("<module> (anvil/__init__.py:1)", "anvil"),
    ],
)
def test_the_innermost_frame_of_ours_says_whose_it_is(inner: str, layer: str) -> None:
    assert layer_of(";".join(filter(None, (CHILD, inner)))) == layer


def test_a_thread_of_a_pool_counts_while_it_works() -> None:
    pool = "Thread.run (threading.py:982);_worker (concurrent/futures/thread.py:81)"
    assert layer_of(f"{pool};run (concurrent/futures/thread.py:58);sha256 (hashlib.py:1)") == "threads"
    assert layer_of(pool) is None


def test_samples_are_summed(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.write_text(
        f"{CHILD} 3\n{CHILD};x (asyncio/y.py:1) 4\na (anvil/meta/link.py:2) 5\n_worker (concurrent/futures/thread.py:81) 6\n"
    )
    assert layers(raw) == {"event loop": 7, "meta": 5}
