from anvil.base.types import Buffer

class ChunkedDecoder:
    """Decodes an aws-chunked body. Sans I/O, any split of the input. One of three modes:

    signed (STREAMING-AWS4-HMAC-SHA256-PAYLOAD), signed with trailer (...-PAYLOAD-TRAILER), unsigned with trailer
    (STREAMING-UNSIGNED-PAYLOAD-TRAILER). Signed modes hash each chunk and verify its signature in C: bytes of a chunk are
    handed out before its signature has been seen, so nothing may be published before `finished` is True.
    """

    def __init__(
        self,
        decoded_length: int,
        *,
        signing_key: bytes | None = None,  # None: unsigned
        seed_signature: str = "",
        amz_date: str = "",  # 20261123T181000Z
        scope: str = "",  # 20261123/us-east-1/s3/aws4_request
        trailer_names: tuple[str, ...] | None = None,  # from x-amz-trailer, lower case; None: no trailer section
    ) -> None: ...
    def decode(self, source: Buffer, target: Buffer) -> tuple[int, int]:
        """Consume from `source`, write payload into `target`; returns (consumed, produced). Stops when either is exhausted or the
        body ends. Raises anvil.base.errors: SignatureMismatch, InvalidRequest, IncompleteBody (framing ends early or lengths
        disagree with decoded_length)."""

    finished: bool
    produced: int
    trailers: dict[str, str]
