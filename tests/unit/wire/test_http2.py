"""The HTTP/2 session by itself: against the h2 package in memory, and against noise."""

from __future__ import annotations

import random
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anvil.wire.http2 import CANCEL, CLOSED, FILLED, REQUEST, Exchange, Session, SessionFailed

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FIELDS = [(":method", "PUT"), (":scheme", "http"), (":authority", "h"), (":path", "/a?b")]
BLOCK = random.Random(3).randbytes(300_000)


def session(**more: Any) -> Session:
    options = {
        "streams_shown": 4,
        "streams_max": 16,
        "window": 65_536,
        "connection_window": 1 << 24,
        "header_bytes_max": 16_384,
        "header_fields_max": 100,
        "free_actions": 100.0,
    }
    return Session(**{**options, **more})


class Pair:
    """A client and a session, with nothing between them."""

    def __init__(self, **more: Any) -> None:
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.session = session(**more)
        self.client.initiate_connection()
        self.seen: list[h2.events.Event] = []
        self.events: list[tuple[int, Exchange]] = []
        self.turn()

    def turn(self, batch: int = 1 << 20) -> None:
        """Carry bytes back and forth until none are left."""
        while True:
            out = self.client.data_to_send()
            if out:
                self.session.receive(out)
            buffers, count = self.session.collect(batch)
            self.events += self.session.take_events()
            assert count == sum(map(len, buffers))
            if buffers:
                for event in self.client.receive_data(b"".join(buffers)):
                    self.seen.append(event)
                    if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                        self.client.acknowledge_received_data(event.flow_controlled_length, event.stream_id or 0)
            if not out and not buffers:
                return

    def request(self, *, end: bool = True) -> Exchange:
        number = self.client.get_next_available_stream_id()
        self.client.send_headers(number, FIELDS, end_stream=end)
        self.turn()
        kind, exchange = self.events.pop()
        assert (kind, exchange.stream_id) == (REQUEST, number)
        return exchange

    def body(self) -> bytes:
        return b"".join(event.data or b"" for event in self.seen if isinstance(event, h2.events.DataReceived))


def test_the_client_is_shown_fewer_streams_than_are_served() -> None:
    pair = Pair()
    assert pair.client.remote_settings.max_concurrent_streams == 4
    assert pair.client.remote_settings.initial_window_size == 65_536


def test_a_body_goes_where_the_reader_wants_it() -> None:
    pair = Pair()
    exchange = pair.request(end=False)
    assert exchange.headers == [(name.encode(), value.encode()) for name, value in FIELDS]
    number = exchange.stream_id
    pair.client.send_data(number, b"early bytes")
    pair.turn()
    assert exchange.stored == 11
    first = bytearray(5)
    assert exchange.read(memoryview(first)) == 5
    assert first == b"early"
    view = bytearray(20)
    assert exchange.read(memoryview(view)) == -1
    with pytest.raises(RuntimeError):
        exchange.read(memoryview(view))
    pair.client.send_data(number, b" and late ones, more than fit", end_stream=False)
    pair.turn()
    assert pair.events == [(FILLED, exchange)]
    assert exchange.stop_reading() == 20
    assert view == b" bytes and late ones"
    view = bytearray(100)
    assert exchange.read(memoryview(view)) == -1
    pair.client.end_stream(number)
    pair.turn()
    assert pair.events[1:] == [(FILLED, exchange)]
    assert view[: exchange.stop_reading()] == b", more than fit"
    assert exchange.ended
    assert exchange.received == 40


def test_the_window_opens_as_the_reader_takes() -> None:
    pair = Pair()
    exchange = pair.request(end=False)
    number = exchange.stream_id
    assert pair.client.local_flow_control_window(number) == 65_536
    sent = 0
    while count := min(pair.client.local_flow_control_window(number), 16_384):
        pair.client.send_data(number, BLOCK[sent : sent + count])
        sent += count
        pair.turn()
    assert sent == exchange.stored == 65_536
    room = bytearray(40_000)
    assert exchange.read(memoryview(room)) == 40_000
    pair.turn()
    assert pair.client.local_flow_control_window(number) == 40_000
    assert room == BLOCK[:40_000]
    exchange.discard()
    pair.client.send_data(number, BLOCK[:16_384])
    pair.turn()
    assert exchange.stored == 0
    assert pair.client.local_flow_control_window(number) == 65_536


@pytest.mark.parametrize("batch", [1, 1000, 1 << 20])
@pytest.mark.parametrize("trailers", [None, [(b"grpc-status", b"0")]])
def test_an_answer(batch: int, trailers: list[tuple[bytes, bytes]] | None) -> None:
    pair = Pair()
    exchange = pair.request()
    pair.session.respond(exchange, [(b":status", b"200"), (b"x-a", b"b")], True)
    for at in range(0, len(BLOCK), 77_777):
        pair.session.push(exchange, memoryview(BLOCK)[at : at + 77_777])
        pair.turn(batch)
    pair.session.end(exchange, trailers)
    pair.turn(batch)
    assert pair.body() == BLOCK
    assert exchange.sent == len(BLOCK)
    assert exchange.queued == 0
    assert pair.events == [(CLOSED, exchange)]
    assert any(isinstance(event, h2.events.TrailersReceived) for event in pair.seen) == (trailers is not None)
    assert pair.session.streams == 0


def test_streams_take_turns() -> None:
    pair = Pair()
    exchanges = [pair.request() for _ in range(3)]
    for exchange in exchanges:
        pair.session.respond(exchange, [(b":status", b"200")], True)
        pair.session.push(exchange, BLOCK[:60_000])
        pair.session.end(exchange)
    pair.turn()
    order = [event.stream_id for event in pair.seen if isinstance(event, h2.events.DataReceived)]
    assert order != sorted(order), "not one after the other"


def test_what_is_done_to_a_closed_stream_is_nothing() -> None:
    pair = Pair()
    exchange = pair.request(end=False)
    pair.client.reset_stream(exchange.stream_id, h2.errors.ErrorCodes.CANCEL)
    pair.turn()
    assert pair.events == [(CLOSED, exchange)]
    assert exchange.reset_code == CANCEL
    pair.session.respond(exchange, [(b":status", b"200")], True)
    pair.session.push(exchange, b"x")
    pair.session.end(exchange)
    pair.session.reset(exchange, 0)
    pair.session.widen(exchange, 1 << 20)
    exchange.discard()
    assert exchange.read(memoryview(bytearray(1))) == 0
    pair.turn()
    assert pair.session.alive


def test_abandoned_while_a_reader_waits() -> None:
    pair = Pair()
    exchange = pair.request(end=False)
    view = bytearray(10)
    exchange.read(memoryview(view))
    assert pair.session.abandon() == [exchange]
    view += b"the view was let go, else this would raise BufferError"
    assert exchange.closed


def test_free_actions_are_forgiven_with_time() -> None:
    pair = Pair(free_actions=10.0)
    for _ in range(3):
        for _ in range(8):
            pair.client.ping(b"12345678")
        pair.turn()
        pair.session.forgive(100.0)
    for _ in range(11):
        pair.client.ping(b"12345678")
    with pytest.raises(SessionFailed):
        pair.turn()


def test_too_many_headers_of_our_own_are_refused() -> None:
    pair = Pair()
    exchange = pair.request()
    with pytest.raises(ValueError, match="too many"):
        pair.session.respond(exchange, [(b":status", b"200")] * 300, False)


def drive(one: Session, data: bytes, pieces: int) -> None:
    """Feed bytes and answer whatever comes of them; SessionFailed is the only exception that may come out."""
    try:
        for at in range(0, len(data), pieces):
            one.receive(data[at : at + pieces])
            for kind, exchange in one.take_events():
                if kind == REQUEST:
                    exchange.read(memoryview(bytearray(100)))
                    one.respond(exchange, [(b":status", b"200")], True)
                    one.push(exchange, b"x" * 5000)
                    one.end(exchange)
                elif kind == FILLED:
                    exchange.stop_reading()
            one.collect(10_000)
    except SessionFailed:
        one.collect(10_000)
    one.abandon()


@given(st.binary(max_size=2000), st.integers(1, 100))
@settings(max_examples=300, deadline=None)
def test_noise_after_the_preface(noise: bytes, pieces: int) -> None:
    drive(session(), PREFACE + b"\0\0\0\4\0\0\0\0\0" + noise, pieces)


FRAME = st.tuples(
    st.integers(0, 11),
    st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D]),
    st.sampled_from([0, 1, 1, 1, 3, 5, 2, 2**31 - 1]),
    st.binary(max_size=80) | st.sampled_from([b"\x83\x86\x84\x41\x01h", b"\x82\x86\x84\x41\x01h", bytes(4), b"\x7f\xff\xff\xff"]),
)


@given(st.lists(FRAME, max_size=60), st.integers(1, 300))
@settings(max_examples=500, deadline=None)
def test_frames_in_any_order(frames: list[tuple[int, int, int, bytes]], pieces: int) -> None:
    data = b"".join(
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
        for kind, flags, stream, payload in frames
    )
    drive(session(), PREFACE + b"\0\0\0\4\0\0\0\0\0" + data, pieces)


@pytest.mark.parametrize("early", [True, False])
def test_a_stream_is_left_when_its_answer_has_gone_out_and_not_before(early: bool) -> None:
    pair = Pair()
    exchange = pair.request(end=False)
    pair.session.respond(exchange, [(b":status", b"200")], True)
    pair.session.push(exchange, BLOCK)
    if early:
        pair.session.leave(exchange)
    pair.session.end(exchange, [(b"grpc-status", b"4")])
    pair.turn()
    pair.session.leave(exchange)
    pair.turn()
    assert pair.body() == BLOCK
    last = [type(event) for event in pair.seen[-3:]]
    assert last == [h2.events.TrailersReceived, h2.events.StreamEnded, h2.events.StreamReset]
    assert exchange.closed
    assert exchange.reset_code == h2.errors.ErrorCodes.NO_ERROR


def test_a_stream_whose_request_has_ended_is_left_without_a_reset() -> None:
    pair = Pair()
    exchange = pair.request()
    pair.session.leave(exchange)
    pair.session.respond(exchange, [(b":status", b"200")], False)
    pair.turn()
    assert exchange.closed
    assert not any(isinstance(event, h2.events.StreamReset) for event in pair.seen)


def test_resets_that_bodies_pay_for_do_not_end_the_session() -> None:
    """libnghttp2 has a count of its own, which would after 1000: a client with many uploads that it gives up is no attacker."""
    pair = Pair()
    for _ in range(3000):
        exchange = pair.request(end=False)
        pair.client.send_data(exchange.stream_id, b"x" * 2048)
        pair.client.reset_stream(exchange.stream_id, h2.errors.ErrorCodes.CANCEL)
        pair.turn()
        assert pair.events.pop() == (CLOSED, exchange)
    assert not any(isinstance(event, h2.events.ConnectionTerminated) for event in pair.seen)
