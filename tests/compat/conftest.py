"""Real clients against a real node: one node for all of them, each test in a bucket of its own."""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.node import AnvilNode

BIN = Path(sys.executable).parent


class Shell:
    """Runs client programs with credentials for the node in their environment and nothing else of this machine's."""

    def __init__(self, node: AnvilNode, home: Path) -> None:
        self.node = node
        self.home = home
        self.env = {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(home),
            "AWS_ACCESS_KEY_ID": node.access_key,
            "AWS_SECRET_ACCESS_KEY": node.secret_key,
            "AWS_REGION": node.region,
            "AWS_DEFAULT_REGION": node.region,
            "AWS_ENDPOINT_URL": node.endpoint,
            "S3_ENDPOINT_URL": node.endpoint,
        }

    def __call__(self, *command: str | Path, ok: bool = True, timeout_s: float = 120) -> str:
        """Its standard output. Fails the test, with everything it said, when it fails (or, with ok=False, when it succeeds)."""
        program = str(BIN / command[0]) if (BIN / str(command[0])).exists() else str(command[0])
        done = subprocess.run(
            [program, *map(str, command[1:])],
            env=self.env,
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        said = f"$ {' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
        assert (done.returncode == 0) is ok, said
        return done.stdout if ok else done.stdout + done.stderr


class Tree:
    """A folder of files of all the sizes that take different ways through the node, made from a seed."""

    SIZES = (0, 1, 17, 2047, 2048, 4096, 65535, 65536, 100_000, 1 << 20, (1 << 20) + 1, 9_000_001, 20 << 20)
    NAMES = (
        "plain",
        "with space",
        "plus+sign",
        "ümläut-日本",
        "per%cent",
        "quote'and&amp",
        "deep/er/path",
        "a=b,c;d",
        "~tilde*star",
    )

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        rng = random.Random(seed)
        for number, size in enumerate(self.SIZES):
            name = self.NAMES[number % len(self.NAMES)]
            path = root / f"{number:02d}-{name}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.randbytes(size))

    @staticmethod
    def digest(root: Path) -> dict[str, str]:
        """Relative path -> SHA-256 of every file below."""
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnvilNode]:
    with AnvilNode(tmp_path_factory.mktemp("compat-node")) as running:
        yield running


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return Tree(tmp_path_factory.mktemp("tree"), seed=20261123)


@pytest.fixture
def shell(node: AnvilNode, tmp_path: Path) -> Shell:
    return Shell(node, tmp_path)


@pytest.fixture
def s3(node: AnvilNode) -> Any:
    return node.s3()


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"compat-{secrets.token_hex(6)}"
    s3.create_bucket(Bucket=name)
    return name
