"""`anvil bench`: loads an S3 endpoint, ours or another's, and says what it did; compares and draws such reports.

Owns: the options of each operation, and what is printed. Invariants: an option that an operation would ignore is none of its options;
exit code 1 when any request failed or read something else than was stored. Not here: where the endpoint's address and keys come from
(`bench_target.py`), the load itself (`anvil/bench`).
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import click

from anvil.base.errors import InvalidSetting
from anvil.cli.bench_target import Options, resolve
from anvil.cli.exits import Exit
from anvil.cli.output import emit

if TYPE_CHECKING:
    from anvil.bench.plan import Plan
    from anvil.bench.report import Report
    from anvil.bench.run import Progress

Command: TypeAlias = Callable[..., Any]
Option: TypeAlias = Callable[[Command], Command]
INTERRUPTED: Final = 130
MIX: Final = "get=45,put=15,stat=30,delete=10"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Load an S3 endpoint and measure it. Only objects under the run's own prefix are touched, and removed at the end."""


def _options(*options: Option) -> Option:
    def add(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return add


TARGET: Final = _options(
    click.option("--endpoint", envvar=["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"], metavar="URL", help="http(s)://host[:port]."),
    click.option("--bucket", required=True, metavar="NAME", help="Where to work."),
    click.option("--create-bucket", is_flag=True, help="Make the bucket where there is none; it stays."),
    click.option("--access-key", envvar="AWS_ACCESS_KEY_ID", metavar="KEY"),
    click.option("--secret-key", envvar="AWS_SECRET_ACCESS_KEY", metavar="SECRET", help="`-` reads it from standard input."),
    click.option("--session-token", envvar="AWS_SESSION_TOKEN", metavar="TOKEN"),
    click.option("--region", envvar=["AWS_REGION", "AWS_DEFAULT_REGION"], metavar="NAME", help="Else us-east-1."),
    click.option("--ca", envvar="AWS_CA_BUNDLE", metavar="FILE", help="Certificates to trust, instead of the system's."),
    click.option("--profile", envvar="ANVIL_PROFILE", metavar="NAME", help="Of `anvil configure`: its server and key pair."),
    click.option("--aws-profile", envvar="AWS_PROFILE", metavar="NAME", help="Of the AWS credentials file."),
    click.option("--credentials-file", envvar="AWS_SHARED_CREDENTIALS_FILE", default="~/.aws/credentials", show_default=True),
    click.option("--config-file", envvar="AWS_CONFIG_FILE", default="~/.aws/config", show_default=True),
)
LOAD: Final = _options(
    click.option("--concurrency", type=int, default=16, show_default=True, help="Connections, each with one request in flight."),
    click.option("--processes", type=int, help="Client processes [default: one for each CPU, at most --concurrency]."),
    click.option("--duration", metavar="TIME", help="10s, 5m, 1h [default: 10s, where there is no --count]."),
    click.option("--count", type=int, default=0, help="Requests, instead of a time."),
    click.option(
        "--rate", type=float, default=0.0, metavar="R", help="Open loop: R requests/s; latencies count from when each is due."
    ),
    click.option("--prefixes", type=int, default=1, show_default=True, help="Folders that each process's keys are spread over."),
    click.option("--prefix", metavar="NAME/", help="That all keys begin with [default: anvil-bench-RANDOM/]."),
    click.option("--seed", type=int, default=1, show_default=True, help="Of contents, sizes and chance."),
    click.option(
        "--timeout", default="60s", show_default=True, metavar="TIME", help="For how long no byte of a request may move."
    ),
    click.option("--keep", is_flag=True, help="Leave the objects where they are."),
    click.option("--json", "json_file", metavar="FILE", help="Write the report; `-`: to standard output, instead of the table."),
    click.option("--csv", "csv_file", metavar="FILE", help="Write a row for each second."),
    click.option("--plot", "plot_file", metavar="FILE", help="Draw the report as .png or .svg (needs anvil-store[plots])."),
    click.option("-q", "--quiet", is_flag=True, help="Show nothing while it runs."),
)
WARMUP: Final = click.option("--warmup", default="0s", show_default=True, metavar="TIME", help="Load before the clock starts.")
OBJECTS: Final = click.option("--objects", type=int, help="That are stored before the clock starts.")
PAYLOAD: Final = click.option(
    "--payload",
    type=click.Choice(["unsigned", "signed"]),
    default="unsigned",
    show_default=True,
    help="Whether the SHA-256 of what is sent is signed.",
)


def _size(default: str) -> Option:
    return click.option(
        "--size", default=default, show_default=True, metavar="SIZE", help="4KiB, 1KiB..1MiB (log-uniform), or 4KiB:70,1MiB:30."
    )


def _operation(name: str, text: str, *own: Option) -> None:
    """Makes the command for an operation that has these options beside those of all."""

    @command.command(name, help=text)
    @TARGET
    @LOAD
    @_options(*own)
    def load(**options: Any) -> int:
        return _load(name, click.get_current_context(), options)


_operation("put", "Store new objects.", _size("4KiB"), PAYLOAD, WARMUP)
_operation("get", "Read objects at random, and compare every byte.", _size("4KiB"), WARMUP, OBJECTS)
_operation(
    "mixed",
    "Several operations on objects that come and go.",
    click.option("--mix", default=MIX, show_default=True, help="Weights."),
    _size("4KiB"),
    PAYLOAD,
    WARMUP,
    OBJECTS,
)
_operation(
    "list",
    "List prefixes at random, page by page, and compare every key.",
    click.option("--max-keys", type=int, default=1000, show_default=True, help="Of one page."),
    _size("0B"),
    WARMUP,
    OBJECTS,
)
_operation("delete", "Delete objects, each once.", _size("4KiB"), OBJECTS)
_operation("stat", "HEAD of objects at random, and compare their size.", _size("4KiB"), WARMUP, OBJECTS)
_operation(
    "multipart",
    "Upload objects in parts. --count and --rate are those of objects.",
    _size("64MiB"),
    click.option("--part-size", default="8MiB", show_default=True),
    click.option("--parallel", type=int, default=4, show_default=True, help="Connections that send the parts of one object."),
    PAYLOAD,
    WARMUP,
)


def _load(operation: str, context: click.Context, options: dict[str, Any]) -> int:
    from anvil.bench import plot, report, run

    plan = _plan(operation, options)
    target, origin = resolve(Options.of(options, context))
    for path in (options["json_file"], options["csv_file"]):
        if path not in (None, "-") and not Path(path).absolute().parent.is_dir():
            raise InvalidSetting(f"{path}: there is no such folder")
    if options["plot_file"]:
        plot.check(options["plot_file"])
    display = Display(options["quiet"])
    display.line(f"{target.url}, bucket {target.bucket}, prefix {plan.prefix}, keys from {origin}")
    started_s = time.time()
    try:
        outcome = run.run(target, plan, display.show)
    finally:
        display.end()
    made = report.build(target, plan, outcome, started_s)
    _write(made, options)
    if made.interrupted:
        return INTERRUPTED
    return Exit.FAILED if made.failed or not made.operations else Exit.OK


def _plan(operation: str, options: dict[str, Any]) -> Plan:
    from anvil.bench.plan import READING, Plan, check, default_objects, parse_mix, parse_seconds
    from anvil.bench.sizes import parse_size

    duration, count = options["duration"], options["count"]
    processes = options["processes"] or max(1, min(len(os.sched_getaffinity(0)), options["concurrency"]))
    objects = options.get("objects")
    plan = Plan(
        operation,
        options["prefix"] or f"anvil-bench-{secrets.token_hex(4)}/",
        options["size"],
        options["concurrency"],
        processes,
        parse_seconds(duration) if duration is not None else (0.0 if count else 10.0),
        count,
        parse_seconds(options.get("warmup", "0")),
        options["rate"],
        default_objects(operation, count) if objects is None and operation in READING else objects or 0,
        options["prefixes"],
        parse_mix(options["mix"]) if "mix" in options else {},
        parse_size(options["part_size"]) if "part_size" in options else 0,
        options.get("parallel", 0),
        options.get("max_keys", 1000),
        options.get("payload") == "signed",
        options["seed"],
        parse_seconds(options["timeout"]),
        options["create_bucket"],
        options["keep"],
    )
    check(plan)
    return plan


def _write(made: Report, options: dict[str, Any]) -> None:
    from anvil.bench import plot, report

    if options["json_file"] == "-":
        emit(made, True, "")
    else:
        click.echo(report.text(made))
    try:
        if options["json_file"] not in (None, "-"):
            report.write_json(made, options["json_file"])
        if options["csv_file"] == "-":
            report.write_csv(made, sys.stdout)
        elif options["csv_file"]:
            with Path(options["csv_file"]).open("w", newline="", encoding="utf-8") as file:
                report.write_csv(made, file)
    except OSError as error:
        raise InvalidSetting(f"{error.filename} cannot be written: {error.strerror}") from None
    if options["plot_file"]:
        plot.draw([("", made)], options["plot_file"])


@command.command()
@click.argument("first", metavar="A.json")
@click.argument("second", metavar="B.json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
def compare(first: str, second: str, as_json: bool) -> None:
    """Ratios of B to A for each operation, and whether they are more than the noise within the runs."""
    from anvil.bench import compare as comparing
    from anvil.bench import report

    reports = report.load(first), report.load(second)
    rows, differences = comparing.compare(*reports), comparing.differences(*reports)
    if not rows:
        raise InvalidSetting(f"{first} and {second} have no operation in common")
    lines = [comparing.text(rows), *(f"note: not the same in both: {one}" for one in differences)]
    emit({"rows": rows, "differences": differences}, as_json, "\n".join(lines))


@command.command()
@click.argument("first", metavar="A.json")
@click.argument("others", metavar="[B.json] FILE", nargs=-1, required=True)
def plot(first: str, others: tuple[str, ...]) -> None:
    """Draw one or two reports into FILE, a .png or .svg: latency percentiles, and throughput over time."""
    from anvil.bench import plot as drawing
    from anvil.bench import report

    if len(others) > 2:
        raise click.UsageError("one or two reports, and the file to draw them into")
    drawing.check(others[-1])
    names = [first, *others[:-1]]
    drawing.draw([(Path(name).stem, report.load(name)) for name in names], others[-1])


class Display:
    """What is shown while it runs: one line on standard error that is written over, and only where somebody looks."""

    def __init__(self, quiet: bool) -> None:
        self._shown = not quiet and sys.stderr.isatty()
        self._began = time.monotonic()
        self._before = (self._began, 0, 0)

    def line(self, text: str) -> None:
        if self._shown:
            click.echo(text, err=True)

    def show(self, progress: Progress) -> None:
        """Called each second by every process."""
        if not self._shown:
            return
        now, (then, requests, nbytes) = time.monotonic(), self._before
        text = progress.phase
        if progress.requests and progress.phase != "removing objects":
            if now - then < 0.5:
                return
            rate, volume = (progress.requests - requests) / (now - then), (progress.bytes - nbytes) / (now - then) / 1e6
            failed = f", {progress.failures:,} failed" if progress.failures else ""
            text += f" {now - self._began:5.0f} s: {rate:10,.0f} requests/s {volume:10,.1f} MB/s, {progress.requests:,} requests{failed}"
            self._before = (now, progress.requests, progress.bytes)
        elif progress.requests:
            text += f": {progress.requests:,}"
        click.echo(f"\r\x1b[K{text}", err=True, nl=False)

    def end(self) -> None:
        if self._shown:
            click.echo("\r\x1b[K", err=True, nl=False)
