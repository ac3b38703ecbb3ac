"""Hosts behind proxies: what may stand for what was signed, and which bucket a name means."""

from __future__ import annotations

import pytest
from heads import APP, changed, run, signed

from anvil.auth.hosts import Hosts
from anvil.base.errors import InvalidSetting, SignatureMismatch
from anvil.base.limits import PUBLIC_ENDPOINTS_MAX


@pytest.mark.parametrize(
    ("authority", "bucket"),
    [
        (b"s3.example.com", None),
        (b"s3.example.com:50051", None),
        (b"photos.s3.example.com", "photos"),
        (b"Photos.S3.Example.com:443", "photos"),
        (b"my.dotted.bucket.s3.example.com", "my.dotted.bucket"),
        (b"evils3.example.com", None),
        (b".s3.example.com", None),
        (b"eu.s3.example.com", None),  # an endpoint itself, not a bucket of the shorter one
        (b"photos.eu.s3.example.com", "photos"),
        (b"photos.localhost:50051", "photos"),
        (b"10.0.0.7:50051", None),
        (b"x.192.0.2.1", None),
        (b"[::1]:50051", None),
        (b"", None),
    ],
)
def test_bucket_of_a_host(authority: bytes, bucket: str | None) -> None:
    hosts = Hosts(["https://s3.example.com", "eu.s3.example.com:8443", "localhost:50051", "192.0.2.1"])
    assert hosts.virtual_bucket(authority) == bucket


@pytest.mark.parametrize(
    "text", ["", "http://", "ftp://s3.example.com", "s3.example.com/path", "a b", "user@host", "https://h?x", "h\u00f6st"]
)
def test_bad_endpoints_stop_the_start(text: str) -> None:
    with pytest.raises(InvalidSetting):
        Hosts([text])


def test_bad_proxies_and_too_many_endpoints() -> None:
    with pytest.raises(InvalidSetting):
        Hosts([], ["proxy.example"])
    Hosts(["h"] * PUBLIC_ENDPOINTS_MAX)
    with pytest.raises(InvalidSetting):
        Hosts(["h"] * (PUBLIC_ENDPOINTS_MAX + 1))


def test_default_ports_are_not_part_of_host() -> None:
    head = signed(url="https://s3.example.com/b/k")
    for endpoint in ("https://s3.example.com:443/", "s3.example.com:443", "http://s3.example.com:80"):
        assert run(changed(head, authority=b"upstream:1"), public_endpoints=[endpoint]).principal.app is APP


def test_http2_signs_the_authority() -> None:
    head = signed()
    assert head.header(b"host") is not None
    assert run(changed(head, version="2", headers={"host": None})).principal.app is APP


def test_a_proxy_that_rewrites_host() -> None:
    """nginx's `$host` loses the port; others send the upstream's name."""
    head = signed(url="https://s3.example.com:8443/b/k")
    for authority in (b"s3.example.com", b"10.0.0.7:50051"):
        rewritten = changed(head, authority=authority)
        with pytest.raises(SignatureMismatch):
            run(rewritten)
        assert run(rewritten, public_endpoints=["s3.example.com:8443"]).principal.app is APP
        assert run(rewritten, public_endpoints=["other.example", "https://s3.example.com:8443/"]).principal.app is APP


def test_a_proxy_that_loses_the_port_of_a_virtual_host() -> None:
    head = signed(url="https://photos.s3.example.com:8443/k")
    assert run(changed(head, authority=b"photos.s3.example.com"), public_endpoints=["s3.example.com:8443"]).principal.app is APP
    with pytest.raises(SignatureMismatch):
        run(changed(head, authority=b"docs.s3.example.com"), public_endpoints=["s3.example.com:8443"])


def test_a_signature_never_moves_between_buckets_through_the_host() -> None:
    """Signed path-style at the plain endpoint, sent to a virtual host: it would name `photos/k` in another bucket."""
    options = {"public_endpoints": ["s3.example.com"], "trusted_proxies": ["203.0.113.0/24"]}
    path_style = signed(url="https://s3.example.com/photos/k")
    with pytest.raises(SignatureMismatch):
        run(changed(path_style, authority=b"docs.s3.example.com"), **options)
    virtual = signed(url="https://docs.s3.example.com/photos/k")
    for forwarded in ({}, {"x-forwarded-host": "docs.s3.example.com"}):
        with pytest.raises(SignatureMismatch):
            run(changed(virtual, authority=b"10.0.0.7:50051", headers=forwarded), **options)
        with pytest.raises(SignatureMismatch):
            run(changed(virtual, authority=b"s3.example.com", headers=forwarded), **options)


@pytest.mark.parametrize("peer", ["10.1.2.3:999", "10.1.2.3", "::ffff:10.1.2.3", "[::ffff:10.1.2.3]:999"])
def test_x_forwarded_host_from_a_trusted_proxy(peer: str) -> None:
    head = signed(url="https://s3.example.com/b/k")
    for value in ("s3.example.com", "evil.example, s3.example.com"):
        behind = changed(head, authority=b"10.0.0.7:50051", peer=peer, headers={"x-forwarded-host": value})
        assert run(behind, trusted_proxies=["10.1.0.0/16"]).principal.app is APP
        with pytest.raises(SignatureMismatch):
            run(behind)
        with pytest.raises(SignatureMismatch):
            run(behind, trusted_proxies=["192.0.2.1"])
