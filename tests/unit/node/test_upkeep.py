"""What a node does in the background: the wiring."""

from __future__ import annotations

from anvil.node.upkeep import Upkeep


def test_no_move_takes_a_place_of_what_must_not_wait() -> None:
    bare = object.__new__(Upkeep)
    assert {"collect", "repair", "usage", "buckets", "uploads"} == bare.work.keys()
    assert {"rebalance"} == bare.moves.keys(), "by a worker of its own"
