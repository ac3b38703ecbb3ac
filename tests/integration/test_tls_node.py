"""A real node with TLS: SDKs over https, HTTP/2 by ALPN, plaintext beside it, and a certificate renewed under way."""

from __future__ import annotations

import asyncio
import hashlib
import random
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import msgspec
import pytest
import uvloop
from botocore.config import Config
from botocore.exceptions import SSLError
from cryptography import x509

from anvil.auth.presign import UNSIGNED_PAYLOAD, sign
from anvil.base.limits import MIB
from anvil.node.datadir import running_node
from tests.support.certificates import Pair, make_pair
from tests.support.h2client import H2Client
from tests.support.node import AnvilNode, wait_until

BLOCK = random.Random(11).randbytes(12 * MIB + 77)


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return make_pair(tmp_path / "tls", serial=1, days=30)


@pytest.fixture
def node(tmp_path: Path, pair: Pair) -> Iterator[AnvilNode]:
    with AnvilNode(tmp_path / "data", env={"ANVIL_WORKERS": "2"}, tls=pair) as running:
        yield running


def serial_at(port: int) -> int:
    """Of the certificate that a new connection is shown."""
    return x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port)).encode()).serial_number


def all_show(port: int, serial: int) -> bool:
    """Whether every worker has it: the kernel spreads connections over them."""
    return all(serial_at(port) == serial for _ in range(16))


def test_an_sdk_over_https_alone(tmp_path: Path, pair: Pair) -> None:
    with AnvilNode(tmp_path / "data", tls=pair, plaintext=False) as node:
        assert node.endpoint == f"https://127.0.0.1:{node.port}"
        assert f"serves S3 and gRPC at {node.endpoint} " in node.log_text()
        found = running_node(node.data_dir)
        assert found is not None
        assert (found.endpoint, found.tls_endpoint) == (node.endpoint, "")
        s3 = node.s3()
        s3.create_bucket(Bucket="secure")
        assert s3.put_object(Bucket="secure", Key="k", Body=BLOCK)["ETag"] == f'"{hashlib.md5(BLOCK).hexdigest()}"'
        assert s3.get_object(Bucket="secure", Key="k")["Body"].read() == BLOCK
        upload = s3.create_multipart_upload(Bucket="secure", Key="parts")["UploadId"]
        part = s3.upload_part(Bucket="secure", Key="parts", UploadId=upload, PartNumber=1, Body=BLOCK)
        done = s3.complete_multipart_upload(
            Bucket="secure", Key="parts", UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        )
        assert done["Location"] == f"https://127.0.0.1:{node.port}/secure/parts"
        address = node.s3(Config(signature_version="s3v4")).generate_presigned_url(
            "get_object", Params={"Bucket": "secure", "Key": "parts"}
        )
        assert address.startswith(node.endpoint)
        with urlopen(address, context=pair.client()) as answer:
            assert answer.read() == BLOCK
        stranger = make_pair(tmp_path / "stranger")
        node.tls = stranger
        with pytest.raises(SSLError):
            node.s3().list_buckets()
        node.tls = pair
        with socket.create_connection(("127.0.0.1", node.port)) as plain:
            plain.sendall(b"GET /ready HTTP/1.1\r\nHost: h\r\n\r\n")
            assert plain.makefile("rb").read().startswith(b"HTTP/1.1 400 ")
        assert node.metric("anvil_tls_certificate_expiry_timestamp_seconds") == pair.expires_s
        assert node.metric('anvil_api_rejected_total{reason="handshake"}') >= 2
        assert "Traceback" not in node.log_text()


def test_plaintext_and_tls_at_once(node: AnvilNode, pair: Pair) -> None:
    plain, secure = node.s3(), node.s3(tls=True)
    plain.create_bucket(Bucket="both")
    secure.put_object(Bucket="both", Key="k", Body=BLOCK)
    assert plain.get_object(Bucket="both", Key="k")["Body"].read() == BLOCK
    assert secure.list_objects_v2(Bucket="both")["KeyCount"] == 1
    assert f"serves S3 and gRPC at {node.endpoint} and {node.tls_endpoint} " in node.log_text()
    found = running_node(node.data_dir)
    assert found is not None
    assert (found.endpoint, found.tls_endpoint) == (node.endpoint, node.tls_endpoint)
    doctor = {item["name"]: item for item in msgspec.json.decode(node.anvil("doctor", "--json").stdout)}
    assert doctor["certificate"]["state"] == "ok"
    assert str(pair.cert) in doctor["certificate"]["value"]


def test_http2_by_alpn(node: AnvilNode, pair: Pair) -> None:
    node.s3().create_bucket(Bucket="over-h2")

    async def main() -> None:
        client = await H2Client.connect("127.0.0.1", node.tls_port, window=4 * MIB, tls=pair.client("h2", "http/1.1"))
        assert client.writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"

        async def ask(method: str, target: str, body: bytes | None = None) -> bytes:
            url = node.tls_endpoint + target
            signed = sign(method, url, {}, UNSIGNED_PAYLOAD, node.access_key, node.secret_key, node.region, time.time())
            fields = [(name.lower(), value) for name, value in signed.items() if name.lower() != "host"]
            if body is not None:
                fields.append(("content-length", str(len(body))))
            answer = await client.ask(method, target, fields, body, authority=urlsplit(url).netloc)
            assert answer.status == 200, bytes(answer.body)
            return bytes(answer.body)

        await asyncio.gather(*(ask("PUT", f"/over-h2/k{n}", BLOCK[: n * 3_000_000]) for n in range(4)))
        bodies = await asyncio.gather(*(ask("GET", f"/over-h2/k{n}") for n in range(4)))
        assert bodies == [BLOCK[: n * 3_000_000] for n in range(4)]
        client.close()

    uvloop.run(main())


def test_a_renewed_certificate_reaches_new_connections_alone(node: AnvilNode, pair: Pair) -> None:
    s3 = node.s3(tls=True)
    s3.create_bucket(Bucket="secure")
    s3.put_object(Bucket="secure", Key="k", Body=BLOCK)
    body = s3.get_object(Bucket="secure", Key="k")["Body"]
    first = body.read(MIB)
    make_pair(pair.cert.parent, serial=2, days=60)
    node.process.send_signal(signal.SIGHUP)
    wait_until("new connections see the new certificate", lambda: all_show(node.tls_port, 2))
    assert first + body.read() == BLOCK, "the download goes on, on the connection that it began on"
    assert s3.head_object(Bucket="secure", Key="k")["ContentLength"] == len(BLOCK), "and so does the connection"
    wait_until("the metric follows", lambda: node.metric("anvil_tls_certificate_expiry_timestamp_seconds") == pair.expires_s)

    pair.key.write_bytes(make_pair(pair.cert.parent / "other").key.read_bytes())
    wait_until("the broken pair is met without a signal", lambda: node.metric('anvil_tls_reloads_total{result="refused"}') >= 1)
    assert all_show(node.tls_port, 2)
    wait_until("both workers have said so", lambda: node.log_text().count("the one before still is") == 2)
    assert "BEGIN" not in node.log_text()
    assert node.is_ready()
    assert all_show(node.tls_port, 2)

    make_pair(pair.cert.parent, serial=3)
    wait_until("the next good one is used", lambda: all_show(node.tls_port, 3))
    assert node.process.poll() is None


def test_a_worker_that_starts_again_listens_on_both(node: AnvilNode) -> None:
    for victim in node.worker_pids:
        node.kill(victim)
    wait_until("both ports answer", lambda: node.is_ready() and len(node.worker_pids) == 2)
    assert node.s3(tls=True).list_buckets()["Buckets"] == []


def refused(tmp_path: Path, environ: dict[str, str]) -> tuple[int, str]:
    """Exit code and last line of a start that fails."""
    node = AnvilNode(tmp_path / "refused", env=environ)
    node.launch()
    try:
        return node.process.wait(30), node.log_text().strip().splitlines()[-1]
    except subprocess.TimeoutExpired:
        node.stop()
        raise


def test_a_start_with_an_unfit_certificate_is_refused(tmp_path: Path, pair: Pair) -> None:
    other = make_pair(tmp_path / "other")
    files = {"ANVIL_TLS_CERT": str(pair.cert), "ANVIL_TLS_KEY": str(pair.key)}
    for change, message in (
        ({"ANVIL_TLS_KEY": str(other.key)}, "is not the key of the first certificate"),
        (
            {"ANVIL_TLS_KEY": str(tmp_path / "none")},
            r"ANVIL_TLS_KEY='.*none' cannot be read \(No such file or directory\): name a",
        ),
        ({"ANVIL_TLS_KEY": ""}, "ANVIL_TLS_KEY is not set, and ANVIL_TLS_CERT is"),
    ):
        code, line = refused(tmp_path, files | change)
        assert code == 2
        assert line.startswith("anvil: ")
        assert re.search(message, line), line
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, line = refused(tmp_path, {**files, "ANVIL_TLS_LISTEN_ADDR": f"127.0.0.1:{taken.getsockname()[1]}"})
    assert code == 3
    assert line.endswith("choose another ANVIL_TLS_LISTEN_ADDR")
    assert AnvilNode(tmp_path / "x", env={**files, "ANVIL_TLS_KEY": "/none"}).anvil("config", "--effective").returncode == 0
