"""Processor time per GiB of a large upload: what a node's workers take, beside what its parts take that nobody could leave out.

The parts, each alone in this process, on 16 stripes of 1 MiB in turn, as 16 uploads at a time fill them: receiving (a blocking socket),
MD5 of 16 streams in lanes, sealing with coding and checksums in one pass, and writing the frames to files. Processor time is
user's and system's together; what the kernel does for the sender is the client's on either side.

A turn is 16 uploads and then each of the parts; the ratio is of one turn, since a minute later the same machine may be another. Each figure
(the median of ROUNDS turns) is printed as one JSON line. Run: python -m bench.macro.processor.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import NamedTuple

from anvil._ec import digest
from anvil._ec.codec import Codec
from anvil._ec.digest_reference import MD5_START
from anvil._ec.stripe import BlobKey, EncodeJob
from anvil.base.limits import DRIVE_FLUSH_BYTES
from anvil.model.scheme import CHECKSUM_BYTES, Scheme, unit_len
from bench.figures import figure
from bench.macro import load
from bench.macro.memory import held
from bench.macro.s3 import MIB, Signer, address, node, require
from bench.micro.digests import LANES
from bench.profile import seconds

STRIPE = MIB
STREAMS = 16
ROUNDS = 5
TURNS = 64  # times over the stripes of all streams
REPEATS = 48  # of what takes milliseconds
OBJECT = 64 * MIB
OBJECTS = 16
GIB = 1 << 30


def stripes() -> list[memoryview]:
    return [memoryview(bytearray(os.urandom(STRIPE))) for _ in range(STREAMS)]


class Part(NamedTuple):
    work: Callable[[], None]
    nbytes: int  # of bodies, per call

    def cost(self) -> float:
        """Seconds of this thread's processor time per GiB."""
        began = time.thread_time()
        self.work()
        return (time.thread_time() - began) / self.nbytes * GIB


def receiving() -> Part:
    """Over a connection for each stream; threads send, this one receives."""
    targets, data = stripes(), os.urandom(8 * STRIPE)

    def send(client: socket.socket) -> None:
        with client:
            for _ in range(TURNS * STRIPE // len(data)):
                client.sendall(data)

    def work() -> None:
        with ThreadPoolExecutor(STREAMS) as senders, socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as opened:
            clients = [socket.create_connection(server.getsockname()) for _ in targets]
            takers = [opened.enter_context(server.accept()[0]) for _ in targets]
            sending = [senders.submit(send, client) for client in clients]
            for _ in range(TURNS):
                for taker, view in zip(takers, targets, strict=True):
                    assert taker.recv_into(view, STRIPE, socket.MSG_WAITALL) == STRIPE
            for sent in sending:
                sent.result()

    return Part(work, TURNS * STREAMS * STRIPE)


def digesting() -> Part:
    kernel, data = digest.md5_kernels()[0], stripes()
    lanes = LANES[kernel]

    def work() -> None:
        for _ in range(REPEATS):
            for first in range(0, STREAMS, lanes):
                digest.md5_advance(kernel, [MD5_START] * lanes, data[first : first + lanes])

    return Part(work, REPEATS * STREAMS * STRIPE)


def coding(scheme: Scheme) -> Part:
    codec, key, plain = Codec(scheme.k, scheme.m), BlobKey(bytes(32), bytes(16)), stripes()
    frames = [bytearray(scheme.width * (CHECKSUM_BYTES + unit_len(scheme.k, STRIPE))) for _ in plain]

    def work() -> None:
        for _ in range(REPEATS):
            for number in range(STREAMS):
                EncodeJob(codec, key, number, False, plain[number], STRIPE, frames[number]).run()

    return Part(work, REPEATS * STREAMS * STRIPE)


def writing(scheme: Scheme, folder: Path) -> Part:
    """To a new file for each shard of each object, in the order in which stripes come, flushed as a drive flushes them."""
    frame_len = CHECKSUM_BYTES + unit_len(scheme.k, STRIPE)
    frames = [memoryview(bytearray(os.urandom(frame_len))) for _ in range(STREAMS * scheme.width)]
    rounds = count()
    every = -(-DRIVE_FLUSH_BYTES // frame_len)

    def work() -> None:
        number = next(rounds)
        with ExitStack() as opened:
            files = [
                opened.enter_context((folder / f"{scheme} {number} {shard}").open("wb", buffering=0))
                for shard in range(len(frames))
            ]
            for stripe in range(1, OBJECT // STRIPE + 1):
                for file, frame in zip(files, frames, strict=True):
                    file.write(frame)
                    if stripe % every == 0 or stripe == OBJECT // STRIPE:
                        os.fdatasync(file.fileno())

    return Part(work, STREAMS * OBJECT)


@contextmanager
def uploading(scheme: Scheme, folder: Path) -> Iterator[Callable[[], float]]:
    """Seconds of the worker's processor time per GiB, with as many drives as the scheme has shards."""
    body, rounds = os.urandom(OBJECT), count()
    names = ",".join(str(folder / f"drive {number} of {scheme}") for number in range(scheme.width))
    with node(workers=1, drives=names) as running:
        host, port = address(running)
        request = Signer(running)

        def cost() -> float:
            turn = next(rounds)
            heads = [request("PUT", f"/bench/{turn}/{number}", length=OBJECT) for number in range(OBJECTS)]
            began = seconds(running.worker_pids)
            outcome = require(load.upload(host, port, heads, memoryview(body), STREAMS))
            return (seconds(running.worker_pids) - began) / (outcome.count * OBJECT) * GIB

        yield cost


def measure(name: str, scheme: Scheme, folder: Path) -> None:
    whole, ratios = [], []
    with uploading(scheme, folder) as upload:
        parts = {
            "receiving": receiving(),
            "MD5": digesting(),
            "sealing and coding": coding(scheme),
            "writing": writing(scheme, folder),
        }
        found: dict[str, list[float]] = {part: [] for part in parts}
        for turn in range(ROUNDS + 1):
            node_s = upload()
            costs = {part: alone.cost() for part, alone in parts.items()}
            if turn:  # the first one opens and allocates what is then used again
                whole.append(node_s)
                ratios.append(node_s / sum(costs.values()))
                for part, cost in costs.items():
                    found[part].append(cost)
    medians = {part: statistics.median(costs) for part, costs in found.items()}
    note = ", ".join(f"{part} {cost:.3f}" for part, cost in medians.items())
    figure(f"PUT 64 MiB x 16, {name}, processor", statistics.median(whole), "s/GiB")
    figure(f"PUT 64 MiB x 16, {name}, its parts alone", sum(medians.values()), "s/GiB", note=note)
    figure(f"PUT 64 MiB x 16, {name}, processor beside its parts", statistics.median(ratios), "ratio")


def main() -> None:
    # Nothing is removed before the end: some file systems make the next file after that pay for it, and memory that it frees may be lost to
    # the host (memory.py). 30 GiB come together.
    with tempfile.TemporaryDirectory(prefix="anvil-bench-") as folder, held():
        measure("one drive", Scheme(1, 0), Path(folder))
        measure("six drives", Scheme(4, 2), Path(folder))


if __name__ == "__main__":
    main()
