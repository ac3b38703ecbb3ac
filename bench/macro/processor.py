"""Processor time per GiB of a large upload: what a node's workers take, beside what its parts take that nobody could leave out.

The parts, each alone in this process, on 16 stripes of 1 MiB in turn, as 16 uploads at a time fill them: receiving (a blocking socket),
MD5 of 16 streams in lanes, sealing with coding and checksums in one pass, and writing the frames to files. Processor time is
user's and system's together; what the kernel does for the sender is the client's on either side.

Each figure is printed as one JSON line. Run: python -m bench.macro.processor.
"""

from __future__ import annotations

import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from anvil._ec import digest
from anvil._ec.codec import Codec
from anvil._ec.digest_reference import MD5_START
from anvil._ec.stripe import BlobKey, EncodeJob
from anvil.base.limits import DRIVE_FLUSH_BYTES
from anvil.model.scheme import CHECKSUM_BYTES, Scheme, unit_len
from bench.figures import figure
from bench.macro import load
from bench.macro.memory import held
from bench.macro.s3 import MIB, ROUNDS, Signer, address, node, require
from bench.micro.digests import LANES
from bench.profile import seconds

STRIPE = MIB
STREAMS = 16
TURNS = 64  # times over the stripes of all streams
OBJECT = 64 * MIB
OBJECTS = 16
GIB = 1 << 30


def per_gib(work: Callable[[], None], nbytes: int) -> float:
    """Seconds of this thread's processor time per GiB."""
    work()  # opens and allocates what is then used again
    found = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        work()
        found.append((time.thread_time() - began) / nbytes * GIB)
    return statistics.median(found)


def stripes() -> list[memoryview]:
    return [memoryview(bytearray(os.urandom(STRIPE))) for _ in range(STREAMS)]


def receiving() -> float:
    """Over a connection for each stream; threads send, this one receives."""
    targets, data = stripes(), os.urandom(8 * STRIPE)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(STREAMS) as senders:
        clients = [socket.create_connection(server.getsockname()) for _ in targets]
        takers = [server.accept()[0] for _ in targets]

        def send(client: socket.socket) -> None:
            with client:
                for _ in range((ROUNDS + 1) * TURNS * STRIPE // len(data)):
                    client.sendall(data)

        def receive() -> None:
            for _ in range(TURNS):
                for taker, view in zip(takers, targets, strict=True):
                    taker.recv_into(view, STRIPE, socket.MSG_WAITALL)

        sending = [senders.submit(send, client) for client in clients]
        found = per_gib(receive, TURNS * STREAMS * STRIPE)
        for taker, sent in zip(takers, sending, strict=True):
            sent.result()
            taker.close()
    return found


def digesting() -> float:
    kernel, data = digest.md5_kernels()[0], stripes()
    lanes = LANES[kernel]

    def work() -> None:
        for first in range(0, STREAMS, lanes):
            digest.md5_advance(kernel, [MD5_START] * lanes, data[first : first + lanes])

    return per_gib(work, STREAMS * STRIPE)


def coding(scheme: Scheme) -> float:
    codec, key, plain = Codec(scheme.k, scheme.m), BlobKey(bytes(32), bytes(16)), stripes()
    frames = [bytearray(scheme.width * (CHECKSUM_BYTES + unit_len(scheme.k, STRIPE))) for _ in plain]

    def work() -> None:
        for number in range(STREAMS):
            EncodeJob(codec, key, number, False, plain[number], STRIPE, frames[number]).run()

    return per_gib(work, STREAMS * STRIPE)


def writing(scheme: Scheme, folder: Path) -> float:
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

    return per_gib(work, STREAMS * OBJECT)


def uploading(scheme: Scheme, folder: Path) -> float:
    """Seconds of the worker's processor time per GiB, with as many drives as the scheme has shards."""
    body, found = os.urandom(OBJECT), []
    names = ",".join(str(folder / f"drive {number} of {scheme}") for number in range(scheme.width))
    with node(workers=1, drives=names) as running:
        host, port = address(running)
        request = Signer(running)
        for turn in range(ROUNDS + 1):
            heads = [request("PUT", f"/bench/{turn}/{number}", length=OBJECT) for number in range(OBJECTS)]
            began = seconds(running.worker_pids)
            outcome = require(load.upload(host, port, heads, memoryview(body), STREAMS))
            found.append((seconds(running.worker_pids) - began) / (outcome.count * OBJECT) * GIB)
    return statistics.median(found[1:])


def main() -> None:
    # Nothing is removed before the end: some file systems make the next file after that pay for it, and memory that it frees may be lost to
    # the host (memory.py). 20 GiB come together.
    with tempfile.TemporaryDirectory(prefix="anvil-bench-") as folder, held():
        for name, scheme in (("one drive", Scheme(1, 0)), ("six drives", Scheme(4, 2))):
            node_s = uploading(scheme, Path(folder))
            parts = {
                "receiving": receiving(),
                "MD5": digesting(),
                "sealing and coding": coding(scheme),
                "writing": writing(scheme, Path(folder)),
            }
            note = ", ".join(f"{part} {cost:.3f}" for part, cost in parts.items())
            figure(f"PUT 64 MiB x 16, {name}, processor", node_s, "s/GiB")
            figure(f"PUT 64 MiB x 16, {name}, its parts alone", sum(parts.values()), "s/GiB", note=note)
            figure(f"PUT 64 MiB x 16, {name}, processor beside its parts", node_s / sum(parts.values()), "ratio")


if __name__ == "__main__":
    main()
