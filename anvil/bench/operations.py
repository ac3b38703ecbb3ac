"""The scripts of `anvil bench`: what each connection asks for, one request after the other, and what an answer must be like.

Owns: the keys of one process (`<run>/w<process>/p<prefix>/<number>`), which it alone writes, reads and deletes. Invariants: what is read
is compared with what the key says it holds; an object that is being read is not deleted meanwhile. Not here: multipart uploads
(`uploads.py`), sockets, and which answers count (`record.py`).
"""

from __future__ import annotations

import random
import re
from bisect import bisect
from collections.abc import Callable, Generator
from itertools import accumulate
from typing import Final, cast

from anvil.base.errors import Unavailable
from anvil.base.limits import BENCH_CLEAN_TRIES
from anvil.bench.content import contents
from anvil.bench.exchange import Answer, Request, now_ns
from anvil.bench.http import Park, Script, Wait
from anvil.bench.plan import Plan, Share, Target
from anvil.bench.record import FOREVER_NS, SECOND_NS, Recorder
from anvil.bench.sign import parameter
from anvil.bench.sizes import parse_sizes

_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n")
_KEY: Final = re.compile(rb"<Key>([^<]*)</Key>")
_TOKEN: Final = re.compile(rb"<NextContinuationToken>([^<]*)</NextContinuationToken>")
TRIES = 8  # to find an object that nobody reads


class Work:
    """What the connections of one process share: keys, chance, the clock, and how much is still to be done."""

    def __init__(self, target: Target, plan: Plan, share: Share) -> None:
        self.plan, self.share = plan, share
        self.contents = contents(plan.seed, parse_sizes(plan.size))
        self.recorder = Recorder()
        self.rng = random.Random(f"{plan.seed}/{share.number}")
        self.bucket = f"/{target.bucket}".encode()
        self.folder = f"{plan.prefix}w{share.number:03d}/".encode()
        self.prefixes = min(plan.prefixes, share.objects) if plan.operation == "list" else plan.prefixes
        self.stopped = False
        self.ran_out = False
        self.not_begun = 0
        self._left = share.count if plan.count else FOREVER_NS
        self._end_ns = FOREVER_NS
        self._step_ns = int(SECOND_NS / share.rate) if share.rate else 0
        self._due_ns = 0

    def begin(self, start_ns: int) -> None:
        """The first request is due at `start_ns`; the window is behind the warm-up."""
        begin_ns = start_ns + int(self.plan.warmup_s * SECOND_NS)
        self._end_ns = begin_ns + int(self.plan.duration_s * SECOND_NS) if self.plan.duration_s else FOREVER_NS
        # The processes of an open loop take turns.
        self._due_ns = start_ns + self._step_ns * self.share.number // max(1, self.plan.processes)
        self.recorder.window(begin_ns, self._end_ns)

    def stop(self) -> None:
        """No more requests; the window ends here."""
        self.stopped = True
        self.recorder.end_ns = min(self.recorder.end_ns, now_ns())

    def run_out(self) -> None:
        """There is nothing left to work on."""
        self.ran_out, self._left = True, 0

    def claim(self) -> int:
        """When the next request is due: 0 at once, -1 never."""
        now = now_ns()
        if self.stopped or self._left <= 0 or now >= self._end_ns:
            return -1
        if self._step_ns == 0:
            self._left -= 1
            return 0
        due = self._due_ns
        if due >= self._end_ns:
            return -1
        self._due_ns += self._step_ns
        self._left -= 1
        return due

    def finish(self) -> None:
        """Nothing runs any more: what a rate asked for beyond that was not begun."""
        end_ns = min(self._end_ns, self.recorder.end_ns)
        if self._step_ns and end_ns < FOREVER_NS and self._due_ns < end_ns:
            self.not_begun = -(-(end_ns - self._due_ns) // self._step_ns)

    def key(self, number: int) -> bytes:
        """Of the object with that number."""
        return b"%sp%05d/%012d" % (self.folder, number % self.prefixes, number)

    def path(self, key: bytes) -> bytes:
        return b"%s/%s" % (self.bucket, key)

    def put(self, number: int, due_ns: int = 0) -> Request:
        key = self.key(number)
        return Request(b"PUT", self.path(key), content=self.contents.of(key), due_ns=due_ns)


def looped(work: Work, one: Callable[[int], Script]) -> Script:
    """Run `one` when it is due, until there is nothing more to be done."""
    while True:
        due = work.claim()
        if due < 0:
            return
        if due > now_ns():
            yield Wait(due)
            if work.stopped:
                return
        yield from one(due)


def prepare(work: Work) -> list[Script]:
    """Stores the objects that the run needs. Raises Unavailable when one of them is refused again and again."""
    numbers = iter(range(work.share.objects))

    def script() -> Script:
        for number in numbers:
            for attempt in range(BENCH_CLEAN_TRIES):
                if work.stopped:
                    return
                answer = cast(Answer, (yield work.put(number)))
                if not answer.code:
                    break
                if attempt == BENCH_CLEAN_TRIES - 1:
                    raise Unavailable(f"an object could not be stored before the run: {said(answer)}")

    return [script() for _ in range(work.share.connections)]


def said(answer: Answer) -> str:
    """What an answer says is wrong, for people."""
    found = re.search(rb"<Message>([^<]{0,512})</Message>", answer.body)
    return f"{answer.code}: {found[1].decode(errors='replace')}" if found else answer.code


def scripts(work: Work) -> list[Script]:
    """One for each connection, for every operation but `multipart`."""
    makers: dict[str, Callable[[Work], Callable[[int], Script]]] = {
        "put": putting,
        "get": getting,
        "stat": stating,
        "delete": deleting,
        "list": listing,
        "mixed": mixing,
    }
    one = makers[work.plan.operation](work)
    return [looped(work, one) for _ in range(work.share.connections)]


def putting(work: Work) -> Callable[[int], Script]:
    """New objects, without end."""
    following = iter(range(work.share.objects, 1 << 60))

    def one(due: int) -> Script:
        request = work.put(next(following), due)
        answer = cast(Answer, (yield request))
        work.recorder.add("put", answer, request.end, request.path)

    return one


def getting(work: Work) -> Callable[[int], Script]:
    """Objects at random, each compared with what its key says."""

    def one(due: int) -> Script:
        yield from get_one(work, int(work.rng.random() * work.share.objects), due)

    return one


def get_one(work: Work, number: int, due: int) -> Script:
    key = work.key(number)
    content = work.contents.of(key)
    answer = cast(Answer, (yield Request(b"GET", work.path(key), expect=content, due_ns=due)))
    work.recorder.add("get", answer, content.size, key)


def stating(work: Work) -> Callable[[int], Script]:
    """HEAD of objects at random, whose size must be what the key says."""

    def one(due: int) -> Script:
        yield from stat_one(work, int(work.rng.random() * work.share.objects), due)

    return one


def stat_one(work: Work, number: int, due: int) -> Script:
    key = work.key(number)
    size = work.contents.of(key).size
    answer = cast(Answer, (yield Request(b"HEAD", work.path(key), due_ns=due)))
    damage = ""
    if not answer.code:
        found = _LENGTH.search(answer.head)
        if found is None or int(found[1]) != size:
            damage = f"Content-Length {found[1].decode() if found else 'is missing'} instead of {size}"
    work.recorder.add("stat", answer, 0, key, damage)


def deleting(work: Work) -> Callable[[int], Script]:
    """Each object once; the run ends when there is none left."""
    numbers = iter(range(work.share.objects))

    def one(due: int) -> Script:
        number = next(numbers, None)
        if number is None:
            work.run_out()
            return
        yield from delete_one(work, number, due)

    return one


def delete_one(work: Work, number: int, due: int) -> Script:
    key = work.key(number)
    answer = cast(Answer, (yield Request(b"DELETE", work.path(key), due_ns=due)))
    work.recorder.add("delete", answer, 0, key)


def listing(work: Work) -> Callable[[int], Script]:
    """ListObjectsV2 of prefixes at random, page by page; each page is a request, and must name exactly the keys that belong on it."""
    keys: dict[int, list[bytes]] = {}
    for number in range(work.share.objects):
        keys.setdefault(number % work.prefixes, []).append(work.key(number))
    most = work.plan.max_keys

    def query(chosen: int, token: bytes) -> bytes:
        prefix = parameter(f"{work.folder.decode()}p{chosen:05d}/")
        further = b"continuation-token=%s&" % token if token else b""
        return b"%slist-type=2&max-keys=%d&prefix=%s" % (further, most, prefix)

    def one(due: int) -> Script:
        chosen, token, page = int(work.rng.random() * len(keys)), b"", 0
        while True:
            answer = cast(Answer, (yield Request(b"GET", work.bucket, query(chosen, token), due_ns=due)))
            wanted = keys[chosen][page * most : (page + 1) * most]
            found = _KEY.findall(answer.body) if not answer.code else wanted
            damage = "" if found == wanted else f"page {page} has {len(found)} keys, or others, instead of {len(wanted)}"
            following = _TOKEN.search(answer.body)
            if not answer.code and not damage and bool(following) != (len(keys[chosen]) > (page + 1) * most):
                damage = f"page {page} {'is not' if following else 'is'} said to be the last one"
            if not work.recorder.add("list", answer, len(answer.body), work.key(chosen), damage) or following is None:
                return
            due = work.claim()
            if due < 0:
                return
            if due > now_ns():
                yield Wait(due)
            token, page = parameter(following[1].decode()), page + 1

    return one


def mixing(work: Work) -> Callable[[int], Script]:
    """Several operations on objects that come and go."""
    names = [name for name, weight in work.plan.mix.items() if weight]
    bounds = list(accumulate(work.plan.mix[name] for name in names))
    there = list(range(work.share.objects))  # in no order
    read: dict[int, int] = {}  # objects in `there` that are being read -> by how many
    following = iter(range(work.share.objects, 1 << 60))

    def pick() -> int:
        """Where in `there`; -1 where nothing is."""
        return int(work.rng.random() * len(there)) if there else -1

    def reading(ask: Callable[[Work, int, int], Script], number: int, due: int) -> Script:
        read[number] = read.get(number, 0) + 1
        yield from ask(work, number, due)
        read[number] -= 1
        if not read[number]:
            del read[number]

    def removing(due: int) -> Generator[Request | Wait | Park, Answer | None, bool]:
        """False: everything that was looked at is being read."""
        for _ in range(TRIES):
            at = pick()
            if at >= 0 and there[at] not in read:
                number, there[at] = there[at], there[-1]
                there.pop()
                yield from delete_one(work, number, due)
                return True
        return False

    def one(due: int) -> Script:
        name = names[bisect(bounds, int(work.rng.random() * bounds[-1]))]
        if name == "delete" and (yield from removing(due)):
            return
        at = pick()
        if at >= 0 and name in ("get", "stat"):
            yield from reading(get_one if name == "get" else stat_one, there[at], due)
            return
        request = work.put(next(following), due)  # also where there is nothing to read or to remove
        answer = cast(Answer, (yield request))
        if work.recorder.add("put", answer, request.end, request.path):
            there.append(int(request.path[-12:]))

    return one
