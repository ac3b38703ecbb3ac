"""`anvil health` against a server that answers as a node does: what is asked, over what, and what the exit code says."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.certificates import make_pair
from tests.support.node import ROOT, AnvilNode, wait_until

READY = {"status": "ready", "node": "00", "version": "0", "checks": {"global_database": {"ok": True, "ms": 1.0}}, "reasons": []}
NOT_READY = READY | {"status": "not_ready", "reasons": ["global_database: no answer", "drive: gone"]}


class Node(ThreadingHTTPServer):
    """Answers `/ready` with `status` and `body`, everything else with 200."""

    daemon_threads = True
    status, body = 200, json.dumps(READY).encode()
    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    server: Node

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        ready = self.path == "/ready"
        body = self.server.body if ready else b""
        self.send_response(self.server.status if ready else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[Node]:
    server = Node((host, 0), Handler)
    server.asked = []
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def health(*arguments: str, **env: str) -> tuple[int, str]:
    """Exit code, and what was printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ANVIL_")}
    done = subprocess.run(
        [sys.executable, "-m", "anvil.cli.main", "health", *arguments],
        env=clean | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def address(server: Node) -> dict[str, str]:
    return {"ANVIL_API_LISTEN_ADDR": f"127.0.0.1:{server.server_port}"}


def test_a_node_that_answers_lives() -> None:
    with serving() as server:
        assert health(**address(server)) == (0, f"http://127.0.0.1:{server.server_port}/: 200\n")
        assert server.asked == ["/"]


def test_a_node_that_is_not_ready_lives_and_says_why_it_is_not() -> None:
    with serving() as server:
        assert health("--ready", **address(server))[0] == 0
        server.status, server.body = 503, json.dumps(NOT_READY).encode()
        code, told = health("--ready", **address(server))
        assert code == 1
        assert told.strip().endswith("/ready: not_ready (global_database: no answer; drive: gone)")
        assert health(**address(server))[0] == 0
        assert server.asked == ["/ready", "/ready", "/"]


def test_a_node_that_listens_on_all_addresses_is_asked_on_the_loopback() -> None:
    with serving() as server:
        code, told = health(ANVIL_API_LISTEN_ADDR=f"0.0.0.0:{server.server_port}")
        assert code == 0
        assert told.startswith("http://127.0.0.1:")


def test_nobody_there_is_not_well_and_quiet_is_quiet() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # and does not listen
        listen = f"127.0.0.1:{held.getsockname()[1]}"
        assert health("--listen", listen) == (1, f"http://{listen}/: Connection refused\n")
        assert health("--listen", listen, "--quiet") == (1, "")


def test_a_node_that_says_nothing_is_given_up_after_the_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as hung:
        began = time.monotonic()
        code, told = health("--listen", f"127.0.0.1:{hung.getsockname()[1]}", "--timeout", "0.2")
        assert code == 1
        assert "timed out" in told
        assert time.monotonic() - began < 30


def test_what_is_not_http_is_not_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                connection.recv(4096)

        thread = threading.Thread(target=answer)
        thread.start()
        assert health("--listen", f"127.0.0.1:{other.getsockname()[1]}")[0] == 1
        thread.join()


def test_tls_is_spoken_where_the_api_speaks_it(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.cert, pair.key)
    tls = {"ANVIL_TLS_CERT": str(pair.cert), "ANVIL_TLS_KEY": str(pair.key)}
    with serving(context) as server:
        code, told = health("--ready", **address(server), **tls)
        assert (code, told) == (0, f"https://127.0.0.1:{server.server_port}/ready: ready\n")
    with serving() as server:  # TLS on another address: this one is plaintext
        assert health(**address(server), **tls, ANVIL_TLS_LISTEN_ADDR="127.0.0.1:1")[0] == 0


def test_a_wrong_setting_is_no_answer_about_the_node() -> None:
    assert health(ANVIL_REGOIN="x")[0] == 2
    code, told = health(ANVIL_API_LISTEN_ADDR="127.0.0.1:0")
    assert code == 2
    assert "--listen" in told


def test_a_node_drains_and_is_not_ready_any_more(tmp_path: Path) -> None:
    """Of a real supervisor: `--ready` turns before the node stops to answer."""
    with AnvilNode(tmp_path / "data", env={"ANVIL_DRAIN_NOTICE_S": "60"}, command=("tests.support.toy_server",)) as node:
        listen = {"ANVIL_API_LISTEN_ADDR": f"127.0.0.1:{node.port}"}
        assert health("--ready", **listen)[0] == 0
        os.kill(node.pid, signal.SIGTERM)
        wait_until("it drains", lambda: health("--ready", **listen)[0] == 1)
        code, told = health("--ready", **listen)
        assert code == 1
        assert "/ready: draining" in told
        assert health(**listen)[0] == 0
        node.stop()  # the second signal: at once


def test_little_is_imported() -> None:
    """It runs every few seconds: nothing of the server, no event loop."""
    code = (
        "import sys; sys.argv=['anvil','health','--listen','127.0.0.1:1']; from anvil.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(*sorted(name for name in sys.modules if name.partition('.')[0] in ('anvil','asyncio','rich','grpc','asyncpg')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=True
    )
    loaded = done.stdout.splitlines()[-1].split()
    assert [name for name in loaded if name.startswith("anvil.") and name.split(".")[1] not in ("base", "cli")] == []
    assert not {"asyncio", "rich", "grpc", "asyncpg"} & set(loaded)
