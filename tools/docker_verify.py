#!/usr/bin/env python3
"""Builds the image of docker/Dockerfile without a container engine, runs it as one would, and says what held.

    make docker-verify ARGS="--work /var/tmp/anvil-image"

The base is made from Debian's packages (mmdebstrap), the image is built by buildah (chroot isolation), and run by runc, the runtime below
Docker: as the image's own user, process 1 and all, on a root file system that the kernel keeps read-only, without any capability, in
namespaces of its own. What an engine does beside that is done here: /tmp, and a volume that takes over the owner of the image's folder.

Owns: the folder it works in. Invariants: needs root, and changes nothing outside of that folder but the packages it installs (buildah,
mmdebstrap, runc); every check can fail, and the first that does ends the run with 1. Not here: what the node does in other respects
(`tests/`), the manifests (`tests/integration/docker`).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SUITE = "trixie"
PROGRAMS = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "runc": "runc", "nsenter": "util-linux"}
BASE, IMAGE = "localhost/anvil-base", "localhost/anvil"
UID = 10001
DATA, TMP = "/var/lib/anvil", "/tmp"  # noqa: S108 - in the container
ENDPOINT = "http://127.0.0.1:50051"
READY_S = 60.0
STOP_S = 20.0  # ANVIL_DRAIN_NOTICE_S, and what an idle node needs beyond that
OBJECT_BYTES = 5 * 2**20 + 1

Result = tuple[str, str]


class Failed(Exception):
    """A check that did not hold; the message says what was seen."""


def need(condition: object, told: str) -> None:
    if not condition:
        raise Failed(told)


def run(*command: str | Path, check: bool = True, **options: Any) -> str:
    """Standard output of a program. Raises Failed with the end of what it said."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [str(part) for part in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **options
    )
    if check and done.returncode != 0:
        said = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise Failed(f"{' '.join(map(str, command))[:200]} ended with {done.returncode}:\n{said}")
    return done.stdout


def wait_until(what: str, condition: Callable[[], bool], deadline_s: float) -> float:
    """Seconds until `condition` held. Raises Failed after the deadline."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > deadline_s:
            raise Failed(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - began


# -- building -----------------------------------------------------------------------------------------------------------------


def install_programs() -> None:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    os.environ["PATH"] = path
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if missing:
        print(f"Installing with apt: {' '.join(missing)}", flush=True)
        run("apt-get", "update", "-qq")
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        run(
            "apt-get",
            "-o",
            "DPkg::Lock::Timeout=300",
            "install",
            "-y",
            "-qq",
            "--no-install-recommends",
            *missing,
            env=environment,
        )


def storage_driver(work: Path) -> str:
    """overlay where the kernel can mount it in `work`; else, and where such a store is there, vfs, which copies everything at each step."""
    if (work / "store" / "vfs-images").exists():
        return "vfs"
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        folders = [Path(scratch) / name for name in ("lower", "upper", "work", "merged")]
        for folder in folders:
            folder.mkdir()
        options = f"lowerdir={folders[0]},upperdir={folders[1]},workdir={folders[2]}"
        command = ["mount", "-t", "overlay", "overlay", "-o", options, str(folders[3])]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return "vfs"
        run("umount", folders[3])
    return "overlay"


class Builder:
    """buildah with a store of its own in `work`."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self._options = ["--root", str(work / "store"), "--runroot", str(work / "run"), "--storage-driver", storage_driver(work)]

    def buildah(self, *arguments: str | Path, **options: Any) -> str:
        return run("buildah", *self._options, *arguments, **options)

    def base(self) -> None:
        """The base image, from Debian's packages; made once for a folder."""
        if BASE in self.buildah("images", "--format", "{{.Name}}").split():
            return
        tar = self.work / "base.tar"
        if not tar.exists():
            run("mmdebstrap", "--variant=minbase", "--mode=root", SUITE, self.work / "base.new.tar")
            (self.work / "base.new.tar").rename(tar)
        made = self.buildah("from", "scratch").strip().splitlines()[-1]
        self.buildah("add", "-q", made, tar, "/")
        self.buildah("commit", "-q", "--rm", made, BASE)

    def image(self, revision: str) -> None:
        """The image. The package index and its authority are given as pip has them here, for this build alone."""
        arguments = ["--build-arg", f"BASE={BASE}", "--build-arg", f"REVISION={revision}"]
        if os.environ.get("PIP_INDEX_URL"):
            arguments += ["--build-arg", "PIP_INDEX_URL"]
        if os.environ.get("PIP_CERT"):
            arguments += ["-v", f"{os.environ['PIP_CERT']}:/run/pip-cert.pem:ro", "--build-arg", "PIP_CERT=/run/pip-cert.pem"]
        self.buildah(
            "bud",
            "--isolation",
            "chroot",
            "--format",
            "docker",
            *arguments,
            "-f",
            ROOT / "docker/Dockerfile",
            "-t",
            IMAGE,
            ROOT,
        )

    def inspect(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.buildah("inspect", "--type", "image", IMAGE))
        return found

    @contextmanager
    def rootfs(self) -> Iterator[tuple[str, Path]]:
        """A container of the image, and its root file system."""
        made = self.buildah("from", "--pull-never", IMAGE).strip().splitlines()[-1]
        try:
            yield made, Path(self.buildah("mount", made).strip().splitlines()[-1])
        finally:
            self.buildah("umount", made, check=False)
            self.buildah("rm", made, check=False)


# -- running ------------------------------------------------------------------------------------------------------------------


class Container:
    """The image, run by runc as an engine would run it with --read-only, --cap-drop=ALL, --tmpfs /tmp and a volume."""

    def __init__(self, work: Path, rootfs: Path, config: dict[str, Any], volume: Path, name: str) -> None:
        self.name = name
        self._state = ["--root", str(work / "runc")]
        self._bundle = work / name
        shutil.rmtree(self._bundle, ignore_errors=True)
        self._bundle.mkdir()
        self.log = self._bundle / "log"
        self._process: subprocess.Popen[bytes] | None = None
        run("runc", "spec", cwd=self._bundle)
        spec = json.loads((self._bundle / "config.json").read_text())
        files = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        user, _, group = config["User"].partition(":")
        spec["process"] |= {
            "terminal": False,
            "args": [*config["Entrypoint"], *config["Cmd"]],
            "env": config["Env"],
            "cwd": config["WorkingDir"],
            "user": {"uid": int(user), "gid": int(group)},
            "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
            "noNewPrivileges": True,
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": files, "soft": files}],
        }
        spec["root"] = {"path": str(rootfs), "readonly": True}
        spec["hostname"] = name
        spec["mounts"] = [mount for mount in spec["mounts"] if "cgroup" not in mount["type"] and mount["destination"] != "/sys"]
        spec["mounts"] += [
            {"destination": TMP, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=1777", "size=64m"]},
            {"destination": DATA, "type": "bind", "source": str(volume), "options": ["rbind", "rw", "nosuid", "nodev"]},
        ]
        spec["linux"]["namespaces"] = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]
        spec["linux"].pop("resources", None)
        (self._bundle / "config.json").write_text(json.dumps(spec))

    def __enter__(self) -> Container:
        with self.log.open("ab") as sink:
            self._process = subprocess.Popen(
                ["runc", *self._state, "run", "--bundle", str(self._bundle), self.name],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._process is not None and self._process.poll() is None:
            run("runc", *self._state, "kill", self.name, "KILL", check=False)
            self._process.wait(30)
        run("runc", *self._state, "delete", "--force", self.name, check=False)

    def exec(self, *command: str, check: bool = True) -> str:
        """`docker exec`."""
        return run("runc", *self._state, "exec", self.name, *command, check=check)

    def ends(self, *command: str) -> int:
        """The exit code of a command inside."""
        return subprocess.run(["runc", *self._state, "exec", self.name, *command], capture_output=True, check=False).returncode

    @property
    def pid(self) -> int:
        return int(json.loads(run("runc", *self._state, "state", self.name))["pid"])

    def wait_ready(self) -> float:
        def ready() -> bool:
            need(self._process is not None and self._process.poll() is None, f"the container ended:\n{self.tail()}")
            return self.ends("anvil", "health", "--ready", "--quiet") == 0

        return wait_until(f"the node is ready\n{self.tail()}", ready, READY_S)

    def stop(self, number: str = "TERM") -> tuple[int, float]:
        """Exit code, and the seconds it took."""
        began = time.monotonic()
        run("runc", *self._state, "kill", self.name, number)
        assert self._process is not None
        try:
            code = self._process.wait(STOP_S * 3)
        except subprocess.TimeoutExpired:
            raise Failed(f"SIG{number} did not end the container in {STOP_S * 3:g} s:\n{self.tail()}") from None
        run("runc", *self._state, "delete", "--force", self.name, check=False)
        return code, time.monotonic() - began

    def processes(self) -> dict[int, tuple[str, str]]:
        """Pid inside: name and state (Z: dead, and nobody took notice)."""
        script = (
            "import os\nfor p in filter(str.isdigit, os.listdir('/proc')):\n"
            " try: s=open(f'/proc/{p}/stat').read()\n except OSError: continue\n"
            " print(p, s[s.index('(')+1:s.rindex(')')].replace(' ', '_'), s[s.rindex(')')+2])"
        )
        lines = [line.split() for line in self.exec("python3", "-c", script).splitlines()]
        return {int(pid): (name, state) for pid, name, state in lines}

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])

    def aws(self, folder: Path, *arguments: str | Path) -> str:
        """The AWS CLI of this machine, in the container's network."""
        environment = {
            "PATH": os.environ["PATH"],
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
            "AWS_CONFIG_FILE": str(folder / "none"),
            "AWS_ENDPOINT_URL": ENDPOINT,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        aws = Path(sys.executable).with_name("aws")
        return run("nsenter", f"--net=/proc/{self.pid}/ns/net", sys.executable, aws, *arguments, env=environment)


# -- checks -------------------------------------------------------------------------------------------------------------------


def check_image(builder: Builder, revision: str) -> Iterator[Result]:
    image = builder.inspect()
    config = image["Docker"]["config"]
    need(config["User"] == f"{UID}:{UID}", f"user {config['User']}")
    need(config["Healthcheck"]["Test"] == ["CMD", "anvil", "health"], f"health check {config['Healthcheck']}")
    need(DATA in config["Volumes"], f"volumes {config['Volumes']}")
    need(set(config["ExposedPorts"]) == {"50051/tcp", "7443/tcp"}, f"ports {config['ExposedPorts']}")
    need(config["Labels"]["org.opencontainers.image.revision"] == revision, f"labels {config['Labels']}")
    yield "user, ports, volume, labels, health check", f"{config['User']}, {' '.join(config['Healthcheck']['Test'][1:])}"
    told = json.dumps(image)
    hidden = [name for name in ("PIP_INDEX_URL", "PIP_CERT", "pip-cert.pem") if name in told]
    need(not hidden, f"the image's history tells {hidden}")
    yield "nothing of the package index in the image", "history and configuration"


def check_files(builder: Builder, name: str, rootfs: Path, revision: str) -> Iterator[Result]:
    programs = {
        path.name for folder in ("usr/bin", "usr/local/bin", "usr/sbin", "opt/anvil/bin") for path in (rootfs / folder).iterdir()
    }
    tools = {
        program
        for program in programs
        if re.fullmatch(r"(.*-)?(gcc|cc|c\+\+|g\+\+|clang|make|ld|as)(-\d+)?|pip[\d.]*|cython", program)
    }
    need(not tools, f"in the image: {sorted(tools)}")
    [package] = rootfs.glob("opt/anvil/lib/python3*/site-packages/anvil")
    sources = [path for path in package.rglob("*") if path.suffix in (".c", ".pyx", ".h")]
    need(not sources, f"sources in the image: {sources[:3]}")
    need(not list(rootfs.glob("root/.cache/*")), "a cache of pip in the image")
    need(not (rootfs / "src").exists() and not (rootfs / "build").exists(), "folders of the build in the image")
    for program in ("anvil", "pg_dump", "psql", "tini"):
        need(program in programs, f"{program} is not in the image")
    yield "no compiler, no pip, no sources, no cache", f"{len(programs)} programs"
    apparent = sum(path.lstat().st_size for path in rootfs.rglob("*") if path.is_file() and not path.is_symlink())
    packed = int(run("sh", "-c", f"tar -C '{rootfs}' -c . | gzip -6 | wc -c"))
    yield "size", f"{apparent / 1e6:.0f} MB, {packed / 1e6:.0f} MB compressed"

    def inside(*command: str) -> str:
        return builder.buildah("run", "--isolation", "chroot", "--user", f"{UID}:{UID}", name, "--", *command)

    version = inside("anvil", "version").strip()
    need(version.endswith(f"({revision[:12]})"), version)
    yield "anvil version", version
    doctor = json.loads(inside("sh", "-c", "ANVIL_DATA_DIR=/tmp/none anvil doctor --json 2>/dev/null | cat"))
    values = {finding["name"]: finding["value"] for finding in doctor}
    missing = [
        finding["name"] for finding in doctor if finding["topic"] in ("versions", "kernels") and finding["state"] == "problem"
    ]
    need(not missing, f"missing: {missing}")
    need(tuple(map(int, values["ISA-L"].split(".")[:2])) >= (2, 31), f"ISA-L {values['ISA-L']}")
    yield "python, ISA-L, OpenSSL", f"{values['python']}, {values['ISA-L']}, {values['openssl'].split()[0]}"
    clients = [
        inside(*command, "--version").split() for command in (("pg_dump",), ("psql",), ("/opt/anvil/postgres/bin/pg_dump",))
    ]
    script = "import ctypes; ctypes.CDLL('libpq.so.5'); print('libssl.so' in open('/proc/self/maps').read())"
    need(inside("python3", "-c", script).strip() == "True", "libpq does not speak TLS")
    yield "PostgreSQL's clients", f"{clients[0][2]} with TLS; of the embedded one {clients[2][2]}"


def check_first_run(container: Container, config: dict[str, Any], folder: Path) -> Iterator[Result]:
    took_s = container.wait_ready()
    yield "ready", f"after {took_s:.1f} s on an empty volume"
    processes = container.processes()
    need(processes[1][0] == "tini", f"process 1 is {processes[1]}")
    uids = set(run("ps", "-o", "uid=", "--ppid", str(container.pid)).split())
    need(uids == {str(UID)}, f"it runs as {uids}")
    status = Path(f"/proc/{container.pid}/status").read_text()
    need(re.search(r"^CapBnd:\s*0+$", status, re.MULTILINE) and re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE), status)
    need(
        container.ends("sh", "-c", "touch /opt/anvil/x || touch /drives/x || touch /var/tmp/x || touch /x") != 0,
        "the root file system can be written",
    )
    yield "as user 10001, read-only, without capabilities", f"{len(processes)} processes below tini"
    need(config["Healthcheck"]["Test"][0] == "CMD", str(config["Healthcheck"]))
    need(container.ends(*config["Healthcheck"]["Test"][1:]) == 0, "the health check fails on a node that is well")
    need(container.ends("anvil", "health", "--listen", "127.0.0.1:9") == 1, "the health check does not see that nobody answers")
    yield "health check", container.exec("anvil", "health", "--ready").strip()
    log = container.log.read_text(errors="replace")
    (folder / "credentials").write_text(container.exec("cat", f"{DATA}/credentials"))
    secret = re.search(r"aws_secret_access_key = (\S+)", (folder / "credentials").read_text())
    need(
        f"serves S3 and gRPC at {ENDPOINT}" in log and "credentials" in log,
        f"it does not say how to connect:\n{container.tail()}",
    )
    need(secret is not None and secret[1] not in log, "the secret key is in the log")
    yield "says how to connect, and not the secret", ENDPOINT
    container.aws(folder, "s3", "mb", "s3://first")
    for size, name in ((OBJECT_BYTES, "large"), (1000, "small")):
        (folder / name).write_bytes(random.Random(size).randbytes(size))
        container.aws(folder, "s3", "cp", folder / name, f"s3://first/{name}")
    yield "objects go in and come out", compare(container, folder)


def compare(container: Container, folder: Path) -> str:
    """Both objects are what was stored."""
    for name in ("large", "small"):
        back = folder / f"{name}.back"
        back.unlink(missing_ok=True)
        container.aws(folder, "s3", "cp", f"s3://first/{name}", back)
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / name, back)]
        need(digests[0] == digests[1], f"{name} came back as something else")
    return f"{OBJECT_BYTES} and 1000 bytes, SHA-256 equal"


def check_orphans(container: Container) -> Iterator[Result]:
    """A PostgreSQL that is killed leaves its children to process 1."""
    before = container.processes()
    postmaster = int(container.exec("head", "-1", f"{DATA}/postgres/cluster/postmaster.pid"))
    need(before[postmaster][0] == "postgres", f"{postmaster} is {before[postmaster]}")
    orphans = {pid for pid, (name, _) in before.items() if name == "postgres" and pid != postmaster}
    container.exec("sh", "-c", f"kill -KILL {postmaster}")
    container.exec("sh", "-c", "(true &) ; exit 0")

    def settled() -> bool:
        if orphans & set(container.processes()):
            return False
        # /ready forgives a database one failed check: it may not have noticed yet.
        answers = container.ends(
            "/opt/anvil/postgres/bin/psql", "-h", f"{DATA}/postgres/socket", "-U", "anvil", "-Atc", "SELECT 1", "postgres"
        )
        return answers == 0 and container.ends("anvil", "health", "--ready", "--quiet") == 0

    took_s = wait_until("the orphans are gone and the node is ready again", settled, READY_S)
    zombies = [one for one in container.processes().values() if one[1] == "Z"]
    need(not zombies, f"nobody reaped {zombies}")
    yield "a killed PostgreSQL: orphans reaped, ready again", f"{len(orphans)} orphans, {took_s:.1f} s"


def check_lives(work: Path, rootfs: Path, config: dict[str, Any], volume: Path, folder: Path) -> Iterator[Result]:
    with Container(work, rootfs, config, volume, "anvil-verify-1") as container:
        yield from check_first_run(container, config, folder)
        yield from check_orphans(container)
        dump = container.exec(
            "sh", "-c", f"/opt/anvil/postgres/bin/pg_dump -h {DATA}/postgres/socket -U anvil anvil_regional | wc -c"
        )
        need(int(dump) > 10_000, f"the dump has {dump.strip()} bytes")
        yield "pg_dump of the embedded PostgreSQL", f"{int(dump)} bytes"
        code, took_s = container.stop()
        need(code == 0, f"SIGTERM ended it with {code}:\n{container.tail()}")
        need(took_s < STOP_S, f"SIGTERM took {took_s:.1f} s")
        yield "SIGTERM", f"exit code 0 after {took_s:.1f} s, 5 s of which are notice"
    with Container(work, rootfs, config, volume, "anvil-verify-2") as container:
        took_s = container.wait_ready()
        yield "restart keeps data", f"ready after {took_s:.1f} s; {compare(container, folder)}"
        code, _ = container.stop("KILL")
        need(code == 128 + signal.SIGKILL, f"SIGKILL ended it with {code}")
    with Container(work, rootfs, config, volume, "anvil-verify-3") as container:
        took_s = container.wait_ready()
        yield "so does a restart after SIGKILL", f"ready after {took_s:.1f} s; {compare(container, folder)}"
        code, _ = container.stop()
        need(code == 0, f"SIGTERM ended it with {code}:\n{container.tail()}")


def postgres_log(volume: Path) -> str:
    """The end of what the embedded PostgreSQL has logged."""
    logs = sorted((volume / "postgres" / "cluster" / "log").glob("*.log"), key=lambda path: path.stat().st_mtime)
    return "\n".join(logs[-1].read_text(errors="replace").splitlines()[-20:]) if logs else "PostgreSQL has logged nothing"


def build(builder: Builder, revision: str) -> Iterator[Result]:
    began = time.monotonic()
    builder.base()
    yield f"base image of Debian {SUITE}", f"{time.monotonic() - began:.0f} s"
    began = time.monotonic()
    builder.image(revision)
    yield "docker/Dockerfile builds", f"{time.monotonic() - began:.0f} s, every dependency from a wheel"


def verify(work: Path, anew: bool) -> Iterator[Result]:
    builder = Builder(work)
    if anew:
        revision = run("git", "-C", ROOT, "rev-parse", "HEAD").strip()
        yield from build(builder, revision)
    else:
        revision = builder.inspect()["Docker"]["config"]["Labels"]["org.opencontainers.image.revision"]
    yield from check_image(builder, revision)
    config = builder.inspect()["Docker"]["config"]
    with builder.rootfs() as (name, rootfs):
        yield from check_files(builder, name, rootfs, revision)
        with tempfile.TemporaryDirectory(dir=work) as scratch:
            folder, volume = Path(scratch) / "client", Path(scratch) / "volume"
            folder.mkdir()
            # As engines do with a new named volume: owner and mode of the image's folder.
            there = (rootfs / DATA.lstrip("/")).stat()
            volume.mkdir()
            volume.chmod(there.st_mode & 0o7777)
            os.chown(volume, there.st_uid, there.st_gid)
            try:
                yield from check_lives(work, rootfs, config, volume, folder)
            except Failed as failed:
                raise Failed(f"{failed}\n{postgres_log(volume)}") from failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder to work in, kept for the next time; a temporary one unless given")
    parser.add_argument("--no-build", action="store_true", help="take the image that an earlier run left in --work")
    chosen = parser.parse_args()
    if chosen.no_build and chosen.work is None:
        parser.error("--no-build needs --work")
    if os.geteuid() != 0:
        print("docker-verify needs root: it mounts file systems and installs packages", file=sys.stderr)
        return 1
    install_programs()
    work = (chosen.work or Path(tempfile.mkdtemp(prefix="anvil-docker-verify-", dir="/var/tmp"))).absolute()
    work.mkdir(parents=True, exist_ok=True)
    passed = 0
    try:
        for what, detail in verify(work, not chosen.no_build):
            passed += 1
            print(f"ok  {what:48} {detail}", flush=True)
    except Failed as error:
        print(f"FAILED after {passed} checks: {error}", file=sys.stderr)
        return 1
    finally:
        if chosen.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print(f"docker-verify: all {passed} checks held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
