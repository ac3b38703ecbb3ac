"""How old a call is, by clocks that differ."""

from __future__ import annotations

from anvil.base.limits import PEER_CLOCK_S
from anvil.peers.ages import Ages

A, B = b"a" * 16, b"b" * 16


class Node:
    """One that hears others, whose clocks are ahead by so much."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.ages = Ages(lambda: self.now_s)

    def hear(self, caller: bytes, ahead_s: float, late_s: float = 0.0) -> float:
        """How old a call is found to be that was so long on its way."""
        sent_s = self.now_s - late_s + ahead_s
        self.ages.heard(caller, sent_s)
        return self.ages.of(caller, sent_s)


def test_a_clock_that_differs_makes_no_call_older() -> None:
    node = Node()
    for ahead_s in (-200.0, 0.0, 200.0):
        node.ages = Ages(lambda: node.now_s)
        assert node.hear(A, ahead_s) == 0
        assert node.hear(A, ahead_s, late_s=3.0) == 3.0
        assert node.hear(B, -ahead_s) == 0, "each has its own"


def test_a_call_ages_while_it_is_read() -> None:
    node = Node()
    node.ages.heard(A, 1000.0)
    node.now_s += 5
    assert node.ages.of(A, 1000.0) == 5


def test_what_waited_while_this_node_stood_still_is_old() -> None:
    node = Node()
    node.hear(A, 10.0)
    for pause_s in (PEER_CLOCK_S / 2, PEER_CLOCK_S * 100):
        node.now_s += pause_s
        assert node.hear(A, 10.0, late_s=pause_s - 1) == pause_s - 1
        assert node.hear(A, 10.0) == 0


def test_a_clock_that_was_set_back_is_met_after_two_periods() -> None:
    node = Node()
    node.hear(A, 0.0)
    assert node.hear(A, -30.0) == 30, "it may be late"
    for _ in range(2):
        node.now_s += PEER_CLOCK_S
        node.hear(A, -30.0)
    assert node.hear(A, -30.0) == 0
    assert node.hear(A, 5.0) == 0, "set forward, at once"
