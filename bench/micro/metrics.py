"""What counting costs: our counters and histograms beside prometheus_client's, in nanoseconds a call. Run: python -m bench.micro.metrics"""

from __future__ import annotations

import timeit
from collections.abc import Callable

import prometheus_client

from anvil.base.metrics import Registry
from bench.figures import figure

CALLS = 200_000
ROUNDS = 5


def nanoseconds(call: Callable[[], object]) -> float:
    return min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS * 1e9


def main() -> None:
    registry = Registry()
    counter = registry.counter("calls_total", "Calls.", "kind").labels("x")
    histogram = registry.histogram("seconds", "Time.", "kind").labels("x")
    theirs = prometheus_client.CollectorRegistry()
    their_counter = prometheus_client.Counter("calls", "Calls.", ["kind"], registry=theirs).labels("x")
    their_histogram = prometheus_client.Histogram("seconds", "Time.", ["kind"], registry=theirs).labels("x")
    for name, call in (
        ("counter", counter.inc),
        ("histogram", lambda: histogram.observe(0.003)),
        ("counter, prometheus_client", their_counter.inc),
        ("histogram, prometheus_client", lambda: their_histogram.observe(0.003)),
    ):
        figure(f"metrics: {name}", nanoseconds(call), "ns")


if __name__ == "__main__":
    main()
