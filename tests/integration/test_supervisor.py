"""The supervisor with toy parts: order of start and stop, restarts, signals, exit codes. Real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from tests.support.node import AnvilNode, wait_until

TOY = ("tests.support.toy_server",)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AnvilNode]:
    with AnvilNode(tmp_path / "data", env={"ANVIL_WORKERS": "2"}, command=TOY) as running:
        yield running


def gone(pid: int) -> bool:
    """With all its threads: until then it has its sockets."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE and len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True


def test_a_node_starts_serves_and_stops_in_order(node: AnvilNode) -> None:
    assert len(node.worker_pids) == 2
    assert node.readiness()["status"] == "ready"
    assert node.credentials_file.read_text().splitlines()[:2] == [
        "[default]",
        "aws_access_key_id = AKTOYTOYTOYTOYTOYTOY",
    ]
    for path in ("credentials", "secrets/encryption_key", "run/background.sock", "run/node.json"):
        assert stat.S_IMODE((node.data_dir / path).stat().st_mode) == 0o600, path
    keys = {(node.data_dir / "secrets" / name).read_text() for name in ("encryption_key", "jwt_secret", "cluster_secret")}
    assert len(keys) == 3
    assert node.stop() == 0
    assert (node.data_dir / "postgres.log").read_text().splitlines()[:2] == ["start", "stop"]
    assert not (node.data_dir / "run" / "node.json").exists()


def test_a_second_start_finds_everything_again(node: AnvilNode) -> None:
    before = [(node.data_dir / name).read_text() for name in ("node-id", "credentials", "secrets/encryption_key")]
    node.stop()
    node.start()
    assert [(node.data_dir / name).read_text() for name in ("node-id", "credentials", "secrets/encryption_key")] == before


def test_the_secret_is_not_printed_where_nobody_sits(node: AnvilNode) -> None:
    wait_until("the welcome is printed", lambda: "serves S3 and gRPC at" in node.log_text())
    assert node.endpoint in node.log_text()
    assert "s" * 40 not in node.log_text()


def test_a_dead_worker_is_replaced_and_counted(node: AnvilNode) -> None:
    victim = node.worker_pids[0]
    node.kill(victim)
    wait_until("another worker runs", lambda: victim not in node.worker_pids and len(node.worker_pids) == 2)
    wait_until("its death is counted", lambda: node.metric("anvil_process_restarts_total") == 1)
    assert node.readiness()["status"] == "ready"


def test_a_dead_background_process_is_replaced_without_a_failed_request(node: AnvilNode) -> None:
    victim = node.background_pid
    assert victim is not None
    node.kill(victim)
    assert node.get("/bucket/first")[0] == 200, "the worker waits for the new one"
    assert node.background_pid not in (None, victim)


def test_a_worker_that_is_being_replaced_makes_the_node_no_less_ready(node: AnvilNode) -> None:
    (node.data_dir / "slow-start").write_text("3")  # longer than from one look at the node's health to the next
    victim = node.worker_pids[0]
    node.kill(victim)
    wait_until("it is dead", lambda: gone(victim))
    wait_until("another one is starting", lambda: len(node.worker_pids) == 2)
    assert_ready_for(node, 4.0)


def test_a_background_process_that_is_being_replaced_makes_the_node_no_less_ready(node: AnvilNode) -> None:
    victim = node.background_pid
    assert victim is not None
    node.kill(victim)
    assert_ready_for(node, 3.0)
    assert node.background_pid not in (None, victim)


def assert_ready_for(node: AnvilNode, period_s: float) -> None:
    """Ask all the time."""
    end = time.monotonic() + period_s
    while time.monotonic() < end:
        found = node.readiness()
        assert found["status"] == "ready", found


def test_counters_survive_the_worker_that_counted(node: AnvilNode) -> None:
    for _ in range(20):
        node.get("/")
    total = node.metric("anvil_api_requests_total")
    assert total >= 20
    victims = node.worker_pids
    for victim in victims:
        node.kill(victim)
    wait_until("both are replaced", lambda: len(set(node.worker_pids) - set(victims)) == 2 and node.is_ready())
    assert node.metric("anvil_api_requests_total") >= total


def test_children_die_with_a_killed_supervisor(node: AnvilNode) -> None:
    children = [*node.worker_pids, node.background_pid]
    node.kill(node.pid)
    wait_until("every child is gone", lambda: all(gone(pid) for pid in children if pid is not None))
    node.process.wait()
    node.start()


def test_children_say_what_they_are(node: AnvilNode) -> None:
    titles = {" ".join(child.cmdline()).strip() for child in psutil.Process(node.pid).children(recursive=True)}
    assert titles == {"anvil: fork server", "anvil: background", "anvil: worker-0", "anvil: worker-1"}
    groups = {os.getpgid(child.pid) for child in psutil.Process(node.pid).children(recursive=True)}
    assert len(groups) == len(titles), "Ctrl-C at the terminal reaches none of them"


def fork_server(node: AnvilNode) -> int:
    [server] = psutil.Process(node.pid).children()
    return server.pid


def test_what_tells_every_process_to_stop_lets_requests_finish(node: AnvilNode) -> None:
    answers: list[int] = []
    before = node.metric("anvil_api_requests_total")
    slow = threading.Thread(target=lambda: answers.append(node.get("/slow")[0]))
    slow.start()
    wait_until("the request is served", lambda: node.metric("anvil_api_requests_total") > before)
    server = fork_server(node)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(server, number)
    for pid in [server, *node.worker_pids, node.pid]:
        os.kill(pid, signal.SIGTERM)
    slow.join()
    assert answers == [200]
    assert node.process.wait(30) == 0


def test_without_its_fork_server_a_node_ends(node: AnvilNode) -> None:
    children = [*node.worker_pids, node.background_pid]
    os.kill(fork_server(node), signal.SIGKILL)
    assert node.process.wait(30) == 1
    assert "the process that the others are forked off was killed" in node.log_text()
    assert all(gone(pid) for pid in children if pid is not None)
    assert (node.data_dir / "postgres.log").read_text().splitlines()[-1] == "stop"
    node.start()


def test_a_fork_server_that_does_not_answer_costs_no_more_than_new_workers(node: AnvilNode) -> None:
    server, victim = fork_server(node), node.worker_pids[0]
    os.kill(server, signal.SIGSTOP)
    node.kill(victim)
    wait_until("it is dead", lambda: gone(victim))
    for _ in range(20):
        assert node.get("/bucket/first")[0] == 200, "the other worker serves"
    os.kill(server, signal.SIGCONT)
    wait_until("it is replaced", lambda: victim not in node.worker_pids and len(node.worker_pids) == 2)
    os.kill(server, signal.SIGSTOP)
    assert node.stop() == 0, "nothing waits for it for ever"


def test_requests_in_flight_finish_and_ready_fails_first(tmp_path: Path) -> None:
    with AnvilNode(tmp_path / "data", env={"ANVIL_WORKERS": "1", "ANVIL_DRAIN_NOTICE_S": "1.5"}, command=TOY) as node:
        answers: list[int] = []
        slow = threading.Thread(target=lambda: answers.append(node.get("/slow")[0]))
        slow.start()
        node.process.send_signal(signal.SIGTERM)
        wait_until("/ready says no", lambda: node.get("/ready")[0] == 503)
        assert node.readiness()["status"] == "draining"
        assert node.get("/")[0] == 200, "still accepting during the notice"
        slow.join()
        assert answers == [200]
        assert node.process.wait(30) == 0


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    with AnvilNode(tmp_path / "data", env={"ANVIL_WORKERS": "1", "ANVIL_DRAIN_NOTICE_S": "60"}, command=TOY) as node:
        children = [*node.worker_pids, node.background_pid]
        node.process.send_signal(signal.SIGTERM)
        wait_until("the node drains", lambda: node.get("/ready")[0] == 503)
        began = time.monotonic()
        node.process.send_signal(signal.SIGTERM)
        assert node.process.wait(30) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 5
        wait_until("every child is gone", lambda: all(gone(pid) for pid in children if pid is not None))


def test_a_second_server_on_the_same_folder_is_refused_in_one_line(node: AnvilNode) -> None:
    other = AnvilNode(node.data_dir, command=TOY)
    other._log = node.data_dir.parent / "other.log"
    other.launch()
    assert other.process.wait(30) == 3
    told = other.log_text().strip()
    assert f"process {node.pid}" in told
    assert "\n" not in told
    assert node.is_ready()


def test_an_address_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    with AnvilNode(tmp_path / "one", env={"ANVIL_WORKERS": "1"}, command=TOY) as node:
        other = AnvilNode(tmp_path / "two", env={"ANVIL_API_LISTEN_ADDR": f"127.0.0.1:{node.port}"}, command=TOY)
        other.launch()
        assert other.process.wait(30) == 3
        assert "cannot listen on" in other.log_text()


def test_a_worker_that_cannot_start_ends_the_node(tmp_path: Path) -> None:
    node = AnvilNode(tmp_path / "data", env={"ANVIL_WORKERS": "1", "ANVIL_REGION": "broken-worker"}, command=TOY)
    node.launch()
    assert node.process.wait(30) == 1
    assert "the toy database is away" in node.log_text()
    assert (node.data_dir / "postgres.log").read_text().split() == ["start", "stop", "stop"]


@pytest.mark.parametrize(
    ("env", "told"),
    [({"ANVIL_WORKRES": "2"}, "Did you mean ANVIL_WORKERS?"), ({"ANVIL_DATA_DIR": "/proc/anvil"}, "ANVIL_DATA_DIR")],
)
def test_a_wrong_setting_is_exit_code_2(tmp_path: Path, env: dict[str, str], told: str) -> None:
    node = AnvilNode(tmp_path / "data", env=env)
    node.launch()
    assert node.process.wait(30) == 2
    assert told in node.log_text()
    assert len(node.log_text().strip().splitlines()) == 1


def test_a_lost_encryption_key_is_not_replaced(node: AnvilNode) -> None:
    node.stop()
    (node.data_dir / "postgres").mkdir()
    (node.data_dir / "secrets" / "encryption_key").unlink()
    node.launch()
    assert node.process.wait(30) == 2
    assert "is gone" in node.log_text()


def test_no_secret_is_in_the_command_line_or_environment_of_a_child(node: AnvilNode) -> None:
    secret = (node.data_dir / "secrets" / "encryption_key").read_text().strip()
    for pid in (*node.worker_pids, node.background_pid):
        assert pid is not None
        child = psutil.Process(pid)
        assert secret not in " ".join(child.cmdline())
        assert not any(name.startswith("ANVIL_") for name in child.environ())


def test_nothing_of_what_the_supervisor_was_started_with_is_left_in_a_child(tmp_path: Path) -> None:
    node = AnvilNode(tmp_path / "data", env={"ANVIL_WORKERS": "1", "ANVIL_JWT_SECRET": "j" * 40}, command=TOY)
    first = "ANVIL_JWT_SECRET"
    given = [f"{name}={value}" for name, value in {first: node._env[first], **node._env}.items()]
    with (tmp_path / "lock").open("w") as kept:
        command = ["env", "-i", *given, sys.executable, "-m", *TOY]
        process = subprocess.Popen(command, pass_fds=(kept.fileno(),), cwd=tmp_path)
    try:
        wait_until("it serves", node.is_ready)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 3
        for child in children:
            assert b"ANVIL_" not in Path(f"/proc/{child.pid}/environ").read_bytes()
            assert " ".join(child.cmdline()).startswith("anvil: ")
            assert str(tmp_path / "lock") not in {one.path for one in child.open_files()}
    finally:
        process.terminate()
        process.wait()


def test_a_deep_data_directory_still_gets_its_socket(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["x" * 40] * 4)
    with AnvilNode(deep / "data", env={"ANVIL_WORKERS": "1"}, command=TOY) as node:
        assert node.get("/bucket/first")[0] == 200


def test_readiness_tells_what_is_wrong(node: AnvilNode) -> None:
    flag = node.data_dir / "database-away"
    flag.touch()
    wait_until("the node is not ready", lambda: node.get("/ready")[0] == 503)
    told = node.readiness()
    assert told["status"] == "not_ready"
    assert told["reasons"] == ["global_database: the toy database is away"]
    assert told["checks"]["global_database"]["ok"] is False
    flag.unlink()
    wait_until("it is ready again", node.is_ready)
    (node.data_dir / "drives" / "0" / "drive.json").unlink()
    wait_until("the lost drive shows", lambda: node.get("/ready")[0] == 503)
    assert node.get("/ready/cluster")[0] == 503
    assert node.get("/")[0] == 200


def test_ready_answers_as_promised(node: AnvilNode) -> None:
    status, headers, body = node.get("/ready")
    told = json.loads(body)
    assert (status, headers["cache-control"], headers["content-type"]) == (200, "no-store", "application/json")
    assert set(told) == {"status", "node", "version", "checks", "reasons", "notices"}
    assert set(told["checks"]) == {"global_database", "drive:0", "drives", "loop", "lease"}
    assert all(set(check) == {"ok", "ms"} for check in told["checks"].values())
    assert told["node"] == (node.data_dir / "node-id").read_text().strip()
    assert node.get("/ready/cluster")[0] == 200
    assert node.get("/ready/cluster?maintenance=true")[0] == 412


def test_metrics_are_for_direct_requests_from_this_machine(node: AnvilNode) -> None:
    status, headers, body = node.get("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"anvil_build_info{" in body
    assert b"process_resident_memory_bytes" in body
    assert b'anvil_event_loop_lag_seconds_bucket{worker="worker-0",le="0.5"}' in body
    assert node.get("/metrics", {"X-Forwarded-For": "203.0.113.9"})[0] == 403


def test_with_a_token_metrics_need_it(tmp_path: Path) -> None:
    import gzip

    token = "a-token-of-some-length"
    with AnvilNode(tmp_path / "data", env={"ANVIL_WORKERS": "1", "ANVIL_METRICS_TOKEN": token}, command=TOY) as node:
        assert node.get("/metrics")[0] == 401
        assert node.get("/metrics", {"Authorization": "Bearer wrong"})[0] == 401
        accepted = {"Authorization": f"Bearer {token}", "X-Forwarded-For": "203.0.113.9", "Accept-Encoding": "gzip"}
        status, headers, body = node.get("/metrics", accepted)
        assert (status, headers["content-encoding"]) == (200, "gzip")
        assert b"anvil_build_info" in gzip.decompress(body)


def test_addresses_of_buckets_by_host_name_are_not_the_nodes(tmp_path: Path) -> None:
    env = {"ANVIL_WORKERS": "1", "ANVIL_BASE_DOMAINS": "s3.example.com"}
    with AnvilNode(tmp_path / "data", env=env, command=TOY) as node:
        assert node.get("/ready", {"Host": "b.s3.example.com:80"})[2].isdigit(), "answered by the API"
        assert node.get("/ready", {"Host": "s3.example.com"})[2].startswith(b"{")


def test_a_port_chosen_by_the_system_is_announced(tmp_path: Path) -> None:
    node = AnvilNode(tmp_path / "data", env={"ANVIL_WORKERS": "1", "ANVIL_API_LISTEN_ADDR": "127.0.0.1:0"}, command=TOY)
    announced = node.data_dir / "run" / "node.json"
    node.launch()
    try:
        wait_until("the node tells where it is", announced.exists)
        told = json.loads(announced.read_text())
        assert told["pid"] == node.pid
        with urlopen(told["endpoint"] + "/", timeout=5) as answer:
            assert int(answer.read()) in node.worker_pids
    finally:
        assert node.stop() == 0


def test_the_welcome_shows_the_secret_on_a_terminal() -> None:
    from anvil.node.parts import KeyPair
    from anvil.node.supervisor import welcome

    text = welcome("http://h:1", "us-east-1", "/d/credentials", KeyPair("AK1", "very-secret"), terminal=True)
    assert "very-secret" in text
    assert "AWS_SHARED_CREDENTIALS_FILE=/d/credentials" in text
    assert os.linesep in text


def test_the_welcome_in_a_container_says_how_to_get_the_credentials_out() -> None:
    from anvil.node.supervisor import welcome

    text = welcome("http://h:1", "us-east-1", "/d/credentials", None, terminal=False, inside=("podman", "3f2a"))
    assert "podman exec 3f2a cat /d/credentials > anvil-credentials\n" in text
    assert "AWS_SHARED_CREDENTIALS_FILE=anvil-credentials AWS_ENDPOINT_URL=http://h:1\n" in text
