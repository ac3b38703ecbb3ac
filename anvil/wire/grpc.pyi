"""Types and contract of `grpc.pyx`; see there."""

from anvil.base.types import Buffer

def chunk_head(size: int) -> bytes: ...

class ChunkDecoder:
    """Takes the messages of an upload apart. `message_max`: bytes of one message; a longer one raises MessageTooLarge."""

    def __init__(self, message_max: int) -> None: ...
    @property
    def chunk_left(self) -> int:
        """Payload bytes of the present chunk that have not come yet."""

    @property
    def message(self) -> bytes | None:
        """A message that is no plain chunk, whole: to be taken before `decode` goes on."""

    @property
    def compressed(self) -> bool:
        """Whether that message is compressed."""

    @property
    def collecting(self) -> int:
        """Bytes of such a message that is on its way, when it will be whole; 0 if there is none."""

    @property
    def at_boundary(self) -> bool:
        """Nothing of a message is pending: the stream may end here."""

    def take_message(self) -> bytes | None: ...
    def skip(self, count: int) -> None:
        """`count` payload bytes of the present chunk were put in place by somebody else."""

    def decode(self, data: Buffer, view: Buffer) -> tuple[int, int]:
        """Payload from `data` into `view`, until one of them is used up or a `message` is complete. Returns how many bytes of each were
        used. Raises MessageTooLarge, InvalidRequest (unknown flags)."""
