"""The client of `anvil bench` beside the load generator of the other benchmarks, one process each, in turn against the bare server.

Both send GETs of 4 KiB over 64 connections, with the same headers. The load generator's are signed before the clock starts, and it looks
at nothing of an answer but its length; `anvil bench` signs as it goes, compares every byte and counts in its histogram. The answer is
one content for every key, so that there is something to compare. Run: python -m bench.macro.client.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import uvloop

from anvil.bench.content import contents
from anvil.bench.exchange import Answer, Request
from anvil.bench.http import Client, Script
from anvil.bench.record import FOREVER_NS, Recorder
from anvil.bench.sign import Signer
from anvil.bench.sizes import parse_sizes
from bench.figures import figure
from bench.macro import load

ROUNDS = 9
REQUESTS = 40_000
CONNECTIONS = 64
CONTENT = contents(1, parse_sizes("4KiB")).of(b"every key")
SERVER = """
import asyncio, sys, uvloop
from pathlib import Path
from bench.macro.bare_server import Bare

async def main():
    body = Path(sys.argv[1]).read_bytes()
    Bare.answer = b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(body) + body
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

uvloop.run(main())
"""


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def signer() -> Signer:
    return Signer("AKIDEXAMPLE", "secret", "us-east-1", "bare:9000")


def key(number: int) -> bytes:
    return b"/bench/w000/p00000/%012d" % number


async def measured(port: int) -> None:
    recorder = Recorder()
    recorder.window(0, FOREVER_NS >> 1)
    recorder.begin_ns = time.perf_counter_ns()
    every = contents(1, parse_sizes("4KiB"))
    numbers = iter(range(REQUESTS))

    def script() -> Script:
        for number in numbers:
            path = key(number)
            every.of(path)  # what a run makes of the key; the bare server knows one content
            answer = cast(Answer, (yield Request(b"GET", path, expect=CONTENT)))
            recorder.add("get", answer, CONTENT.size, path)

    client = Client("127.0.0.1", port, None, signer())
    await client.open(CONNECTIONS)
    await client.run([script() for _ in range(CONNECTIONS)])
    await client.close()
    if recorder.failures or recorder.requests != REQUESTS:
        sys.exit(f"{recorder.failures} requests failed")


def prepared(port: int, requests: list[bytes]) -> None:
    outcome = load.run("127.0.0.1", port, requests, CONNECTIONS)
    if outcome.statuses != {200: REQUESTS}:
        sys.exit(f"expected only 200, got {outcome.statuses}")


def rate(work: Callable[[], None]) -> tuple[float, float]:
    """Requests per second, and microseconds of this process's time for each."""
    begin, cpu = time.perf_counter(), cpu_s()
    work()
    return REQUESTS / (time.perf_counter() - begin), (cpu_s() - cpu) / REQUESTS * 1e6


async def with_server(turns: Callable[[int], None]) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(CONTENT.whole())
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, file.name, stdout=asyncio.subprocess.PIPE)
        try:
            assert process.stdout is not None
            port = int(await process.stdout.readline())
            await asyncio.to_thread(turns, port)
        finally:
            process.terminate()
            await process.wait()


def main() -> None:
    ratios, costs = [], []

    def turns(port: int) -> None:
        sign = signer()
        for _ in range(ROUNDS):
            requests = [sign(Request(b"GET", key(number))) for number in range(REQUESTS)]
            theirs = rate(partial(prepared, port, requests))
            ours = rate(lambda: uvloop.run(measured(port)))
            ratios.append(ours[0] / theirs[0])
            costs.append((theirs[1], ours[1], theirs[0], ours[0]))

    asyncio.run(with_server(turns))
    theirs, ours, before, after = (statistics.median(cost[at] for cost in costs) for at in range(4))
    figure("bare server, prepared requests, 64 connections", before, "requests/s", note=f"{theirs:.1f} us of the client for each")
    figure("bare server, anvil bench, 64 connections", after, "requests/s", note=f"{ours:.1f} us of the client for each")
    figure("anvil bench beside prepared requests", statistics.median(ratios), "ratio")


if __name__ == "__main__":
    main()
