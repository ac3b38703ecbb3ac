"""What goes wrong between clients, proxies and nodes: early refusals, clients that hang up, nodes that are dead or die."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from tests.compat.proxies.conftest import client, need
from tests.support.node import AnvilNode, wait_until
from tests.support.ports import free_port
from tests.support.proxies import CADDY, KINDS, NGINX_SIMPLE, Certificate, Proxy, ProxyKind, Relay, Swallower

MIB = 1 << 20
PIECE = random.Random(1).randbytes(MIB)
RECOMMENDED = [kind for kind in KINDS if kind.recommended]
TRIES = 20

recommended = pytest.mark.parametrize("kind", RECOMMENDED, ids=lambda kind: kind.name)


@contextmanager
def secure(proxy: Proxy, trust: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    """A connection to the proxy, HTTP/1.1."""
    with (
        socket.create_connection(("127.0.0.1", proxy.port), 20) as plain,
        trust.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        yield tls


def target(url: str, proxy: Proxy) -> str:
    """Path and query of a presigned address."""
    return url.partition(proxy.target)[2]


def in_flight(node: AnvilNode) -> float:
    """Requests that the node serves, without the one that asks."""
    return node.metric("anvil_api_requests_in_flight") - 1


def hang_up(tls: ssl.SSLSocket) -> None:
    """With a reset, as when a client's process is killed: no shutdown of TLS."""
    tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    tls.close()


def answer_to_upload(tls: ssl.SSLSocket, head: bytes, pieces: int) -> bytes:
    """Send a body and listen at the same time, as HTTP clients should, until an error document has come or the other side hangs up.
    Returns what came."""
    tls.setblocking(False)
    unsent = memoryview(head + PIECE * pieces)
    heard = b""
    end = time.monotonic() + 20
    while b"</Error>" not in heard and time.monotonic() < end:
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            more = tls.recv(1 << 16)
            if not more:
                break
            heard += more
            continue
        try:
            unsent = unsent[tls.send(unsent[: 1 << 16]) :] if unsent else unsent
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            select.select([tls], [tls], [], 1)
        except OSError:
            unsent = unsent[:0]  # hung up on while sending: the answer may be there all the same
        if not unsent and not tls.pending():
            select.select([tls], [], [], 1)
    return heard


def test_an_early_refusal_reaches_a_client_that_is_still_sending(s3: Any, proxy: Proxy, trust: ssl.SSLContext) -> None:
    url = s3.generate_presigned_url("put_object", {"Bucket": "there-is-no-such-bucket", "Key": "k"})
    head = f"PUT {target(url, proxy)} HTTP/1.1\r\nHost: {proxy.target}\r\nContent-Length: {32 * MIB}\r\n\r\n".encode()
    for number in range(TRIES):
        with secure(proxy, trust) as tls:
            heard = answer_to_upload(tls, head, 32)
        assert heard.startswith(b"HTTP/1.1 404 ") and b"<Code>NoSuchBucket</Code>" in heard, (number, heard[:200])


def test_an_early_refusal_reaches_boto3(s3: Any) -> None:
    for _ in range(TRIES):
        with pytest.raises(ClientError) as error:
            s3.put_object(Bucket="there-is-no-such-bucket", Key="k", Body=PIECE * 8)
        assert error.value.response["Error"]["Code"] == "NoSuchBucket"


def test_an_upload_that_is_given_up_leaves_nothing(
    node: AnvilNode, s3: Any, proxy: Proxy, bucket: str, trust: ssl.SSLContext
) -> None:
    url = s3.generate_presigned_url("put_object", {"Bucket": bucket, "Key": "k"})
    head = f"PUT {target(url, proxy)} HTTP/1.1\r\nHost: {proxy.target}\r\nContent-Length: {64 * MIB}\r\n\r\n".encode()
    for _ in range(3):
        with secure(proxy, trust) as tls:
            tls.sendall(head + PIECE * 8)
            if proxy.kind is not NGINX_SIMPLE:  # which keeps an upload to itself until it has all of it
                wait_until("the node serves the upload", lambda: in_flight(node) >= 1)
            hang_up(tls)
        wait_until("the node gave the upload up", lambda: in_flight(node) == 0, 10)
        # Nor is a client's hanging up held against the node: it is asked at once.
        with pytest.raises(ClientError) as error:
            s3.head_object(Bucket=bucket, Key="k")
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_a_download_that_is_given_up_ends_at_the_node(
    node: AnvilNode, s3: Any, proxy: Proxy, bucket: str, trust: ssl.SSLContext
) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=PIECE * 64)
    url = s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "k"})
    head = f"GET {target(url, proxy)} HTTP/1.1\r\nHost: {proxy.target}\r\n\r\n".encode()
    for _ in range(3):
        with secure(proxy, trust) as tls:
            tls.sendall(head)
            assert tls.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            if proxy.kind is not NGINX_SIMPLE:  # which takes the whole object, to its disk
                assert in_flight(node) >= 1, "64 MiB do not fit into the buffers between node and client"
            hang_up(tls)
        wait_until("the node gave the download up", lambda: in_flight(node) == 0, 10)
        assert s3.head_object(Bucket=bucket, Key="k")["ContentLength"] == 64 * MIB


Opened = Callable[[ProxyKind, list[int]], Proxy]


@pytest.fixture
def through(certificate: Certificate, tmp_path: Path) -> Iterator[Opened]:
    """Starts proxies of a test's own."""
    with ExitStack() as stack:

        def start(kind: ProxyKind, upstreams: list[int]) -> Proxy:
            need(kind)
            return stack.enter_context(Proxy(kind, upstreams, tmp_path / kind.name, certificate))

        yield start


@recommended
def test_a_dead_node_among_two_is_not_noticed(kind: ProxyKind, node: AnvilNode, bucket: str, through: Opened) -> None:
    s3 = client(node, through(kind, [free_port(), node.port]))
    for number in range(TRIES):
        s3.put_object(Bucket=bucket, Key=f"k{number}", Body=PIECE)
    for number in range(TRIES):
        assert s3.get_object(Bucket=bucket, Key=f"k{number}")["Body"].read() == PIECE
    keys = [{"Key": f"k{number}"} for number in range(TRIES)]
    assert len(s3.delete_objects(Bucket=bucket, Delete={"Objects": keys})["Deleted"]) == TRIES


@recommended
def test_a_node_that_dies_is_not_noticed_afterwards(kind: ProxyKind, node: AnvilNode, bucket: str, through: Opened) -> None:
    relay = Relay(node.port)
    proxy = through(kind, [relay.port, node.port])
    s3 = client(node, proxy)
    for number in range(TRIES):
        s3.put_object(Bucket=bucket, Key=f"k{number}", Body=PIECE)
    assert relay.connections > 0, "both get requests"
    relay.die()
    for number in range(TRIES):
        assert s3.get_object(Bucket=bucket, Key=f"k{number}")["Body"].read() == PIECE
    if kind is CADDY:  # which cannot offer an upload to a second node, as its comments say: until it knows
        noticed = f'"host":"127.0.0.1:{relay.port}"'
        wait_until("a health check failed", lambda: noticed in proxy.log_tail())
    for number in range(TRIES):
        s3.put_object(Bucket=bucket, Key=f"k{number}", Body=b"again")


@recommended
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "conditional PUT", "POST"])
def test_what_is_repeated_on_another_node(kind: ProxyKind, method: str, node: AnvilNode, bucket: str, through: Opened) -> None:
    """A node takes a request and dies. Reads go to the other one. A write that may have been carried out does not: the client is
    told, once for each."""
    swallower = Swallower()
    s3 = client(node, through(kind, [swallower.port, node.port]))
    node.s3().put_object(Bucket=bucket, Key="k", Body=PIECE)
    calls: dict[str, Callable[[int], Any]] = {
        "GET": lambda _: s3.get_object(Bucket=bucket, Key="k")["Body"].read(),
        "HEAD": lambda _: s3.head_object(Bucket=bucket, Key="k"),
        "PUT": lambda number: s3.put_object(Bucket=bucket, Key=f"n{number}", Body=PIECE[:100_000]),
        "conditional PUT": lambda number: s3.put_object(Bucket=bucket, Key=f"n{number}", Body=b"small", IfNoneMatch="*"),
        "POST": lambda _: s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "none"}]}),
    }
    failed = 0
    for number in range(TRIES // 2):
        try:
            calls[method](number)
        except (ClientError, BotoCoreError) as error:
            failed += 1
            assert isinstance(error, ClientError) and error.response["ResponseMetadata"]["HTTPStatusCode"] == 502, error
            s3.close()  # nginx closes the connection after such an answer, without having said so
    taken = len(swallower.swallowed)
    swallower.close()
    assert taken > 0, "both get requests"
    assert set(swallower.swallowed) == {method.rsplit(maxsplit=1)[-1]}
    assert failed == (0 if method in ("GET", "HEAD") else taken)
