"""Messages of streams as bytes: chunks go past protobuf, which would copy each of them twice.

PutObjectRequest, UploadPartRequest and GetObjectResponse all carry their bytes in field 2 (`chunk`); a message with nothing else is one
tag, a length, and the bytes. Source: Protocol Buffers, "Encoding". Not here: what the messages mean.
"""

from __future__ import annotations

from google.protobuf.message import Message

from anvil.api.grpc.proto.object_pb2 import GetObjectResponse
from anvil.base.types import Buffer

CHUNK_TAG = 2 << 3 | 2  # field 2, length-delimited
VARINT_BYTES_MAX = 5  # of a length below 2 GiB, which no message reaches


def chunk_message(chunk: Buffer) -> bytes:
    """The message that carries `chunk`."""
    head = bytearray((CHUNK_TAG,))
    left = len(chunk)
    while left > 0x7F:
        head.append(left & 0x7F | 0x80)
        left >>= 7
    head.append(left)
    return b"".join((head, chunk))


def as_bytes(message: Message | bytes) -> bytes:
    """Serializer of upload streams: chunks come ready."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def read_message(data: bytes) -> GetObjectResponse | memoryview:
    """Deserializer of download streams: a chunk is a view of what arrived; anything else is parsed."""
    if data and data[0] == CHUNK_TAG:
        length = shift = 0
        for position in range(1, min(len(data), 1 + VARINT_BYTES_MAX)):
            length |= (data[position] & 0x7F) << shift
            shift += 7
            if not data[position] & 0x80:
                if position + 1 + length == len(data):
                    return memoryview(data)[position + 1 :]
                break
    message = GetObjectResponse.FromString(data)
    return memoryview(message.chunk) if message.WhichOneof("part") == "chunk" else message
