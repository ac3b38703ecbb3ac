"""Requests that last, so that something may happen in the middle of them."""

from __future__ import annotations

import http.client
import threading

from botocore.config import Config

from tests.support.cluster import AnvilCluster

PIECE_BYTES = 64 << 10


def put_begun(cluster: AnvilCluster, number: int, bucket: str, key: str, begin: bytes, length: int) -> http.client.HTTPConnection:
    """A PutObject through that node of which only `begin` was sent; the caller sends the rest, soon: who sends nothing is given up."""
    node = cluster.nodes[number]
    s3 = cluster.s3(number, config=Config(signature_version="s3v4"))
    url = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": key})
    connection = http.client.HTTPConnection(node.host, node.port, timeout=120)
    connection.putrequest("PUT", url.removeprefix(node.endpoint))
    connection.putheader("Content-Length", str(length))
    connection.endheaders(begin)
    return connection


class SlowUpload:
    """A PutObject that goes on slowly until `finish`: the first `begin` bytes at once, then a piece at a time."""

    def __init__(self, cluster: AnvilCluster, number: int, bucket: str, key: str, data: bytes, begin: int) -> None:
        self._data = data
        self._sent = begin
        self._hurry = threading.Event()
        self._status = 0
        self._connection = put_begun(cluster, number, bucket, key, data[:begin], len(data))
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def _send(self) -> None:
        try:
            while self._sent < len(self._data):
                self._connection.send(self._data[self._sent : self._sent + PIECE_BYTES])
                self._sent += PIECE_BYTES
                self._hurry.wait(0.5)
            self._status = self._connection.getresponse().status
        except (OSError, http.client.HTTPException):
            self._status = -1
        finally:
            self._connection.close()

    def finish(self) -> int:
        """Send the rest. Returns the status, or -1 where the connection was lost."""
        self._hurry.set()
        self._thread.join(180)
        assert not self._thread.is_alive(), "the upload has had no end for three minutes"
        return self._status
