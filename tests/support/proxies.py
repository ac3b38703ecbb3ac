"""Real reverse proxies for tests: Caddy and nginx with the configuration files that are shipped in `docker/`.

    with Proxy(CADDY, [node.port], folder, certificate) as proxy:
        requests go to proxy.endpoint

Owns: the proxy's process, the certificate of one test run, upstreams that fail on purpose. Invariant: what runs is the shipped
file; only addresses, the paths of this machine and the account are put in their places, and a place that the file does not have
fails. Not here: nodes (`node.py`).
"""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import os
import pwd
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.support.needs import program
from tests.support.node import ROOT, wait_until
from tests.support.ports import free_port

DOMAIN = "s3.anvil.test"  # the store's name; `resolving` lets a process find it
START_S = 60.0
LOG_TAIL_BYTES = 8_000


RUNNING: list[Proxy] = []  # entered and not left: a failing test shows their logs (tests/compat/proxies/conftest.py)


@dataclass(frozen=True)
class ProxyKind:
    """One shipped configuration. `recommended`: it must survive a dead node and pass gRPC. `grpc`: whether gRPC gets through."""

    name: str
    program: str
    file: str
    recommended: bool
    grpc: bool


CADDY = ProxyKind("caddy", "caddy", "docker/caddy/Caddyfile", recommended=True, grpc=True)
CADDY_SIMPLE = ProxyKind("caddy-simple", "caddy", "docker/caddy/Caddyfile.simple", recommended=False, grpc=True)
NGINX = ProxyKind("nginx", "nginx", "docker/nginx/nginx.conf", recommended=True, grpc=True)
NGINX_SIMPLE = ProxyKind("nginx-simple", "nginx", "docker/nginx/nginx.simple.conf", recommended=False, grpc=False)
KINDS = (CADDY, CADDY_SIMPLE, NGINX, NGINX_SIMPLE)


class Certificate:
    """An authority made for this run, and a certificate of it for localhost, 127.0.0.1, DOMAIN and *.DOMAIN."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.authority = folder / "authority.pem"
        self.chain = folder / "fullchain.pem"
        self.key = folder / "privkey.pem"
        ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Anvil's tests")])
        ca_use = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
        ca = (
            self._builder(issuer, issuer, ca_key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(ca_use, critical=True)
            .add_extension(ca_id, critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        names = [x509.DNSName(name) for name in ("localhost", DOMAIN, f"*.{DOMAIN}")]
        addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, DOMAIN)])
        leaf = (
            self._builder(subject, issuer, key.public_key())
            .add_extension(x509.SubjectAlternativeName([*names, *addresses]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        self.authority.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
        self.chain.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self.key.write_bytes(pem)

    @staticmethod
    def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )


class Proxy:
    """`upstreams`: one or two ports of the loopback, in the file's order."""

    def __init__(self, kind: ProxyKind, upstreams: Sequence[int], folder: Path, certificate: Certificate) -> None:
        self.kind = kind
        self.port = free_port()
        self._upstreams = [f"127.0.0.1:{port}" for port in upstreams]
        self._folder = folder
        self._certificate = certificate
        self._log = folder / "proxy.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        command, env = self._caddy() if self.kind.program == "caddy" else self._nginx()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder, start_new_session=True
            )
        try:
            wait_until(f"{self.kind.name} listens", self._listens, START_S)
        except AssertionError as error:
            self._stop()
            raise AssertionError(f"{error}\n{self.log_tail()}") from None
        RUNNING.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        RUNNING.remove(self)
        self._stop()

    @property
    def endpoint(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def target(self) -> str:
        """For a gRPC channel."""
        return f"localhost:{self.port}"

    @property
    def authority_file(self) -> Path:
        """What clients must trust."""
        return self._certificate.authority

    def log_tail(self) -> str:
        logs = [path for path in (self._log, self._folder / "error.log") if path.exists()]
        return "\n".join(path.read_text(errors="replace")[-LOG_TAIL_BYTES:] for path in logs)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"{self.kind.name} ended with {self._process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def _stop(self) -> None:
        """SIGTERM makes both of them end at once, without waiting for their clients."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    def _caddy(self) -> tuple[list[str], dict[str, str]]:
        """The file is used as it is: everything is in Caddy's environment."""
        scheme = "h2c://" if self.kind is CADDY_SIMPLE else ""
        names = (f"https://localhost:{self.port}", f"https://{DOMAIN}:{self.port}", f"https://*.{DOMAIN}:{self.port}")
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "XDG_DATA_HOME": str(self._folder / "data"),
            "XDG_CONFIG_HOME": str(self._folder / "config"),
            "ANVIL_CADDY_ADMIN": f"127.0.0.1:{free_port()}",
            "ANVIL_SITE": ", ".join(names),
            "ANVIL_NODES": " ".join(f"{scheme}{address}" for address in self._upstreams),
            "ANVIL_TLS": f"tls {self._certificate.chain} {self._certificate.key}",
            "ANVIL_BIND": "bind 127.0.0.1",
            "ANVIL_HTTP_PORT": str(free_port()),
        }
        return [program(self.kind.program), "run", "--config", str(ROOT / self.kind.file), "--adapter", "caddyfile"], env

    def _nginx(self) -> tuple[list[str], dict[str, str]]:
        first, second = self._upstreams[0], self._upstreams[-1]
        text = (ROOT / self.kind.file).read_text()
        for place, value in {
            "user www-data;": f"user {pwd.getpwuid(os.getuid()).pw_name};",
            "/run/nginx.pid": f"{self._folder}/nginx.pid",
            "/var/log/nginx/": f"{self._folder}/",
            "/var/lib/nginx/": f"{self._folder}/",
            "/etc/nginx/tls/fullchain.pem": str(self._certificate.chain),
            "/etc/nginx/tls/privkey.pem": str(self._certificate.key),
            "listen 443 ssl": f"listen 127.0.0.1:{self.port} ssl",
            "server 10.0.0.1:50051": f"server {first}",
            "server 10.0.0.2:50051": f"server {second}",
            "s3.example.com": DOMAIN,
        }.items():
            assert place in text, f"{self.kind.file} has no {place!r}"
            text = text.replace(place, value)
        left = re.findall(r"^(?!\s*#).*(?:10\.0\.0\.|/etc/|/var/).*$", text, re.MULTILINE)
        assert not left, f"not put in its place: {left}"
        file = self._folder / "nginx.conf"
        file.write_text(text)
        command = ["-c", str(file), "-p", str(self._folder), "-g", "daemon off;", "-e", str(self._folder / "error.log")]
        return [program(self.kind.program), *command], {"PATH": os.environ["PATH"]}


class Relay:
    """Stands between a proxy and a node as one more node, and can die: everything it has open breaks, and nobody listens any more.

    `port`: where it listens. `node_port`: where what comes is passed on to."""

    def __init__(self, node_port: int) -> None:
        self._node_port = node_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._dead = False
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def die(self) -> None:
        """Like a process that is killed."""
        with self._lock:
            self._dead = True
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            for one in self._open:
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._node_port), 10)
            far.settimeout(None)
            with self._lock:
                if self._dead:
                    near.close()
                    far.close()
                    return
                self.connections += 1
                self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                sink.sendall(data)
        with self._lock:
            for one in (source, sink):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            self._open -= {source, sink}


class Swallower:
    """An upstream that is ready, takes every request whole, and hangs up without an answer: nobody can know what it has done.

    `swallowed`: the methods of the requests it took, in order."""

    def __init__(self) -> None:
        self.swallowed: list[str] = []
        swallowed = self.swallowed

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                elif self.path == "/ready":
                    self.send_response(200)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                else:
                    self.rfile.read(int(self.headers.get("Content-Length", "0")))
                    swallowed.append(self.command)
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


Resolver = Callable[..., list[tuple[object, ...]]]


def resolving(original: Resolver) -> Resolver:
    """A `socket.getaddrinfo` that finds DOMAIN and every name below it on this machine."""

    def getaddrinfo(host: object, *rest: object, **named: object) -> list[tuple[object, ...]]:
        name = host.decode() if isinstance(host, bytes) else host
        ours = isinstance(name, str) and (name == DOMAIN or name.endswith(f".{DOMAIN}"))
        return original("127.0.0.1" if ours else host, *rest, **named)

    return getaddrinfo
