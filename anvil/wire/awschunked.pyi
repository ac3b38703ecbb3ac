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
        """Consume from `source`, write payload into `target`; returns (consumed, produced). Stops when `source` is exhausted, or
        when payload comes next and `target` is full; framing is consumed without room, so the end is reached with an empty target
        too. `target` may overlap `source` if it does not begin behind it. Whatever follows the end must be offered as well: it
        is refused (but for one CRLF after a trailer section).

        Raises anvil.base.errors: SignatureMismatch, InvalidRequest, IncompleteBody (lengths disagree with decoded_length); after
        that, every call raises the same."""

    def end(self) -> None:
        """The input is over. Raises IncompleteBody unless the body was finished, or what `decode` raised."""

    @property
    def finished(self) -> bool:
        """The body has ended as it should, every signature verified. Data offered afterwards can still make it invalid."""

    @property
    def produced(self) -> int:
        """Payload bytes so far."""

    @property
    def trailers(self) -> dict[str, str]:
        """Lower-case name to value; complete when finished. Names that were announced may be missing."""
