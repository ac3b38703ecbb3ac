"""How fast checksums and digests are on this machine: JSON lines, one figure each, with ratios measured in the same run.

    python bench/micro/digests.py [--seconds 0.2]

Owns: the figures behind `ANVIL_MD5_CROSSOVER` and the choice of kernels. Every figure is the best of several short runs, which
is what the code can do when nothing else uses the core. Not here: anything with sockets or drives (`bench/macro`).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import select
import statistics
import time
import zlib
from collections.abc import Callable

from anvil._ec import digest
from anvil._ec.digest import DigestJob, DigestLanes, Digests
from anvil._ec.digest_reference import MD5_START
from bench.figures import figure

SIZE = 1 << 20  # a stripe
RUNS = 5
LANES = {"avx512": 16, "avx512vl": 8, "avx2": 8, "scalar": 1}


def best(call: Callable[[], object], bytes_per_call: int, seconds: float) -> float:
    """GB/s of the best of RUNS runs that together take about `seconds`."""
    call()
    fastest = float("inf")
    for _ in range(RUNS):
        calls, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds / RUNS:
            call()
            calls += 1
        fastest = min(fastest, spent / calls)
    return bytes_per_call / fastest / 1e9


def say(name: str, gb_s: float, **more: object) -> None:
    figure(name, gb_s, "GB/s", note=", ".join(f"{key.replace('_', ' ')} {value}" for key, value in more.items()))


def through_lanes(streams: int, algorithms: tuple[str, ...], kernel: str, seconds: float) -> float:
    """`streams` streams of 4 stripes each, queued as uploads would."""
    digest.set_md5_kernel(kernel)
    lanes = DigestLanes()
    data = [os.urandom(SIZE) for _ in range(streams)]
    running = [Digests(algorithms) for _ in range(streams)]

    def once() -> None:
        for _ in range(4):
            for stream, stripe in zip(running, data, strict=True):
                lanes.submit(DigestJob(stream, stripe, SIZE))
        left = 4 * streams
        while left:
            select.select([lanes.fileno()], [], [])
            left -= len(lanes.collect())

    try:
        return best(once, 4 * streams * SIZE, seconds)
    finally:
        lanes.close()


def md5(seconds: float) -> None:
    stripe = os.urandom(SIZE)
    scalar = best(lambda: Digests(["md5"]).update(stripe), SIZE, seconds)
    openssl = best(lambda: hashlib.md5(stripe), SIZE, seconds)
    say("md5 scalar, one stream", scalar, ratio_to_openssl=round(scalar / openssl, 2))
    for kernel in digest.md5_kernels():
        lanes = LANES[kernel]
        data = [os.urandom(64 * 1024) for _ in range(lanes)]

        def kernel_alone(kernel: str = kernel, data: list[bytes] = data) -> object:
            return digest.md5_advance(kernel, [MD5_START] * len(data), data)

        total = best(kernel_alone, lanes * 64 * 1024, seconds)
        say(f"md5 kernel {kernel}, all lanes", total, per_lane=round(total / lanes, 3), ratio_to_scalar=round(total / scalar, 2))
    for kernel in digest.md5_kernels():
        for streams in (1, 2, 3, 4, 8, 9, 16):
            total = through_lanes(streams, ("md5",), kernel, seconds)
            say(f"md5 DigestLanes {kernel}, {streams} streams", total, ratio_to_scalar=round(total / scalar, 2))


def lanes_beside_scalar() -> None:
    """What the lanes are for, as a gate that holds on a busy machine: processor time of this thread, both sides in turn."""
    kernel, size = digest.md5_kernels()[0], 64 * 1024
    lanes = LANES[kernel]
    data = [os.urandom(size) for _ in range(lanes)]
    scalar = Digests(["md5"])

    def taken(call: Callable[[], object]) -> float:
        began = time.thread_time()
        for _ in range(20):
            call()
        return time.thread_time() - began

    ratios = []
    for _ in range(15):
        alone = sum(taken(lambda piece=piece: scalar.update(piece)) for piece in data)  # type: ignore[misc]
        ratios.append(alone / taken(lambda: digest.md5_advance(kernel, [MD5_START] * lanes, data)))
    figure("md5, all lanes beside one scalar", statistics.median(ratios), "ratio", note=f"{lanes} streams by {kernel}")


def mixes(seconds: float) -> None:
    kernel = digest.md5_kernels()[0]
    for algorithms in [("md5", "crc32c"), ("md5", "crc64nvme"), ("md5", "sha256")]:
        total = through_lanes(16, algorithms, kernel, seconds)
        say(f"DigestLanes {'+'.join(algorithms)}, 16 streams", total)
    stripe = os.urandom(SIZE)
    say("sha256, one stream", best(lambda: Digests(["sha256"]).update(stripe), SIZE, seconds))
    say("sha1, one stream", best(lambda: Digests(["sha1"]).update(stripe), SIZE, seconds))


def crcs(seconds: float) -> None:
    stripe = os.urandom(SIZE)
    crc32 = best(lambda: digest.crc32(stripe), SIZE, seconds)
    say("crc32", crc32, ratio_to_zlib=round(crc32 / best(lambda: zlib.crc32(stripe), SIZE, seconds), 1))
    say("crc32c", best(lambda: digest.crc32c(stripe), SIZE, seconds))
    table = 0.0
    for kernel in reversed(digest.crc64_kernels()):
        digest.set_crc64_kernel(kernel)
        gb_s = best(lambda: digest.crc64nvme(stripe), SIZE, seconds)
        table = table or gb_s
        say(f"crc64nvme {kernel}", gb_s, ratio_to_table=round(gb_s / table, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description="Micro benchmarks of checksums and digests; prints JSON lines.")
    parser.add_argument("--seconds", type=float, default=0.2, help="per figure")
    seconds = parser.parse_args().seconds
    md5(seconds)
    lanes_beside_scalar()
    mixes(seconds)
    crcs(seconds)


if __name__ == "__main__":
    main()
