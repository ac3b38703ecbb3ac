"""What tests of backups share: the commands of one node, objects of every kind, and what a restored region must be like."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.support.node import AnvilNode
from tests.support.samples import PART_BYTES, SIZES, put_parts

KEY = "6b" * 32
OTHER_KEY = "7c" * 32
ODD_KEYS = (
    "a/b",
    "a",
    "a//b",
    "ü/ñ €",
    "space key",
    "tab\there",
    "+%2F?&=#",
    "日本語/🗝",
    ".",
    "..",
    "x" * 1024,
    "new\nline",
    "'quote\"\\",
)


def said(node: AnvilNode, *arguments: str, code: int = 0, timeout_s: float = 180.0) -> Any:
    """What a command says with --json. Fails with its message where it exits otherwise."""
    done = node.anvil("admin", *arguments, "--json", timeout_s=timeout_s)
    assert done.returncode == code, f"anvil admin {' '.join(arguments)}: {done.returncode}\n{done.stderr}{done.stdout}"
    return json.loads(done.stdout) if done.stdout else done.stderr


def refusal(node: AnvilNode, *arguments: str, code: int) -> str:
    """The line of a command that is refused, behind what it said on the way."""
    done = node.anvil("admin", *arguments, timeout_s=180.0)
    assert done.returncode == code, f"anvil admin {' '.join(arguments)}: {done.returncode}\n{done.stderr}{done.stdout}"
    last = done.stderr.splitlines()[-1]
    assert last.startswith("anvil: ") and "Traceback" not in done.stderr, done.stderr
    return last


def fill(s3: Any, bucket: str, rng: random.Random) -> dict[str, bytes]:
    """Objects of every kind: empty, in the row, copies, coded, in files, of parts, with odd keys. Returns the contents by key."""
    s3.create_bucket(Bucket=bucket)
    objects = {f"size/{size}": rng.randbytes(size) for size in SIZES}
    objects |= {key: rng.randbytes(rng.choice((0, 100, 5_000, 200_000))) for key in ODD_KEYS}
    for key, data in objects.items():
        s3.put_object(Bucket=bucket, Key=key, Body=data, ContentType="text/x-odd", Metadata={"of": "mine"})
    objects["of parts"] = rng.randbytes(2 * PART_BYTES + 1000)
    put_parts(s3, bucket, "of parts", objects["of parts"])
    return objects


def assert_same(s3: Any, bucket: str, objects: dict[str, bytes]) -> None:
    """Every object, byte for byte, with what was said of it; and no other one."""
    for key, data in objects.items():
        answer = s3.get_object(Bucket=bucket, Key=key)
        found = answer["Body"].read()
        assert found == data, f"{key!r}: {len(found)} bytes, wanted {len(data)}"
        if key != "of parts":
            assert (answer["ContentType"], answer["Metadata"]) == ("text/x-odd", {"of": "mine"}), key
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, EncodingType="url")
    assert sum(len(page.get("Contents", [])) for page in pages) == len(objects)


def packs(repository: Path) -> list[Path]:
    return sorted((repository / "packs").glob("*.pack"))


def flip(path: Path, at: float | int) -> None:
    """One bit; `at`: an offset, or a share of the file."""
    data = bytearray(path.read_bytes())
    data[int(at * len(data)) if isinstance(at, float) else at] ^= 0x10
    path.write_bytes(data)
