"""Fuzzes the HTTP/2 session: whatever a client sends, in whatever pieces, and whatever the server does meanwhile.

Owns: the properties that must hold for any bytes: nothing but SessionFailed comes out, what a stream holds stays within its window, no
more streams than allowed are open, heads stay within their bounds, and what is left can be collected and abandoned. Uses atheris where
it is installed, Hypothesis otherwise. The session itself is C (libnghttp2): `make asan` runs the short form with its memory watched.
Usage: PYTHONPATH=. python tests/fuzz/fuzz_http2.py [atheris options | hypothesis EXAMPLES]
"""

from __future__ import annotations

import importlib.util
import sys

from anvil.wire.http1 import Refusal
from anvil.wire.http2 import CLOSED, FILLED, REQUEST, Exchange, Session, SessionFailed
from anvil.wire.http2_head import parse_fields

OPENING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5)
STREAMS_MAX, WINDOW, WIDE_WINDOW, HEADER_BYTES, HEADER_FIELDS = 6, 20_000, 40_000, 2000, 20
BATCH = 5000


class Server:
    """Does with each request what the number of its stream says."""

    def __init__(self) -> None:
        self.session = Session(
            streams_shown=2,
            streams_max=STREAMS_MAX,
            window=WINDOW,
            connection_window=1 << 20,
            header_bytes_max=HEADER_BYTES,
            header_fields_max=HEADER_FIELDS,
            free_actions=50.0,
        )
        self.open: dict[Exchange, int] = {}  # and how many bytes of its body were read

    def handle(self) -> None:
        for kind, exchange in self.session.take_events():
            if kind == REQUEST and not exchange.closed:
                assert sum(len(name) + len(value) for name, value in exchange.headers) <= HEADER_BYTES
                assert len(exchange.headers) <= HEADER_FIELDS
                self.open[exchange] = 0
                self.serve(exchange)
            elif kind == FILLED and exchange in self.open:
                self.open[exchange] += exchange.stop_reading()
            elif kind == CLOSED:
                self.open.pop(exchange, None)
        assert self.session.streams <= STREAMS_MAX + 1, "one that is refused is there until that was sent"
        for exchange in self.open:
            assert exchange.stored <= WIDE_WINDOW and exchange.stored <= exchange.received

    def serve(self, exchange: Exchange) -> None:
        try:
            if not (exchange.malformed or exchange.oversized):
                parse_fields(exchange.headers)
        except Refusal:
            self.session.respond(exchange, [(b":status", b"400")], False)
            exchange.discard()
            return
        what = exchange.stream_id // 2 % 6
        if what == 0:
            self.session.widen(exchange, WIDE_WINDOW)
            exchange.read(memoryview(bytearray(100)))
        elif what == 1:
            exchange.discard()
        elif what == 2:
            self.session.reset(exchange, 8)
            return
        elif what == 3:
            self.session.inform(exchange, [(b":status", b"100")])
        if what != 4:
            self.session.respond(exchange, [(b":status", b"200")], True)
            self.session.push(exchange, bytes(3 * BATCH))
            self.session.end(exchange, [(b"grpc-status", b"0")] if what == 5 else None)


def check(data: bytes) -> None:
    """One input; its first byte says how it is cut into pieces. Raises whatever is wrong."""
    server, step = Server(), 1 + (data[0] if data else 0) * 8
    session, data = server.session, OPENING + data[1:]
    try:
        for at in range(0, len(data), step):
            session.receive(data[at : at + step])
            server.handle()
            buffers, count = session.collect(BATCH)
            assert count == sum(map(len, buffers)) and count <= BATCH + (1 << 17)
            server.handle()
            session.forgive(0.1)
    except SessionFailed:
        session.collect(BATCH)  # the GOAWAY that says why
    session.abandon()
    assert session.streams == 0
    session.receive(b"more of it")


STEPS = (
    *("open", "data", "data", "update") * 4,
    *("end", "trailers", "reset", "ping", "settings", "split head") * 2,
    "noise",
)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def conversation(steps: list[tuple[str, int, bytes, bytes]]) -> bytes:
    """Frames that mostly follow from each other: at random, hardly any request would come about. A step: what, on which of the streams
    begun last, its head, its body."""
    out, streams, last = b"", [], 1
    for wanted, which, head, body in steps:
        what = wanted if streams or wanted in ("ping", "settings", "noise") else "open"
        if what in ("open", "split head"):
            streams.append(last)
            last += 2
        stream = streams[-1 - (0 if "head" in what or what == "open" else which % len(streams))] if streams else 0
        if what in ("end", "trailers", "reset") and which < 5:
            streams.remove(stream)  # else more may follow, which is wrong
        out += {
            "open": frame(1, 4, stream, head),
            "split head": frame(1, 0, stream, head[:which]) + frame(9, 4, stream, head[which:]),
            "data": frame(0, 0, stream, body),
            "end": frame(0, 1, stream, body),
            "trailers": frame(1, 5, stream, b"\x40\x01x\x01y"),
            "reset": frame(3, 0, stream, bytes((0, 0, 0, which))),
            "update": frame(8, 0, stream * (which % 2), (1 << which * 5).to_bytes(4, "big")),
            "ping": frame(6, 0, 0, bytes(8)),
            "settings": frame(4, 0, 0, b"\0\4" + (100 << which * 2).to_bytes(4, "big")),
            "noise": body,
        }[what]
    return out


def main() -> None:
    if importlib.util.find_spec("atheris") is None or sys.argv[1:2] == ["hypothesis"]:
        run_hypothesis(int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
        return
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


def run_hypothesis(examples: int) -> None:
    """The same properties, driven by Hypothesis."""
    from hypothesis import given, settings
    from hypothesis import strategies as st

    heads = [b"\x83\x86\x84\x41\x01h", b"\x82\x86\x84\x41\x01h", b"\x83\x86\x84\x41\x01h" + b"\x40\x01x\x01y" * 30]
    bodies = st.sampled_from([b"x", b"y" * 99, b"z" * 9000]) | st.binary(max_size=40)
    steps = st.tuples(st.sampled_from(STEPS), st.integers(0, 5), st.sampled_from(heads), bodies)
    inputs = st.tuples(st.integers(0, 255), st.lists(steps, max_size=40).map(conversation))

    @settings(max_examples=examples, deadline=None)
    @given(inputs.map(lambda pair: bytes((pair[0],)) + pair[1]))
    def run(data: bytes) -> None:
        check(data)

    run()


if __name__ == "__main__":
    main()
