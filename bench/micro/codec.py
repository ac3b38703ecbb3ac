"""How fast the native data path is, against ISA-L called from C in the same run. Prints JSON lines.

    PYTHONPATH=. python bench/micro/codec.py [--seconds 3]

`codec`: 4+2 through its Python call; `ratio` = C seconds / Python seconds, both the best of interleaved rounds over the same
memory (target: at least 0.9). The others: microseconds and GB/s of plaintext for one 1 MiB stripe on one thread.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path

from anvil._ec.buffers import BufferPool, StripeBuffer
from anvil._ec.codec import Codec
from anvil._ec.stripe import BlobKey, DecodeJob, EncodeJob, RebuildJob, frame_checksum
from anvil.ec.codecs import chosen_kernels
from anvil.ec.executor import NativeExecutor
from anvil.model.scheme import CHECKSUM_BYTES, unit_len
from bench.figures import figure
from bench.native import compiled

K, M = 4, 2
STRIPE = 1 << 20
ROUNDS = 15


def buffer(pool: BufferPool, nbytes: int) -> StripeBuffer:
    got = pool.try_acquire(nbytes)
    assert got is not None
    memoryview(got)[:] = os.urandom(nbytes)
    return got


def isal_loop() -> ctypes.CDLL:
    """ISA-L, called from C."""
    loaded = compiled(Path(__file__).with_name("isal_loop.c"), "libisal")
    loaded.isal_encode_s.restype = ctypes.c_double
    return loaded


def codec_ratio(pool: BufferPool, unit: int, times: int) -> None:
    isal = isal_loop()
    units = memoryview(buffer(pool, (K + M) * unit))
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(units)))
    codec = Codec(K, M)
    in_c, in_python = [], []
    for _ in range(ROUNDS):
        in_c.append(isal.isal_encode_s(address, K, M, unit, times) / times)
        start = time.perf_counter()
        for _ in range(times):
            codec.encode(units, unit)
        in_python.append((time.perf_counter() - start) / times)
    c, python = min(in_c), min(in_python)
    note = f"{K * unit / python / 1e9:.1f} GB/s; {c * 1e6:.2f} us in C, {python * 1e6:.2f} us through Python"
    figure(f"codec 4+2, units of {unit} bytes, beside ISA-L called from C", c / python, "ratio", note=note)


def timed(name: str, call: Callable[[], object], nbytes: int, seconds: float) -> None:
    """Best and median of short rounds that fill `seconds`."""
    call()
    start = time.perf_counter()
    call()
    times = max(1, int(seconds / ROUNDS / (time.perf_counter() - start)))
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(times):
            call()
        rounds.append((time.perf_counter() - start) / times)
    rounds.sort()
    best, median = rounds[0], rounds[ROUNDS // 2]
    note = f"median {median * 1e6:.1f} us" + (f", {nbytes / best / 1e9:.2f} GB/s" if nbytes else "")
    figure(name, best * 1e6, "us", note=note)


async def thread_trip(job: Callable[[], EncodeJob], seconds: float) -> None:
    """One stripe at a time, and eight at once, through the executor: what the way to a thread and back adds."""
    executor = NativeExecutor(asyncio.get_running_loop(), 1)
    for at_once in (1, 8):
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            await asyncio.gather(*(executor.run(job()) for _ in range(at_once)))
            done += at_once
        figure(f"encode job on a thread, {at_once} at once", (time.perf_counter() - start) / done * 1e6, "us")
    await executor.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long the whole may take")
    seconds = parser.parse_args().seconds / 10
    print("kernels", chosen_kernels(), flush=True)
    pool = BufferPool(64 << 20)
    unit = unit_len(K, STRIPE)
    for size in (4096, 65536, unit):
        codec_ratio(pool, size, max(5, (8 << 20) // size))

    codec, key = Codec(K, M), BlobKey(os.urandom(32), os.urandom(16))
    plain, back, frame = buffer(pool, STRIPE), buffer(pool, STRIPE), CHECKSUM_BYTES + unit
    out = buffer(pool, (K + M) * frame)
    encode = EncodeJob(codec, key, 0, True, memoryview(plain), STRIPE, memoryview(out))
    encode.run()
    frames = [encode.frame(i) for i in range(K + M)]
    one_lost, two_lost = [None, *frames[1:]], [None, None, *frames[2:]]
    rebuilt = buffer(pool, 2 * frame)
    view = memoryview(back)

    def new_encode() -> EncodeJob:
        return EncodeJob(codec, key, 0, True, memoryview(plain), STRIPE, memoryview(out))

    timed("encode job 4+2, 1 MiB", lambda: new_encode().run(), STRIPE, seconds)
    timed("decode job, all data there", lambda: DecodeJob(codec, key, 0, True, STRIPE, frames, view).run(), STRIPE, seconds)
    timed("decode job, 1 lost", lambda: DecodeJob(codec, key, 0, True, STRIPE, one_lost, view).run(), STRIPE, seconds)
    timed("decode job, 2 lost", lambda: DecodeJob(codec, key, 0, True, STRIPE, two_lost, view).run(), STRIPE, seconds)
    assert view == memoryview(plain)
    timed(
        "rebuild job, 2 lost",
        lambda: RebuildJob(codec, key.blob_id, 0, unit, two_lost, [0, 1], memoryview(rebuilt)).run(),
        STRIPE,
        seconds,
    )
    copies = Codec(1, 0)
    timed(
        "seal alone (1+0)",
        lambda: EncodeJob(copies, key, 0, True, memoryview(plain), STRIPE, memoryview(out)).run(),
        STRIPE,
        seconds,
    )
    timed("checksum of a unit", lambda: frame_checksum(key.blob_id, 0, 0, frames[0][8:]), unit, seconds)
    small = memoryview(plain)[:4096]
    timed("seal 4 KiB", lambda: key.seal(0, True, small), 4096, seconds)
    timed("key of a blob", lambda: BlobKey(bytes(32), bytes(16)), 0, seconds)
    asyncio.run(thread_trip(new_encode, seconds))


if __name__ == "__main__":
    main()
