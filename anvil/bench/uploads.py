"""Multipart uploads: several connections send the parts of one object, and whoever sends the last one completes it.

Three operations are counted: `part` (its bytes), `complete`, and `multipart`, the whole object from before CreateMultipartUpload until
after CompleteMultipartUpload. Owns: the scripts. Invariant: an upload of which a part was refused is aborted and counts as one failure
of `multipart`. Source: Amazon S3 API Reference, "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload".
"""

from __future__ import annotations

import re
from html import unescape
from itertools import count
from typing import Final, cast

from anvil.bench.exchange import Answer, Request, now_ns
from anvil.bench.http import Park, Script, Wait
from anvil.bench.operations import Work
from anvil.bench.outgoing import Content
from anvil.bench.plan import part_count
from anvil.bench.sign import parameter

_ID: Final = re.compile(rb"<UploadId>([^<]+)</UploadId>")
_ETAG: Final = re.compile(rb"(?i)\r\netag:[ \t]*([^\r]+?)[ \t]*\r\n")
_DONE: Final = re.compile(rb"<CompleteMultipartUploadResult[\s>]")
_CODE: Final = re.compile(rb"<Code>([^<]+)</Code>")


class Upload:
    """One object on its way. `number`: what part follows; `open`: parts that are not answered yet; `failed`: the first refusal."""

    def __init__(self, path: bytes, upload_id: bytes, content: Content, parts: int, begun_ns: int) -> None:
        self.path, self.content, self.parts, self.begun_ns = path, content, parts, begun_ns
        self.query = b"uploadId=" + parameter(unescape(upload_id.decode()))
        self.etags: list[bytes] = [b""] * parts
        self.number = 0
        self.open = 0
        self.failed: Answer | None = None

    @property
    def has_more(self) -> bool:
        return self.failed is None and self.number < self.parts


class Team(Park):
    """The connections of one object at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.upload: Upload | None = None
        self.leading = False  # somebody begins or ends an upload
        self.over = False


def scripts(work: Work) -> list[Script]:
    """One for each connection; teams of `parallel`, the last one of what is left."""
    numbers = count()
    made: list[Script] = []
    while len(made) < work.share.connections:
        team = Team()
        made += [member(work, team, numbers) for _ in range(min(work.plan.parallel, work.share.connections - len(made)))]
    return made


def member(work: Work, team: Team, numbers: count[int]) -> Script:
    """Begins an upload where there is none, sends parts, or waits for the others."""
    while not team.over:
        upload = team.upload
        if upload is None and not team.leading:
            team.leading = True
            yield from begin(work, team, numbers)
            team.leading = False
            team.wake()
        elif upload is not None and upload.has_more:
            yield from send_part(work, upload)
            if upload.open == 0 and not upload.has_more and team.upload is upload:
                team.upload, team.leading = None, True
                yield from end(work, upload)
                team.leading = False
                team.wake()
        else:
            yield team


def begin(work: Work, team: Team, numbers: count[int]) -> Script:
    due = work.claim()
    if due > now_ns():
        yield Wait(due)
    if due < 0 or work.stopped:
        team.over = True
        return
    key = work.key(next(numbers))
    content, path = work.contents.of(key), work.path(key)
    answer = cast(Answer, (yield Request(b"POST", path, b"uploads=", body=b"", due_ns=due)))
    found = _ID.search(answer.body)
    if answer.code or found is None:
        work.recorder.add("multipart", answer, 0, key, "" if answer.code else "no upload id")
        return
    team.upload = Upload(path, found[1], content, part_count(content.size, work.plan.part_bytes), answer.begun_ns)


def send_part(work: Work, upload: Upload) -> Script:
    at, size = upload.number, work.plan.part_bytes
    upload.number += 1
    upload.open += 1
    first, last = at * size, min((at + 1) * size, upload.content.size)
    query = b"partNumber=%d&%s" % (at + 1, upload.query)
    answer = cast(Answer, (yield Request(b"PUT", upload.path, query, content=upload.content, begin=first, end=last)))
    upload.open -= 1
    found = _ETAG.search(answer.head)
    damage = "" if found or answer.code else "a part without an ETag"
    if work.recorder.add("part", answer, last - first, upload.path, damage) and found:
        upload.etags[at] = found[1]
    elif upload.failed is None:
        upload.failed = answer


def end(work: Work, upload: Upload) -> Script:
    if upload.failed is not None:
        work.recorder.note("multipart", upload.begun_ns, now_ns(), 0, True)
        yield Request(b"DELETE", upload.path, upload.query)
        return
    parts = b"".join(
        b"<Part><PartNumber>%d</PartNumber><ETag>%s</ETag></Part>" % (number, etag.replace(b'"', b"&quot;"))
        for number, etag in enumerate(upload.etags, 1)
    )
    document = b'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">%s</CompleteMultipartUpload>' % parts
    answer = cast(Answer, (yield Request(b"POST", upload.path, upload.query, body=document)))
    damage = ""
    if not answer.code and not _DONE.search(answer.body):  # S3 may say 200 before it knows, and then an error
        found = _CODE.search(answer.body)
        damage = found[1].decode(errors="replace") if found else "no CompleteMultipartUploadResult"
    good = work.recorder.add("complete", answer, 0, upload.path, damage)
    work.recorder.note("multipart", upload.begun_ns, answer.ended_ns, upload.content.size, not good)
