from anvil.base.types import Buffer

PIECE_BYTES: int
"""The most that is taken from a drive or given to it at a time (and the tag behind the last of it)."""

class Sink:
    """Takes the bytes of a shard in order, a piece at a time. One drive feeds it, once."""

    @property
    def wants(self) -> int:
        """How many bytes it is to be fed next; 0 when all has come, or no more is of use."""
    def feed(self, data: Buffer) -> None:
        """Hand it the `wants` bytes that come next. Raises ValueError for any other number."""
    def check(self) -> None:
        """Raises what is wrong with the bytes that came."""

class Source:
    """Gives `length` bytes in pieces, not in order, each with its place among them. Drawn from once."""

    @property
    def length(self) -> int: ...
    def pieces(self) -> list[tuple[int, bytes]]:
        """All of it, as (place, bytes). Raises RuntimeError if it was drawn from before."""
    def check(self) -> None:
        """Raises why not all could be made."""
