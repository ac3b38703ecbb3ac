"""What documents and sources name is there: files, make targets, metrics."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from anvil.base import instruments
from anvil.cli.main import command
from tests.cluster import test_guide as guide

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])
GENERATED = {"bench/README.md"}  # written by `make bench`
OPERATORS = ("docker/secrets/", "docker/.env")  # made by docker/make-secrets.sh, and by hand
SOURCES = {".py", ".pyx", ".pyi", ".pxd", ".pxi", ".h", ".proto"}
HELP = ("-h", "--help", "--version")
FOLDERS = ("anvil", "bench", "docker", "docs", "tests", "tools", ".ci")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(document: Path) -> None:
    """A path in backticks is one of the tree, or one below `anvil/`."""
    text = document.read_text()
    tops = {path.name for path in (ROOT / "anvil").iterdir() if path.is_dir()} | set(FOLDERS)
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", text)
    missing = [
        name
        for name in named
        if name.split("/")[0] in tops
        and not name.startswith(OPERATORS)
        and not any((base / name).exists() for base in (ROOT, ROOT / "anvil"))
    ]
    missing += [
        name for name in re.findall(r"`([A-Z]+\.md)`", text) if not any((base / name).exists() for base in (ROOT, ROOT / "docs"))
    ]
    assert set(missing) <= GENERATED, f"{document.relative_to(ROOT)} names {missing}"


def test_files_that_sources_name_exist() -> None:
    """A path in backticks is one of the tree, or below one of the folders that the file is in."""
    wrong = {
        f"{path.relative_to(ROOT)} names {name}"
        for path in sorted((ROOT / "anvil").rglob("*"))
        if path.suffix in SOURCES and "_pb2" not in path.name
        for name in re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:pyx?|pyi|h|md|proto))`", path.read_text())
        if not any((base / name).exists() for base in path.parents)
    }
    assert not wrong, wrong


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    wrong = {
        f"{document.relative_to(ROOT)}: make {name}"
        for document in DOCUMENTS
        for name in re.findall(r"(?:^|`)make ([a-z-]+)", document.read_text(), re.MULTILINE)
        if name not in targets
    }
    assert not wrong, wrong


def test_metrics_that_are_named_exist() -> None:
    known = set(re.findall(r'_(?:counter|gauge|histogram)\(\s*"(\w+)"', Path(instruments.__file__).read_text()))
    named = {name for document in DOCUMENTS for name in re.findall(r"\banvil_([a-z_]+_[a-z]+)\b", document.read_text())}
    unknown = {name for name in named if name not in known and re.sub(r"_(bucket|sum|count)$", "", name) not in known}
    assert unknown <= {"us_east", "us_east_1", "global"}, unknown


def commands(text: str) -> list[str]:
    """What follows `anvil` in a document's blocks for a shell, up to the end of the command, and in its backticks."""
    found = re.findall(r"`anvil ([a-z][^`]*)`", text)
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found += re.findall(r"(?:^|&& |\.venv/bin/|^\s*(?:\w+=\S+ +)+)anvil ([a-z][^#|;)>]*)", line.split(" # ")[0])
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_of_anvil_exist(document: Path) -> None:
    """With their options. Alternatives (`list|drain`) are taken one by one, what stands in brackets may be left out."""
    for words in commands(document.read_text()):
        for one in alternatives(words):
            assert_exists(one, words)


def alternatives(words: str) -> list[str]:
    """`node list|drain [--json]` is `node list --json` and `node drain --json`."""
    made = [""]
    for word in re.sub(r"[\[\]…]|\.\.\.", " ", words).replace(" | ", "|").split():
        choices = [each.strip(",.") for each in word.split("|")] if re.fullmatch(r"[a-z|-]+", word) else [word]
        made = [f"{before} {choice}" for before in made for choice in choices]
    return made


def assert_exists(one: str, words: str) -> None:
    at: click.Command = command
    context = click.Context(at)
    options = set(HELP)
    for word in one.split():
        if not isinstance(at, click.Group) or word.startswith("-"):
            break
        options |= {option for parameter in at.params for option in parameter.opts}
        found = at.get_command(context, word)
        assert found is not None, f"there is no `anvil {one.strip()}` (in `anvil {words}`)"
        at = found
    options |= {option for parameter in at.params for option in (*parameter.opts, *parameter.secondary_opts)}
    unknown = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", one)) - options
    assert not unknown, f"`anvil {words}` takes {sorted(options)}, not {unknown}"


def test_every_block_of_the_guide_is_run_and_checked() -> None:
    """Commands of docs/OPERATE.md are in blocks called `sh`, and what has to be true after each is in tests/cluster/test_guide.py."""
    languages = re.findall(r"^```(.*)\n(?:.*\n)*?```$", guide.DOCUMENT, re.MULTILINE)
    assert set(languages) == {"sh", "yaml", "json", "crontab"}, "commands go into blocks called sh"
    assert languages.count("sh") == len(guide.BLOCKS)
    checks = [*guide.AFTER, *guide.INSTEAD]
    of = {block: [beginning for beginning in checks if block.startswith(beginning)] for block in guide.BLOCKS}
    assert {block: found for block, found in of.items() if len(found) != 1} == {}, "one check for each block"
    assert set(checks) == {found[0] for found in of.values()}, "a block for each check"
    assert all(any(block.startswith(beginning) for block in guide.BLOCKS) for beginning in guide.BEFORE)
