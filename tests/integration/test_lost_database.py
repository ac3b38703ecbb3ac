"""The drill of a lost regional database on a real node: dumped, gone on with, dropped, rebuilt from the drives, accepted."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.support.load import rows
from tests.support.lost import command, lose_database, start_closed
from tests.support.node import AnvilNode, wait_until
from tests.support.samples import PART_BYTES, put_all, put_parts

BUCKET, LATER = "salvaged", "later-bucket"
ODD = ("a", "a/b", "ü/ñ€😀", " spaced  out ", "tab\tand\nline", "%2F..%00", "x" * 1024)
GONE, UNSEEN = " spaced  out ", "later, and deleted unseen"
ONCE = Config(retries={"max_attempts": 1, "mode": "standard"})


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AnvilNode]:
    drives = ",".join(str(tmp_path / f"drive{number}") for number in range(4))
    with AnvilNode(tmp_path / "data", env={"ANVIL_DRIVES": drives, "ANVIL_SCHEME": "2+2", "ANVIL_WORKERS": "1"}) as running:
        yield running


def contents(s3: Any, bucket: str = BUCKET) -> dict[str, bytes]:
    """Everything that can be seen, byte for byte."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    return {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def code_of(call: Any, **arguments: Any) -> tuple[int, str]:
    with pytest.raises(ClientError) as refused:
        call(**arguments)
    return refused.value.response["ResponseMetadata"]["HTTPStatusCode"], refused.value.response["Error"]["Code"]


def store(s3: Any, rng: random.Random) -> dict[str, bytes]:
    """Objects of every form, under odd keys too, with what clients say about them."""
    objects = put_all(s3, BUCKET, rng)
    for key in ODD:
        objects[key] = rng.randbytes(rng.choice((10, 5000, 100_000)))
        s3.put_object(Bucket=BUCKET, Key=key, Body=objects[key], ContentType="text/odd", Metadata={"who": "before"})
    s3.put_object(Bucket=BUCKET, Key="deleted before", Body=rng.randbytes(50_000))
    s3.delete_object(Bucket=BUCKET, Key="deleted before")
    s3.put_object(Bucket=BUCKET, Key="overwritten before", Body=rng.randbytes(80_000))
    objects["overwritten before"] = rng.randbytes(90_000)
    s3.put_object(Bucket=BUCKET, Key="overwritten before", Body=objects["overwritten before"])
    return objects


def go_on(s3: Any, rng: random.Random) -> dict[str, bytes]:
    """What happens after the dump. Returns what a salvage can bring back of it."""
    later = {f"later {size}": rng.randbytes(size) for size in (2_048, 70_000, 4_000_000)}
    for key, data in later.items():
        s3.put_object(Bucket=BUCKET, Key=key, Body=data, ContentType="text/later", Metadata={"who": "after"})
    for _ in range(2):  # of two the second
        later["a/b"] = rng.randbytes(150_000)
        s3.put_object(Bucket=BUCKET, Key="a/b", Body=later["a/b"], ContentType="text/later")
    for key in (GONE, UNSEEN):
        s3.put_object(Bucket=BUCKET, Key=key, Body=rng.randbytes(120_000))
    s3.put_object(Bucket=BUCKET, Key="later inline", Body=b"in the row alone")
    s3.delete_object(Bucket=BUCKET, Key="65536")
    put_parts(s3, BUCKET, "later parts", rng.randbytes(PART_BYTES + 5000))
    return later


def test_a_region_comes_back_as_of_its_dump_and_what_is_later_when_it_is_asked_for(node: AnvilNode) -> None:
    rng = random.Random(7)
    s3 = node.s3()
    s3.create_bucket(Bucket=BUCKET)
    objects = store(s3, rng)
    upload = s3.create_multipart_upload(Bucket=BUCKET, Key="open")["UploadId"]
    where = {"Bucket": BUCKET, "Key": "open", "UploadId": upload}
    first, second = rng.randbytes(PART_BYTES), rng.randbytes(100_000)
    s3.upload_part(**where, PartNumber=1, Body=first)
    usage = command(node, "usage")
    dumped = command(node, "salvage", "dump")
    assert dumped["rows"] > len(objects)
    assert code_of(s3.list_objects_v2, Bucket="dumps") == (404, "NoSuchBucket")
    assert command(node, "usage") == usage, "a dump is nobody's usage"

    later = go_on(s3, rng)
    s3.upload_part(**where, PartNumber=2, Body=second)
    s3.create_bucket(Bucket=LATER)
    later_there = rng.randbytes(30_000)
    s3.put_object(Bucket=LATER, Key="k", Body=later_there)
    node.stop()
    lose_database(node.data_dir)
    start_closed(node)

    # Nothing is said about any object, and nothing is taken for garbage.
    s3 = node.s3(config=ONCE)
    assert code_of(s3.get_object, Bucket=BUCKET, Key="a") == (503, "ServiceUnavailable")
    assert code_of(s3.list_objects_v2, Bucket=BUCKET) == (503, "ServiceUnavailable")
    assert code_of(s3.put_object, Bucket=BUCKET, Key="new", Body=b"") == (503, "ServiceUnavailable")
    assert code_of(s3.create_bucket, Bucket="new-bucket") == (503, "ServiceUnavailable")
    report = command(node, "fsck", "--rebuild-metadata")
    assert report["dump"] == dumped["dump"] and report["rows"] == dumped["rows"]
    assert report["buckets_added"] == 1 and report["away"] == [] and report["passed_over"] == []
    assert code_of(s3.get_object, Bucket=BUCKET, Key="a") == (503, "ServiceUnavailable"), "not before it is accepted"
    again = command(node, "fsck", "--rebuild-metadata")
    same = ("dump", "taken_us", "rows", "owned", "garbage", "older", "uncertain", "unreadable", "bucketless", "nameless")
    assert {name: again[name] for name in same} == {name: report[name] for name in same}, "it may be repeated"

    shown = command(node, "salvage", "accept", "--dump")
    assert shown["closed"] is False and shown["recovery"] is True
    wait_until("the node is ready", node.is_ready)
    assert contents(s3) == objects, "as of the dump: what was deleted after it is there again, and nothing later"
    assert contents(s3, LATER) == {}
    head = s3.head_object(Bucket=BUCKET, Key="a")
    assert (head["ContentType"], head["Metadata"]) == ("text/odd", {"who": "before"})
    assert [part["Size"] for part in s3.list_parts(**where)["Parts"]] == [PART_BYTES]
    assert command(node, "usage")[-1] == usage[-1], "usage follows from the rows"

    listed = command(node, "salvage", "list")
    obstacles = {(one["key"], one["obstacle"]) for one in listed}
    assert obstacles == {
        *((key, "") for key in (*later, GONE, UNSEEN)),
        ("open", ""),
        ("k", ""),
        ("later parts", "no upload"),
    }
    assert sum(one["key"] == "a/b" for one in listed) == 2
    assert {one["key"] for one in command(node, "salvage", "list", "--bucket", LATER)} == {"k"}

    # What a client deletes now stays deleted, whether it could see it or not, and whatever is accepted later.
    assert code_of(s3.delete_object, Bucket=BUCKET, Key="a/b", IfMatch='"other"') == (412, "PreconditionFailed")
    s3.delete_object(Bucket=BUCKET, Key=GONE)
    s3.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": UNSEEN}]})
    del objects[GONE]
    listed = command(node, "salvage", "list")
    assert {one["key"] for one in listed} == {*later, "open", "k", "later parts"}
    again = command(node, "fsck", "--rebuild-metadata")
    assert again["garbage"] == report["garbage"] + 3, "two that waited, and the one of the dump"
    assert {one["key"] for one in command(node, "salvage", "list")} == {*later, "open", "k", "later parts"}

    assert command(node, "salvage", "accept", "--bucket", BUCKET, "a/b") == {"accepted": 1, "older": 1, "refused": {}}
    assert contents(s3) == {**objects, "a/b": later["a/b"]}
    done = command(node, "salvage", "accept", "--all", code=1)
    assert done == {"accepted": len(later) - 1 + 2, "older": 0, "refused": {"no upload": 2}}
    assert contents(s3) == {**objects, **later}
    assert contents(s3, LATER) == {"k": later_there}
    head = s3.head_object(Bucket=BUCKET, Key="later 70000")
    assert (head["ContentType"], head["Metadata"]) == ("text/later", {"who": "after"})
    parts = [{"PartNumber": part["PartNumber"], "ETag": part["ETag"]} for part in s3.list_parts(**where)["Parts"]]
    s3.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})
    assert s3.get_object(Bucket=BUCKET, Key="open")["Body"].read() == first + second

    # Recovery ends when nothing waits any more; until then everything stays where it is.
    assert node.anvil("admin", "salvage", "end").returncode == 5, "two parts wait"
    assert node.anvil("admin", "salvage", "dump").returncode != 0, "no dump that would take them for deleted"
    assert rows(node, "SELECT collection_allowed(0)") == [(False,)]
    assert command(node, "salvage", "reject", "--all", "--yes") == {"rejected": 2}
    command(node, "salvage", "end")
    assert command(node, "salvage", "show")["recovery"] is False
    assert rows(node, "SELECT collection_allowed(0)") == [(True,)]
    checked = command(node, "fsck", "--deep", code=1)
    assert {kind for kind in ("missing", "corrupt", "lost", "dangling", "unseen") if checked[kind]} == set()
    assert checked["orphans"] > 0, "what was rejected is nobody's"
    command(node, "salvage", "dump")
