"""Certificates from files: what is refused, and what happens when the files change under a running node."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from anvil.base import instruments
from anvil.base.errors import InvalidSetting
from anvil.net.tls import Certificate, load
from tests.support.certificates import Pair, make_pair

LOOK_S = 0.01


def test_a_pair_is_loaded_with_its_end(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, days=90)
    loaded = load(str(pair.cert), str(pair.key))
    assert loaded.expires_s == pair.expires_s
    assert loaded.context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert loaded.context.verify_mode == ssl.CERT_NONE
    names = {cipher["name"] for cipher in loaded.context.get_ciphers() if cipher["protocol"] != "TLSv1.3"}
    assert names
    assert all(name.startswith("ECDHE-") and ("GCM" in name or "CHACHA20" in name) for name in names)


def damage(pair: Pair, kind: str) -> None:
    if kind == "other key":
        pair.key.write_bytes(make_pair(pair.key.parent / "other").key.read_bytes())
    elif kind == "half a key":
        pair.key.write_bytes(pair.key.read_bytes()[:100])
    elif kind == "half a certificate":
        pair.cert.write_bytes(pair.cert.read_bytes()[:200])
    elif kind == "empty":
        pair.cert.write_bytes(b"")
    elif kind == "no certificate":
        pair.cert.unlink()
    elif kind == "no key":
        pair.key.unlink()
    elif kind == "folder":
        pair.key.unlink()
        pair.key.mkdir()
    elif kind == "exchanged":
        cert, key = pair.cert.read_bytes(), pair.key.read_bytes()
        pair.cert.write_bytes(key)
        pair.key.write_bytes(cert)
    else:
        make_pair(pair.cert.parent, password=b"hidden")


DAMAGES = [
    ("other key", "ANVIL_TLS_KEY=.* is not the key of the first certificate"),
    ("half a key", "ANVIL_TLS_CERT=.* and ANVIL_TLS_KEY=.* cannot be used"),
    ("half a certificate", "ANVIL_TLS_CERT=.* holds no certificate in PEM form"),
    ("empty", "ANVIL_TLS_CERT=.* holds no certificate in PEM form"),
    ("no certificate", r"ANVIL_TLS_CERT=.* cannot be read \(No such file or directory\)"),
    ("no key", r"ANVIL_TLS_KEY=.* cannot be read \(No such file or directory\)"),
    ("folder", r"ANVIL_TLS_KEY=.* cannot be read \(Is a directory\)"),
    ("exchanged", "ANVIL_TLS_CERT=.* holds no certificate in PEM form"),
    ("password", "ANVIL_TLS_KEY=.* is encrypted"),
]


@pytest.mark.parametrize(("kind", "message"), DAMAGES)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path: Path, kind: str, message: str) -> None:
    pair = make_pair(tmp_path)
    damage(pair, kind)
    with pytest.raises(InvalidSetting, match=message) as refused:
        load(str(pair.cert), str(pair.key))
    assert "\n" not in refused.value.message
    assert "BEGIN" not in refused.value.message


def watched(pair: Pair, body: Callable[[Certificate], Awaitable[None]], *, every_s: float = LOOK_S) -> None:
    """Run `body` beside the watch."""

    async def main() -> None:
        certificate = await Certificate.open(str(pair.cert), str(pair.key))
        watch = asyncio.create_task(certificate.keep(every_s))
        try:
            async with asyncio.timeout(10):
                await body(certificate)
            assert not watch.done()
        finally:
            watch.cancel()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def reloads(result: str) -> float:
    return instruments.TLS_RELOADS.labels(result).value


def test_a_renewed_pair_is_used(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)

    async def body(certificate: Certificate) -> None:
        before, count = certificate.context(), reloads("ok")
        assert instruments.TLS_EXPIRY.labels().value == pair.expires_s
        await asyncio.sleep(5 * LOOK_S)
        assert certificate.context() is before
        make_pair(tmp_path, serial=2, days=2)
        await until(lambda: certificate.context() is not before)
        await until(lambda: instruments.TLS_EXPIRY.labels().value == pair.expires_s)
        assert reloads("ok") > count

    watched(pair, body)


def test_the_swap_of_a_linked_folder_is_seen(tmp_path: Path) -> None:
    """As Kubernetes mounts secrets: files are links through `..data`, and that is what is exchanged, in one rename."""
    make_pair(tmp_path / "one")
    make_pair(tmp_path / "two", serial=2, days=2)
    (tmp_path / "..data").symlink_to("one")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    pair = Pair(tmp_path / "tls.crt", tmp_path / "tls.key")

    async def body(certificate: Certificate) -> None:
        before = certificate.context()
        (tmp_path / "next").symlink_to("two")
        (tmp_path / "next").rename(tmp_path / "..data")
        await until(lambda: certificate.context() is not before)
        assert instruments.TLS_EXPIRY.labels().value == pair.expires_s

    watched(pair, body)


@pytest.mark.parametrize("kind", [kind for kind, _ in DAMAGES])
def test_a_broken_pair_leaves_the_old_one_in_use(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    pair = make_pair(tmp_path)

    async def body(certificate: Certificate) -> None:
        before, count = certificate.context(), reloads("refused")
        damage(pair, kind)
        await until(lambda: reloads("refused") == count + 1)
        await asyncio.sleep(10 * LOOK_S)
        assert certificate.context() is before
        said = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(said) == 1, "once, however often it is looked at"
        assert "the one before still is" in said[0].getMessage()
        if pair.key.is_dir():
            pair.key.rmdir()
        make_pair(tmp_path, serial=3)
        await until(lambda: certificate.context() is not before)

    watched(pair, body)


def test_it_can_be_asked_to_look_at_once(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)

    async def body(certificate: Certificate) -> None:
        before = certificate.context()
        certificate.reload()
        await until(lambda: certificate.context() is not before)

    watched(pair, body, every_s=3600)


def test_an_expired_certificate_is_used_and_complained_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair = make_pair(tmp_path, days=-1)

    async def body(certificate: Certificate) -> None:
        assert [record.getMessage() for record in caplog.records] == ["the TLS certificate has expired"]

    watched(pair, body)
