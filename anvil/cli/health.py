"""`anvil health`: asks the node on this machine whether it lives, or whether it can serve. For HEALTHCHECK of a container and for service
managers.

Owns: the request to the node's own listen address, by the node's own settings. Invariants: quick to import, since it runs every few
seconds for years; no step waits longer than its time-out; 0 means yes, 1 no. Not here: what makes a node ready (`node/health.py`).
"""

from __future__ import annotations

import http.client
import ssl

import click
import msgspec

from anvil.base.addresses import here
from anvil.base.config import Config, load
from anvil.base.errors import InvalidSetting
from anvil.base.limits import HEALTH_ANSWER_BYTES_MAX, HEALTH_S
from anvil.cli.exits import Exit


class _Answer(msgspec.Struct):
    """The part of /ready's answer that is told."""

    status: str
    reasons: list[str] = []


@click.command()
@click.option("--config", "config_file", metavar="FILE", help="TOML file with settings, as given to `anvil server`.")
@click.option("--listen", metavar="HOST:PORT", help="Address of the API, where `anvil server` was given one by this flag.")
@click.option("--ready", is_flag=True, help="Ask whether the node can serve (/ready), not only whether it lives (/).")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0.1, 60.0), default=HEALTH_S, show_default=True, help="Seconds to wait."
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing: the exit code tells.")
def command(config_file: str | None, listen: str | None, ready: bool, timeout_s: float, quiet: bool) -> int:
    """Ask the node on this machine how it is. Exit code 0: well; 1: not, or no answer; 2: a wrong setting."""
    config = load(config_file=config_file, flags={"ANVIL_API_LISTEN_ADDR": listen})
    if not config.api.listen.port:
        raise InvalidSetting(
            "ANVIL_API_LISTEN_ADDR lets the system choose a port: give the one that was chosen, --listen HOST:PORT"
        )
    well, text = ask(config, "/ready" if ready else "/", timeout_s)
    if not quiet:
        click.echo(text)
    return Exit.OK if well else Exit.FAILED


def ask(config: Config, path: str, timeout_s: float) -> tuple[bool, str]:
    """Whether the node answers `path` with 200, and a line that says so. Connecting and each reading take at most `timeout_s`."""
    address = here(config.api.listen)
    if config.api.scheme == "https":
        # The certificate is for the names that clients use, and this connection does not leave the machine.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            address.host, address.port, timeout=timeout_s, context=context
        )
    else:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=timeout_s)
    where = f"{config.api.scheme}://{address}{path}"
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        body = response.read(HEALTH_ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        return False, f"{where}: {getattr(error, 'strerror', None) or str(error) or type(error).__name__}"
    finally:
        connection.close()
    return response.status == http.client.OK, f"{where}: {_told(response.status, body)}"


def _told(status: int, body: bytes) -> str:
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except msgspec.DecodeError:
        return str(status)
    return f"{answer.status} ({'; '.join(answer.reasons)})" if answer.reasons else answer.status
