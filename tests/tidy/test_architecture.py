"""Who may import whom, and what else holds for every file (DESIGN.md "Shape", CONVENTIONS.md).

A rule that needs an exception gets it here, by name and with its reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "anvil"

BASE = {"base"}
MAY_IMPORT: dict[str, set[str]] = {
    "base": set(),
    "model": BASE,
    "_ec": BASE,
    "ec": BASE | {"_ec", "model"},
    "wire": BASE | {"_ec", "model"},
    # Contracts that are types alone: what a request's head is (net.stream), what the engine needs (engine.ports).
    "auth": BASE | {"model", "net", "engine"},
    "engine": BASE | {"model", "_ec", "ec"},
    "shards": BASE | {"model", "_ec", "ec", "engine"},
    "meta": BASE | {"model", "engine"},
    "backup": BASE | {"model", "_ec"},
    "tasks": BASE | {"model", "_ec", "ec", "engine", "backup"},
    "net": BASE | {"model", "wire", "auth", "engine"},
    "rpc": BASE | {"wire", "net"},
    "peers": BASE | {"model", "_ec", "engine", "net", "wire", "rpc"},
    "api": BASE | {"model", "wire", "auth", "engine", "net", "_ec", "rpc"},
    "node": BASE
    | {"model", "_ec", "ec", "wire", "auth", "engine", "shards", "meta", "tasks", "api", "net", "cli", "peers", "backup"},
    # The client is a program of its own that shares the repository: it knows the contract (.proto files) and no server code.
    "client": BASE | {"_ec", "api"},
    # A client of any S3 endpoint: it shares signatures, digests and the chunked coding, and knows no server code.
    "bench": BASE | {"_ec", "wire", "auth"},
    "cli": BASE | {"model", "node", "_ec", "client", "backup", "bench"},
}
# Packages that another may import only for these modules.
ONLY_MODULES: dict[tuple[str, str], set[str]] = {
    ("auth", "net"): {"anvil.net.stream"},
    ("auth", "engine"): {"anvil.engine.ports"},
    ("net", "engine"): {"anvil.engine.ports"},
    ("net", "auth"): {"anvil.auth.types"},
    ("shards", "engine"): {"anvil.engine.ports"},
    ("meta", "engine"): {"anvil.engine.ports"},
    ("node", "cli"): {"anvil.cli.admin_ops"},
    ("bench", "auth"): {"anvil.auth.sigv4", "anvil.auth.credentials", "anvil.auth.presign"},
    ("bench", "_ec"): {"anvil._ec.digest"},
    ("bench", "wire"): {"anvil.wire.http1_chunked"},
    ("tasks", "backup"): {"anvil.backup.format"},  # what an entry says of its blob
    ("cli", "backup"): {"anvil.backup.repository"},  # commands that need no node
    ("client", "_ec"): {"anvil._ec.digest"},  # checksums at this end, and combining them
    ("client", "api"): {
        "anvil.api.grpc.proto",
        "anvil.api.grpc.proto.auth_pb2",
        "anvil.api.grpc.proto.bucket_pb2",
        "anvil.api.grpc.proto.object_pb2",
    },
    ("cli", "_ec"): {"anvil._ec.codec", "anvil._ec.digest"},  # doctor names the kernels
}
ONLY_HERE = {
    "asyncpg": "meta",
    "lmdb": "shards",
    "grpc": "api or peers or client or rpc",  # the services, what serves them, the calls between nodes, and the users' side of the services
    "prometheus_client": "node",
    "click": "cli",
    "rich": "cli",
    "jwt": "auth",
    "matplotlib": "bench",
}
READS_ENVIRONMENT = {"anvil/base/config.py"}

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}


@cache
def sources(suffix: str = ".py") -> tuple[Path, ...]:
    """Without what is generated from the .proto files."""
    return tuple(
        sorted(path for path in PACKAGE.rglob(f"*{suffix}") if "__pycache__" not in path.parts and "_pb2" not in path.name)
    )


@cache
def text(path: Path) -> str:
    return path.read_text()


@cache
def parsed(path: Path) -> ast.Module:
    """Every rule walks every file; it is parsed once."""
    return ast.parse(text(path))


@cache
def words_of(suffix: str, but: str) -> frozenset[str]:
    """Every word of these files, without those of the file called `but`."""
    return frozenset(re.findall(r"\w+", "\n".join(text(path) for path in sources(suffix) if path.name != but)))


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Line and name of every module a file imports, also inside functions and for type checking alone."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}:{node.lineno} imports relatively"
            module = node.module or ""
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                is_module = (ROOT / Path(*whole.split("."))).with_suffix(".py").exists() or (
                    ROOT / Path(*whole.split("."))
                ).is_dir()
                yield node.lineno, whole if is_module else module


def test_packages_import_only_what_the_table_allows() -> None:
    wrong = []
    for path in sources():
        parts = path.relative_to(PACKAGE).parts
        if len(parts) < 2:
            continue
        package = parts[0]
        for line, module in imports(path):
            names = module.split(".")
            if names[0] != "anvil" or len(names) < 2 or names[1] == package:
                continue
            target = names[1]
            only = ONLY_MODULES.get((package, target))
            if target not in MAY_IMPORT[package] or (only is not None and module not in only):
                wrong.append(f"{relative(path)}:{line} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_operations_know_no_protocol() -> None:
    """What both APIs obey is in terms of values: no API, no wire, no request of either."""
    wrong = [
        f"{relative(path)}:{line} imports {module}"
        for path in sorted((PACKAGE / "api" / "operations").glob("*.py"))
        for line, module in imports(path)
        if module.startswith("anvil.")
        and not module.startswith(
            ("anvil.api.operations", "anvil.base.", "anvil.model.", "anvil.engine.ports", "anvil.engine.types")
        )
    ]
    assert not wrong, "\n".join(wrong)


def test_the_apis_do_not_know_each_other_s_requests() -> None:
    """gRPC tells S3's error codes, so it may see that table; nothing else goes across."""
    wrong = [
        f"{relative(path)}:{line} imports {module}"
        for api, other in (("s3", "grpc"), ("grpc", "s3"))
        for path in sorted((PACKAGE / "api" / api).rglob("*.py"))
        if "_pb2" not in path.name
        for line, module in imports(path)
        if module.startswith(f"anvil.api.{other}") and module != "anvil.api.s3.errors"
    ]
    assert not wrong, "\n".join(wrong)


def test_the_table_covers_every_package() -> None:
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} <= set(MAY_IMPORT)


@pytest.mark.parametrize("library", ONLY_HERE)
def test_a_library_is_used_in_one_place(library: str) -> None:
    homes = set(ONLY_HERE[library].split(" or "))
    wrong = [
        f"{relative(path)}:{line}"
        for path in sources()
        for line, module in imports(path)
        if module.split(".")[0] == library and path.relative_to(PACKAGE).parts[0] not in homes
    ]
    assert not wrong, f"only {ONLY_HERE[library]} may import {library}: {wrong}"


def test_only_the_configuration_reads_the_environment() -> None:
    wrong = []
    for path in sources():
        if relative(path) in READS_ENVIRONMENT:
            continue
        for node in ast.walk(parsed(path)):
            named = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb", "putenv")
            if named and isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
                wrong.append(f"{relative(path)}:{node.lineno}")
    assert not wrong, wrong


def test_every_module_says_what_it_is_for() -> None:
    missing = [relative(path) for path in sources() if text(path).strip() and not (ast.get_docstring(parsed(path)) or "").strip()]
    assert not missing, missing


def test_files_are_short() -> None:
    long = {
        relative(path): len(text(path).splitlines())
        for path in [*sources(".py"), *sources(".pyx")]
        if len(text(path).splitlines()) > FILE_LINES_MAX
    }
    assert set(long) <= set(LONG_FILES), f"over {FILE_LINES_MAX} lines, so perhaps two things: {long}"
    assert set(LONG_FILES) <= set(long), "an exception that is no longer needed"


def test_functions_are_short() -> None:
    long = {}
    for path in sources():
        for node in ast.walk(parsed(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long[f"{relative(path)}:{node.name}"] = lines
    assert set(long) <= set(LONG_FUNCTIONS), f"over {FUNCTION_LINES_MAX} lines, so perhaps two things: {long}"
    assert set(LONG_FUNCTIONS) <= set(long), "an exception that is no longer needed"


def test_nothing_is_left_for_later() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")
    wrong = [
        f"{relative(path)}:{number}: {line.strip()}"
        for path in [*sources(".py"), *sources(".pyx"), *sources(".pyi"), *sources(".sql")]
        for number, line in enumerate(text(path).splitlines(), 1)
        if words.search(line)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_error_is_swallowed() -> None:
    """`except Exception: pass`, and bare `except:`, hide what an operator must know."""
    wrong = []
    for path in sources():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ExceptHandler):
                name = node.type.id if isinstance(node.type, ast.Name) else None
                silent = all(isinstance(line, (ast.Pass, ast.Continue)) for line in node.body)
                if node.type is None or (name in ("Exception", "BaseException") and silent):
                    wrong.append(f"{relative(path)}:{node.lineno}")
    assert not wrong, wrong


def test_every_limit_limits_something() -> None:
    """A bound in base/limits.py that no code names bounds nothing."""
    limits = (PACKAGE / "base" / "limits.py").read_text()
    names = re.findall(r"^([A-Z][A-Z0-9_]+): Final", limits, re.MULTILINE)
    used = words_of(".py", "limits.py") | words_of(".pyx", "limits.py") | {"KIB", "MIB", "GIB", "TIB"}
    unused = [name for name in names if name not in used]
    assert not unused, unused


def test_every_metric_is_counted_somewhere() -> None:
    """A metric that is declared and never touched would show an eternal zero."""
    declared = re.findall(r"^([A-Z_]+) = _", (PACKAGE / "base" / "instruments.py").read_text(), re.MULTILINE)
    unused = [name for name in declared if name not in words_of(".py", "instruments.py")]
    assert not unused, unused


def test_each_extension_has_its_interface_file() -> None:
    assert [relative(path) for path in sources(".pyx") if not path.with_suffix(".pyi").exists()] == []
