"""How tests share the machine (tests/spread.py, tests/support/ports.py, tests/support/needs.py)."""

from __future__ import annotations

import fcntl
import subprocess
import sys
import threading
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests import spread
from tests.spread import Turns, pytest_xdist_auto_num_workers, rank, unit_of
from tests.support import needs, ports
from tests.support.node import ROOT, wait_until
from tests.support.reaper import reap


def taken(path: Path) -> bool:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_alone_is_after_who_has_begun_and_before_who_has_not(tmp_path: Path) -> None:
    order: list[str] = []

    def run(name: str, alone: bool) -> threading.Thread:
        turns = Turns(tmp_path)  # a file of its own, as each process has

        def take() -> None:
            with turns.taken(alone=alone):
                order.append(name)

        thread = threading.Thread(target=take)
        thread.start()
        return thread

    with Turns(tmp_path).taken(alone=False):
        run("beside", alone=False).join(10)
        threads = [run("alone", alone=True)]
        wait_until("it waits", lambda: taken(tmp_path / "gate"), 10)
        threads.append(run("later", alone=False))
        order.append("first")
    for thread in threads:
        thread.join(10)
    assert order == ["beside", "first", "alone", "later"]
    turns = Turns(tmp_path)
    with turns.taken(alone=True, keep=True):
        assert not taken(tmp_path / "gate")
        assert taken(tmp_path / "turn")
    assert taken(tmp_path / "turn"), "the next one is alone, too"
    with turns.taken(alone=True):
        assert taken(tmp_path / "turn")
    assert not taken(tmp_path / "turn")


def test_a_folder_that_shares_something_goes_to_one_process() -> None:
    for path, unit in {
        "tests/cluster/test_losses.py": "tests/cluster",
        "tests/compat/test_sdks.py": "tests/compat",
        "tests/compat/proxies/test_proxy_s3.py": "tests/compat/proxies",
        "tests/unit/client/test_calls.py": "tests/unit/client",
        "tests/unit/model/test_layout.py": "tests/unit/model/test_layout.py",
    }.items():
        assert unit_of(PurePosixPath(path)) == unit
    order = ["tests/unit/a.py", "tests/tidy/a.py", "tests/integration/a.py", "tests/cluster"]
    assert sorted(order, key=rank) == list(reversed(order))


@pytest.mark.parametrize(
    ("arguments", "option", "workers"),
    [
        (["tests"], {}, 6),
        (["tests/unit", "tests/fuzz/test_fuzz_sigv4.py"], {}, 6),
        (["tests/unit/test_spread.py"], {}, 0),
        (["tests/unit/test_spread.py::test_x"], {}, 0),
        (["tests/unit"], {"keyword": "drain"}, 0),
        (["tests/unit"], {"capture": "no"}, 0),
        (["tests"], {"collectonly": True}, 0),
    ],
)
def test_how_many_processes(monkeypatch: pytest.MonkeyPatch, arguments: list[str], option: dict[str, Any], workers: int) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(spread.os, "sched_getaffinity", lambda _: range(4))
    options = SimpleNamespace(**({"keyword": "", "capture": "fd", "collectonly": False, "trace": False} | option))
    config = cast(pytest.Config, SimpleNamespace(option=options, args=arguments))
    assert pytest_xdist_auto_num_workers(config) == workers


def test_no_port_is_given_twice() -> None:
    code = "from tests.support.ports import free_port; print(*(free_port() for _ in range(100)))"
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]
    given = [int(port) for process in processes for port in process.communicate(timeout=60)[0].split()]
    assert len(given) == len(set(given)) == 300
    assert max(given) < ports.end(), "none that a connection may get"


def test_a_missing_program_fails_a_strict_run_and_is_skipped_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(needs.program("sh")).name == "sh"
    for strict, outcome in (("1", pytest.fail.Exception), ("0", pytest.skip.Exception)):
        monkeypatch.setenv("ANVIL_STRICT", strict)
        with pytest.raises(outcome, match="no-such-program is not installed"):
            needs.program("no-such-program")


def test_who_was_left_in_the_folder_of_a_run_is_ended(tmp_path: Path) -> None:
    ours, other = tmp_path / "run", tmp_path / "run-of-another"
    for folder in (ours / "deep", other):
        folder.mkdir(parents=True)
    sleep = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    processes = {
        "works there": subprocess.Popen(sleep, cwd=ours / "deep", stdin=subprocess.PIPE),
        "names it": subprocess.Popen([*sleep, f"--log={ours}/log"], stdin=subprocess.PIPE),
        "neither": subprocess.Popen(sleep, cwd=other, stdin=subprocess.PIPE),
    }
    wait_until("all work", lambda: all(Path(f"/proc/{one.pid}/cmdline").read_bytes() for one in processes.values()), 10)
    assert set(reap(ours)) == {processes[name].pid for name in ("works there", "names it")}
    assert {name for name, one in processes.items() if one.poll() is None} == {"neither"}
    assert reap(ours) == []
    processes["neither"].communicate(timeout=10)
