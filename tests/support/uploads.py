"""Requests that are only half sent, so that something may happen in the middle of them."""

from __future__ import annotations

import http.client

from botocore.config import Config

from tests.support.cluster import AnvilCluster


def put_begun(cluster: AnvilCluster, number: int, bucket: str, key: str, begin: bytes, length: int) -> http.client.HTTPConnection:
    """A PutObject through that node of which only `begin` was sent; the caller sends the rest."""
    node = cluster.nodes[number]
    s3 = cluster.s3(number, config=Config(signature_version="s3v4"))
    url = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": key})
    connection = http.client.HTTPConnection(node.host, node.port, timeout=90)
    connection.putrequest("PUT", url.removeprefix(node.endpoint))
    connection.putheader("Content-Length", str(length))
    connection.endheaders(begin)
    return connection
