"""Calls between nodes: what is not exactly what the other node said, to this node, for this call, now, is refused."""

from __future__ import annotations

import asyncio
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil.base.errors import IncompleteBody, InvalidRequest, MessageTooLarge
from anvil.base.limits import GRPC_MESSAGE_BYTES_MAX, PEER_CALL_SKEW_S
from anvil.ec.buffers import Buffers
from anvil.peers.documents import Answers, Requests, document, head_of, read_document, seal
from anvil.peers.proto import shards_pb2 as pb
from anvil.peers.sealing import Call, Keys, Kind, NotAuthentic, Served

SECRET = "not to be seen anywhere, ever, by anybody"
ALICE, BOB, CAROL = b"a" * 16, b"b" * 16, b"c" * 16
METHOD = "/anvil.internal.v1.Shards/Batch"
NOW = 1_700_000_000.0


def keys(own: bytes, secret: str = SECRET, now: float = NOW) -> Keys:
    return Keys(own, secret, lambda: now)


def field(call: Call) -> list[bytes]:
    return [b64encode(call.head).rstrip(b"=")]


def both() -> tuple[Call, Served]:
    """One call of Alice's to Bob, at both ends."""
    call = keys(ALICE).call(METHOD, BOB)
    return call, keys(BOB).admit(METHOD, field(call))


def refused(admitting: Keys, method: str, values: list[bytes]) -> str:
    with pytest.raises(NotAuthentic) as caught:
        admitting.admit(method, values)
    assert SECRET not in f"{caught.value!r} {caught.value.message} {caught.value.fields}"
    return caught.value.reason


def test_a_call_is_admitted_by_the_node_it_is_for() -> None:
    call, served = both()
    assert served.caller == ALICE
    payload = b"payload"
    assert served.opener.check(call.sealer.tag(Kind.LAST, payload), payload) is Kind.LAST
    answer = b"answer"
    opener = call.opener(served.salt)
    assert opener.check(served.sealer.tag(Kind.LAST, answer[:3], answer[3:]), answer) is Kind.LAST


def test_a_call_is_refused_everywhere_else() -> None:
    """A removal that is replayed to another node would destroy a good copy."""
    call = keys(ALICE).call(METHOD, BOB)
    assert refused(keys(CAROL), METHOD, field(call)) == "head"
    assert refused(keys(BOB), METHOD.replace("Batch", "PutShard"), field(call)) == "head"
    assert refused(keys(BOB, "another secret of the same form"), METHOD, field(call)) == "head"
    assert refused(keys(BOB), METHOD, []) == "absent"
    assert refused(keys(BOB), METHOD, field(call) * 2) == "absent"


@pytest.mark.parametrize("late_s", [PEER_CALL_SKEW_S + 1, -PEER_CALL_SKEW_S - 1])
def test_a_call_of_another_time_is_refused(late_s: float) -> None:
    call = keys(ALICE).call(METHOD, BOB)
    assert refused(keys(BOB, now=NOW + late_s), METHOD, field(call)) == "time"
    assert keys(BOB, now=NOW + late_s * 0.99).admit(METHOD, field(call)).caller == ALICE


def test_every_bit_of_a_head_counts() -> None:
    head = keys(ALICE).call(METHOD, BOB).head
    for bit in range(8 * len(head)):
        changed = bytearray(head)
        changed[bit // 8] ^= 1 << bit % 8
        assert refused(keys(BOB), METHOD, [b64encode(changed)]) == "head"


@given(st.binary(max_size=200))
def test_a_head_of_anything_is_refused(value: bytes) -> None:
    assert refused(keys(BOB), METHOD, [value]) == "head"


def test_two_calls_have_nothing_in_common() -> None:
    one, two = keys(ALICE).call(METHOD, BOB), keys(ALICE).call(METHOD, BOB)
    assert one.head != two.head
    served = keys(BOB).admit(METHOD, field(one))
    with pytest.raises(NotAuthentic):
        served.opener.check(two.sealer.tag(Kind.DOCUMENT, b"x"), b"x")


def test_a_head_that_comes_twice_is_answered_under_two_keys() -> None:
    """Two answers under one key and number would give away what makes a third."""
    call = keys(ALICE).call(METHOD, BOB)
    first, second = (keys(BOB).admit(METHOD, field(call)) for _ in range(2))
    assert first.salt != second.salt
    assert first.sealer.tag(Kind.LAST, b"same") != second.sealer.tag(Kind.LAST, b"same")


def test_a_request_is_no_answer() -> None:
    call, served = both()
    tag = call.sealer.tag(Kind.LAST, b"said by Alice")
    with pytest.raises(NotAuthentic):
        call.opener(served.salt).check(tag, b"said by Alice")


PAYLOADS = [b"first", b"second", b"third"]


def stream() -> tuple[Served, list[bytes]]:
    call, served = both()
    tags = [call.sealer.tag(Kind.FRAMES, payload) for payload in PAYLOADS]
    return served, [*tags, call.sealer.tag(Kind.LAST, b"end")]


def test_messages_come_in_order_and_once() -> None:
    served, tags = stream()
    for tag, payload in zip(tags, [*PAYLOADS, b"end"], strict=True):
        served.opener.check(tag, payload)
    assert served.opener.ended
    with pytest.raises(NotAuthentic):
        served.opener.check(tags[0], PAYLOADS[0])


@pytest.mark.parametrize("order", [[1], [0, 0], [0, 2], [0, 1, 1], [0, 3]])
def test_reordered_repeated_and_left_out_messages_are_found(order: list[int]) -> None:
    served, tags = stream()
    payloads = [*PAYLOADS, b"end"]
    *good, bad = order
    for number in good:
        served.opener.check(tags[number], payloads[number])
    with pytest.raises(NotAuthentic):
        served.opener.check(tags[bad], payloads[bad])


def test_an_altered_message_is_found() -> None:
    for position in range(17):
        served, tags = stream()
        tag = bytearray(tags[0])
        tag[position] ^= 1
        with pytest.raises(NotAuthentic):
            served.opener.check(tag, PAYLOADS[0])
    served, tags = stream()
    with pytest.raises(NotAuthentic):
        served.opener.check(tags[0], b"firsT")


def test_nothing_shows_the_secret() -> None:
    made = keys(ALICE)
    call, served = both()
    shown = " ".join(map(repr, (made, call, served, call.sealer, served.opener)))
    assert SECRET not in shown
    assert not hasattr(made, "__dict__")


# -- messages on the wire


class Wire:
    """A stream's body that is there already."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def readinto(self, view: memoryview) -> int:
        piece, self.data = self.data[: len(view)], self.data[len(view) :]
        view[: len(piece)] = piece
        return len(piece)


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def receive(data: bytes, served: Served) -> tuple[Kind, bytes]:
    async def main() -> tuple[Kind, bytes]:
        kind, payload = await Requests(Wire(data), served, Buffers(asyncio.get_running_loop())).next()
        return kind, bytes(payload)

    return asyncio.run(main())


@pytest.mark.parametrize("size", [1, 127, 128, 16_383, 16_384, 65_536, 65_537, 1 << 20, (1 << 21) - 1, 1 << 21])
def test_messages_of_every_size_arrive(size: int) -> None:
    call, served = both()
    payload = bytes(range(256)) * (size // 256 + 1)
    message = seal(call.sealer, Kind.FRAMES, payload[: size // 2], payload[size // 2 : size])
    parsed = pb.Sealed.FromString(message)
    assert parsed.payload == payload[:size], "it is what protobuf takes it for"
    assert parsed.SerializeToString() == message, "and what protobuf would have written"
    assert receive(framed(message), served) == (Kind.FRAMES, payload[:size])
    answer = seal(served.sealer, Kind.LAST, payload[:size], salt=served.salt)
    kind, view = Answers(call).open(answer)
    assert (kind, bytes(view)) == (Kind.LAST, payload[:size])


def test_a_stream_that_is_cut_off_is_not_complete() -> None:
    call, served = both()
    data = framed(seal(call.sealer, Kind.FRAMES, b"payload"))
    for end in range(len(data)):
        with pytest.raises(IncompleteBody):
            receive(data[:end], keys(BOB).admit(METHOD, field(call)))
    assert receive(data, served)[1] == b"payload"


def test_a_message_in_another_form_is_refused() -> None:
    call, served = both()
    tag = call.sealer.tag(Kind.FRAMES, b"payload")
    good = head_of(tag, 7) + b"payload"
    forms = [
        b"",
        good[19:] + good[:19],  # the fields in another order
        good[:-8] + b"\x87\x00payload",  # a length that is written too long
        good + b"\x18\x01",  # another field
        b"\x0a\x10" + tag[1:] + b"\x12\x07payload",  # a tag without its kind
        good[:19],
    ]
    for form in forms:
        with pytest.raises((NotAuthentic, IncompleteBody)):
            receive(framed(form), served)
    with pytest.raises(NotAuthentic):
        receive(b"\1" + framed(good)[1:], served)  # compressed
    with pytest.raises(MessageTooLarge):
        receive(b"\0" + (GRPC_MESSAGE_BYTES_MAX + 1).to_bytes(4, "big"), served)


@given(st.binary(max_size=300))
def test_garbage_is_no_message(data: bytes) -> None:
    call, served = both()
    with pytest.raises((NotAuthentic, IncompleteBody, MessageTooLarge)):
        receive(data, served)
    with pytest.raises(NotAuthentic):
        Answers(call).open(data)


def test_documents() -> None:
    payload = memoryview(b"".join(document(pb.Footer(footer=b"abc"), b"behind ", b"it")))
    message, data = read_document(pb.Footer, payload)
    assert (message.footer, bytes(data)) == (b"abc", b"behind it")
    for broken in (payload[:3], payload[:6], memoryview(b"\x02\0\0\0\xff\xff")):
        with pytest.raises(InvalidRequest):
            read_document(pb.Footer, broken)
