import builtins
from collections.abc import Callable, Generator, Iterator
from typing import Any

from anvil.bench.outgoing import Content

class BadAnswer(Exception):
    """What came is no answer of HTTP/1.1; the connection is of no further use."""

def now_ns() -> int:
    """As time.perf_counter_ns."""

class AnswerParser:
    """One answer at a time of one connection. `status`, `keep_alive` and `head` (as it came, with its last line's end) are there once
    the head is."""

    @property
    def status(self) -> int: ...
    @property
    def keep_alive(self) -> bool: ...
    @property
    def head(self) -> bytes: ...
    def __init__(self) -> None: ...
    def begin(self, head_only: bool) -> None:
        """A new answer is expected; with `head_only` to a HEAD request, which has no body whatever its headers say."""
    def feed(self, data: bytes) -> tuple[bool, bytes]:
        """Whether the answer is complete, and what of its body is in `data`. Raises BadAnswer, also for bytes behind the end."""
    def closed(self) -> bool:
        """The connection has ended: whether that completes the answer."""

class Request:
    """`path` and `query` are encoded as they are signed. The body is `body` or bytes `begin` to `end` (-1: the last) of `content`;
    `expect`: what an answer must hold; `extra`: further headers, in lower case; `due_ns`: when it was to begin, 0: when it is sent."""

    @property
    def method(self) -> bytes: ...
    @property
    def path(self) -> bytes: ...
    @property
    def query(self) -> bytes: ...
    @property
    def body(self) -> bytes | None: ...
    @property
    def content(self) -> Content | None: ...
    @property
    def expect(self) -> Content | None: ...
    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...
    @property
    def due_ns(self) -> int: ...
    @property
    def extra(self) -> tuple[tuple[bytes, bytes], ...]: ...
    def __init__(
        self,
        method: bytes,
        path: bytes,
        query: bytes = b"",
        *,
        body: bytes | None = None,
        content: Content | None = None,
        begin: int = 0,
        end: int = -1,
        expect: Content | None = None,
        extra: tuple[tuple[bytes, bytes], ...] = (),
        due_ns: int = 0,
    ) -> None: ...

class Answer:
    """`status`: 0 where none came; `code`: "" for success, else S3's error code, `HTTP 503` where there is none, or what became of the
    connection; `damage`: what is wrong with an expected body, or ""; times as of `now_ns`, from the request's due time if it had one."""

    @property
    def status(self) -> int: ...
    @property
    def code(self) -> str: ...
    @property
    def damage(self) -> str: ...
    @property
    def head(self) -> bytes: ...
    @property
    def body(self) -> bytes: ...
    @property
    def begun_ns(self) -> int: ...
    @property
    def ended_ns(self) -> int: ...

class Exchange:
    """The usual way of a connection: a script's request out, its answer in, on to the next request. `signer` makes the head of a
    request; `buffer` is read into. A subclass is the protocol and has what is rare: `reconnect()` and then `send_again`, `pump()` (write
    `pieces`), `drop()` (the transport), `malformed()`, `wait_for(what a script yielded)`, `script_ended(error or None)`."""

    pieces: Iterator[memoryview] | None
    """Of a body, not sent yet."""
    write: Callable[[bytes], object] | None
    """The transport's; None without one."""
    begun_ns: int
    moved_ns: int
    """When a byte last came or went, as far as is known."""

    @property
    def request(self) -> Request | None:
        """In flight."""
    @property
    def parser(self) -> AnswerParser: ...
    def __init__(self, signer: Callable[[Request], bytes], buffer: bytearray) -> None: ...
    def start(self, script: Generator[Any, Answer | None]) -> None:
        """The script to run; `step(None)` begins it."""
    def step(self, answer: Answer | None) -> None:
        """Go on with the script."""
    def send_again(self) -> None:
        """Send the request that is in flight over a new connection."""
    def get_buffer(self, sizehint: int) -> memoryview: ...
    def buffer_updated(self, nbytes: int) -> None: ...
    def complete(self) -> None:
        """The answer is there."""
    def fail(self, kind: str) -> None:
        """No answer will come to the request in flight; its script is told `kind`."""
    def forget(self) -> None:
        """Of script and request."""

class Slot:
    """A second of one operation; `latency`: bucket (`histogram.index_of`) -> how many."""

    @property
    def requests(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def latency(self) -> dict[int, int]: ...
    def __init__(self) -> None: ...

class Tally:
    """Counts of a window from `begin_ns` to `end_ns`, by the rules of `record.py`. `last_ns`: of the last request in it, from its begin;
    `answered_ns`: when the last answer came, whatever it said; `broken`: requests in a row that got none. A subclass has
    `refused(operation, answer, key, damage)`."""

    begin_ns: int
    end_ns: int
    last_ns: int
    answered_ns: int
    requests: int
    bytes: int
    failed: int
    broken: int
    @property
    def seconds(self) -> dict[str, list[Slot]]:
        """By operation."""
    @property
    def late(self) -> dict[str, dict[int, int]]:
        """Latencies of requests that were answered after the window."""
    def __init__(self) -> None: ...
    def add(self, operation: str, answer: Answer, nbytes: int, key: builtins.bytes = b"", damage: str = "") -> bool:
        """One request with `nbytes` of payload. `damage`: what is wrong beside what the answer says itself. Returns whether all was
        well."""
    def note(self, operation: str, begun_ns: int, ended_ns: int, nbytes: int, failed: bool) -> None:
        """The same of something that is no request."""
