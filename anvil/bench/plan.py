"""What a run does: against which endpoint, which operation, how much of it, and how it is dealt out to processes.

Owns: the rules that options obey together. Invariant: a plan that `check` let pass can be carried out as it stands, and nothing in it is
ignored. Not here: where options come from (`cli/bench.py`), sizes (`sizes.py`).
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

import msgspec

from anvil.base.errors import InvalidSetting
from anvil.base.limits import (
    BENCH_CONNECTIONS_MAX,
    BENCH_COUNT_MAX,
    BENCH_DURATION_S_MAX,
    BENCH_OBJECTS_MAX,
    BENCH_PREFIXES_MAX,
    BENCH_PROCESSES_MAX,
    LIST_KEYS_MAX,
    PART_BYTES_MIN,
    PART_NUMBER_MAX,
    PUT_BYTES_MAX,
)
from anvil.bench.sizes import parse_sizes

OPERATIONS: Final = ("put", "get", "mixed", "list", "delete", "stat", "multipart")
MIXABLE: Final = ("get", "put", "stat", "delete")
READING: Final = frozenset({"get", "stat", "list", "delete", "mixed"})  # those that need objects to be there
_PREFIX: Final = re.compile(r"[A-Za-z0-9._-]{1,64}(?:/[A-Za-z0-9._-]{1,64}){0,4}/")


class Target(msgspec.Struct, frozen=True):
    """An endpoint, whom it is asked by, and the bucket. `ca`: a file with the certificates to trust, "": the system's; `token`: of a
    session."""

    host: str
    port: int
    tls: bool
    access_key: str
    secret: str
    region: str
    bucket: str
    ca: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return f"Target({self.url!r}, {self.bucket!r}, {self.access_key!r})"

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host_header}"

    @property
    def host_header(self) -> str:
        """As HTTP clients send it: without the usual port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`duration_s` or `count` is 0, the other one decides; `rate`: requests per second of an open loop, 0: a closed one; `size` as it
    was written; `objects`: how many there are before the clock starts; `prefix`: that all keys of the run begin with; `mix`: weights."""

    operation: str
    prefix: str
    size: str = "4KiB"
    concurrency: int = 16
    processes: int = 1
    duration_s: float = 0.0
    count: int = 0
    warmup_s: float = 0.0
    rate: float = 0.0
    objects: int = 0
    prefixes: int = 1
    mix: dict[str, int] = {}
    part_bytes: int = 0
    parallel: int = 0
    max_keys: int = LIST_KEYS_MAX
    signed: bool = False
    seed: int = 1
    timeout_s: float = 60.0
    create_bucket: bool = False
    keep: bool = False


class Share(msgspec.Struct, frozen=True):
    """What one process does of a plan; `number` counts from 0."""

    number: int
    connections: int
    count: int
    objects: int
    rate: float


def parse_endpoint(text: str) -> tuple[str, int, bool]:
    """Host, port and whether TLS is spoken, of http://host[:port] or https://host[:port]. Raises InvalidSetting."""
    split = urlsplit(text)
    try:
        host, port = split.hostname, split.port
    except ValueError:
        raise InvalidSetting(f"{text!r} has no valid port") from None
    if split.scheme not in ("http", "https") or not host:
        raise InvalidSetting(f"{text!r} is not an endpoint: http://host[:port] or https://host[:port]")
    if split.path not in ("", "/") or split.query or split.fragment or "@" in split.netloc:
        raise InvalidSetting(f"{text!r} is not an endpoint: nothing stands behind the host and its port, and nothing before it")
    tls = split.scheme == "https"
    return host, port or (443 if tls else 80), tls


def parse_mix(text: str) -> dict[str, int]:
    """`get=45,put=15,stat=30,delete=10`: weights of any sum. Raises InvalidSetting."""
    mix: dict[str, int] = {}
    for part in text.split(","):
        name, equals, weight = (piece.strip() for piece in part.partition("="))
        if name not in MIXABLE or not equals or not re.fullmatch(r"\d{1,6}", weight):
            raise InvalidSetting(f"{part.strip()!r} in --mix is not NAME=WEIGHT, with one of {', '.join(MIXABLE)}")
        if name in mix:
            raise InvalidSetting(f"{name} is twice in --mix")
        mix[name] = int(weight)
    if sum(mix.values()) == 0:
        raise InvalidSetting("--mix has no weight above 0")
    return mix


def parse_seconds(text: str) -> float:
    """`10`, `10s`, `1.5m`, `1h`. Raises InvalidSetting."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)(s|m|h)?", text.strip())
    if found is None:
        raise InvalidSetting(f"{text!r} is not a time: a number of seconds, or one with s, m or h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"]


def check(plan: Plan) -> None:
    """Raises InvalidSetting with one line that says what is wrong."""
    if plan.operation not in OPERATIONS:
        raise InvalidSetting(f"{plan.operation!r} is not one of {', '.join(OPERATIONS)}")
    if not _PREFIX.fullmatch(plan.prefix):
        raise InvalidSetting(f"{plan.prefix!r} cannot be a run's prefix: letters, digits, `.`, `_`, `-`, at most five folders")
    for name, value, low, high in (
        ("--concurrency", plan.concurrency, 1, BENCH_CONNECTIONS_MAX),
        ("--processes", plan.processes, 1, BENCH_PROCESSES_MAX),
        ("--prefixes", plan.prefixes, 1, BENCH_PREFIXES_MAX),
        ("--max-keys", plan.max_keys, 1, LIST_KEYS_MAX),
        ("--seed", plan.seed, 0, 2**64 - 1),
        ("--timeout", plan.timeout_s, 1, BENCH_DURATION_S_MAX),
        ("--rate", plan.rate, 0, 1e9),
        ("--count", plan.count, 0, BENCH_COUNT_MAX),
        ("--duration", plan.duration_s, 0, BENCH_DURATION_S_MAX),
        ("--warmup", plan.warmup_s, 0, BENCH_DURATION_S_MAX),
        ("--objects", plan.objects, 0, BENCH_OBJECTS_MAX),
    ):
        if not low <= value <= high:
            raise InvalidSetting(f"{name} is {value:,g}: it can be {low:,g} to {high:,g}")
    if bool(plan.count) == bool(plan.duration_s):
        raise InvalidSetting("either --duration or --count says how long a run is")
    if plan.count and plan.warmup_s:
        raise InvalidSetting("--warmup is a time before --duration: a run of --count has none")
    if plan.processes > plan.concurrency:
        raise InvalidSetting(f"{plan.processes} processes cannot share {plan.concurrency} connections")
    if plan.operation in READING and plan.objects < plan.processes:
        raise InvalidSetting(f"{plan.processes} processes need an object each: --objects is {plan.objects}")
    if plan.operation == "delete" and plan.count > plan.objects:
        raise InvalidSetting(f"--count {plan.count} deletes more objects than there are: --objects is {plan.objects}")
    _check_mix(plan)
    _check_sizes(plan)


def _check_mix(plan: Plan) -> None:
    if plan.operation == "mixed" and not plan.mix:
        raise InvalidSetting("mixed needs --mix")
    if plan.mix.get("delete", 0) > plan.mix.get("put", 0):
        raise InvalidSetting("--mix deletes more than it puts, and would run out of objects")


def _check_sizes(plan: Plan) -> None:
    sizes = parse_sizes(plan.size)
    if plan.operation != "multipart":
        if sizes.largest > PUT_BYTES_MAX:
            raise InvalidSetting("--size is at most 5 GiB: larger objects are for `multipart`")
        return
    if plan.parallel < 1 or plan.parallel > plan.concurrency:
        raise InvalidSetting(f"--parallel is {plan.parallel}: it can be 1 to --concurrency, {plan.concurrency}")
    if sizes.smallest < 1:
        raise InvalidSetting("an object of several parts has at least one byte")
    if not 1 <= plan.part_bytes <= PUT_BYTES_MAX:
        raise InvalidSetting("--part-size is at least 1 byte and at most 5 GiB")
    if sizes.largest > plan.part_bytes and plan.part_bytes < PART_BYTES_MIN:
        raise InvalidSetting("--part-size is at least 5 MiB where an object has more than one part")
    if sizes.largest > plan.part_bytes * PART_NUMBER_MAX:
        raise InvalidSetting(f"--size needs more than {PART_NUMBER_MAX:,} parts: make --part-size larger")


def shares(plan: Plan) -> list[Share]:
    """One for each process; what cannot be divided goes to the first ones."""

    def piece(total: int, number: int) -> int:
        return total // plan.processes + (number < total % plan.processes)

    made = []
    for number in range(plan.processes):
        connections = piece(plan.concurrency, number)
        rate = plan.rate * connections / plan.concurrency
        made.append(Share(number, connections, piece(plan.count, number), piece(plan.objects, number), rate))
    return made


def default_objects(operation: str, count: int) -> int:
    """How many objects there are before the clock starts, where nobody said."""
    if operation not in READING:
        return 0
    if operation == "delete":
        return count or 10_000
    return 1_000


def part_count(size: int, part_bytes: int) -> int:
    """Of an object of `size` bytes."""
    return max(1, -(-size // part_bytes))
