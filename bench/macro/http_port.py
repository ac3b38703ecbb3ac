"""Measures the HTTP/1.1 port alone, beside a bare uvloop + httptools server, and prints one JSON line per figure.

Owns: the handler that answers from memory and the load: wrk for small answers, one raw socket for large bodies. Server and
client share the machine. Usage: PYTHONPATH=. python -m bench.macro.http_port [--seconds 2]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from anvil.base.limits import KIB, MIB
from anvil.net.server import serve
from anvil.net.stream import Stream
from bench.figures import figure

SMALL = b"x" * (4 * KIB)
HEADERS = (
    (b"etag", b'"d41d8cd98f00b204e9800998ecf8427e"'),
    (b"content-type", b"binary/octet-stream"),
    (b"last-modified", b"Mon, 23 Nov 2026 18:00:00 GMT"),
    (b"accept-ranges", b"bytes"),
    (b"x-amz-request-id", b"0123456789ABCDEF"),
)
PUT_BYTES = 64 * MIB
GET_BYTES = 10 * MIB


async def answer(stream: Stream) -> None:
    """PUT: receive into one reused stripe. GET /big: ten stripes from memory. Otherwise 4 KiB."""
    if stream.head.method == "PUT":
        while await stream.readinto(STRIPE) == len(STRIPE):
            pass
        await stream.respond(200, HEADERS)
    elif stream.head.path == b"/big":
        stream.start(200, HEADERS, GET_BYTES)
        for _ in range(GET_BYTES // len(STRIPE)):
            await stream.write(STRIPE)
        await stream.finish()
    else:
        await stream.respond(200, HEADERS, SMALL)


STRIPE = memoryview(bytearray(MIB))


async def run_server(port: int) -> None:
    await serve(answer, [("127.0.0.1", port)])
    print("ready", flush=True)
    await asyncio.Event().wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Running:
    """A server process."""

    port: int
    pid: int

    def cpu_s(self) -> float:
        """Processor time used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(*command: str) -> Iterator[Running]:
    """A server in a process of its own."""
    port = free_port()
    process = subprocess.Popen([sys.executable, *command, str(port)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield Running(port, process.pid)
    finally:
        process.terminate()
        process.wait()


def wrk(server: Running, connections: int, seconds: float) -> tuple[float, float]:
    """(requests per second, microseconds of the server's processor per request) for a head as an SDK sends it."""
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds:.0f}s",
        "-H",
        "User-Agent: bench",
        "-H",
        "Accept-Encoding: identity",
    ]
    command += ["-H", "X-Amz-Date: 20261123T180000Z", "-H", "X-Amz-Content-SHA256: UNSIGNED-PAYLOAD"]
    scope = "AKIA/20261123/us-east-1/s3/aws4_request"
    command += ["-H", f"Authorization: AWS4-HMAC-SHA256 Credential={scope}, Signature={'a' * 64}"]
    cpu_s = server.cpu_s()
    out = subprocess.run(
        [*command, f"http://127.0.0.1:{server.port}/bucket/key"], capture_output=True, text=True, check=True
    ).stdout
    cpu_s = server.cpu_s() - cpu_s
    match = re.search(r"Requests/sec:\s+([\d.]+)", out)
    total = re.search(r"(\d+) requests in", out)
    assert match and total and "Non-2xx" not in out and "Socket errors" not in out, out
    return float(match[1]), cpu_s / int(total[1]) * 1e6


def put(port: int, seconds: float) -> float:
    """Bytes per second of one client sending 64 MiB bodies, one after the other."""
    piece = bytes(MIB)
    with socket.create_connection(("127.0.0.1", port)) as client:
        sent, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            client.sendall(b"PUT /bucket/key HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % PUT_BYTES)
            for _ in range(PUT_BYTES // MIB):
                client.sendall(piece)
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
            sent += PUT_BYTES
        return sent / (time.perf_counter() - begin)


def get(port: int, seconds: float) -> float:
    """Bytes per second of one client fetching 10 MiB bodies, one after the other."""
    buffer = memoryview(bytearray(MIB))
    with socket.create_connection(("127.0.0.1", port)) as client:
        received, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            client.sendall(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            head = b""
            while b"\r\n\r\n" not in head:
                head += client.recv(4096)
            left = GET_BYTES - (len(head) - head.index(b"\r\n\r\n") - 4)
            while left:
                left -= client.recv_into(buffer, min(left, MIB))
            received += GET_BYTES
        return received / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--serve", type=int)
    options = parser.parse_args()
    if options.serve is not None:
        uvloop.run(run_server(options.serve))
        return
    here = Path(__file__)
    with (
        running(str(here.with_name("bare_server.py")), "--port") as bare,
        running("-m", "bench.macro.http_port", "--serve") as anvil,
    ):
        if shutil.which("wrk"):
            for connections in (16, 64):
                # Side by side and in turns, so that a busy neighbour slows both.
                runs = [(wrk(bare, connections, options.seconds), wrk(anvil, connections, options.seconds)) for _ in range(3)]
                theirs, ours = max(run[0] for run in runs), max(run[1] for run in runs)
                note = f"bare {theirs[0]:.0f}/s; {ours[1]:.1f} us of processor each, bare {theirs[1]:.1f}; wrk"
                figure(f"HTTP port alone, GET 4 KiB, {connections} connections", ours[0], "requests/s", note=note)
        else:
            print("GET 4 KiB of the port alone is left out: wrk is not installed")
        figure("HTTP port alone, PUT 64 MiB", put(anvil.port, options.seconds) / 1e9, "GB/s")
        figure("HTTP port alone, GET 10 MiB", get(anvil.port, options.seconds) / 1e9, "GB/s")


if __name__ == "__main__":
    main()
