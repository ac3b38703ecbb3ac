"""The `anvil` command: finds the subcommand, runs it, and turns expected errors into one line and an exit code.

Invariant: only the module of the subcommand that was asked for is imported, so that `anvil version` and shell completion
stay quick. Not here: what any command does.
"""

from __future__ import annotations

import importlib
import sys

import click

from anvil.base.errors import AnvilError
from anvil.cli.exits import Exit, code_of

COMMANDS = {
    "server": ("anvil.cli.server", "Start a node in the foreground."),
    "config": ("anvil.cli.config", "Print the reference of all settings, or the values in effect."),
    "health": ("anvil.cli.health", "Ask the node on this machine whether it lives, or is ready."),
    "doctor": ("anvil.cli.doctor", "Explain what this machine offers and what is wrong with it."),
    "admin": ("anvil.cli.admin", "Tenants, apps, policies, buckets and usage."),
    "configure": ("anvil.cli.configure", "Ask for a server and a key pair, and save them as a profile."),
    "static-config": ("anvil.cli.static_config", "The same without questions, for scripts."),
    "auth": ("anvil.cli.auth", "Access tokens, and rights of other apps."),
    "bucket": ("anvil.cli.bucket", "Buckets of a server."),
    "object": ("anvil.cli.object", "Objects of a server: put, get, ls, rm, head, cp."),
    "bench": ("anvil.cli.bench", "Load an S3 endpoint, this or another one, and measure it."),
    "version": ("anvil.cli.version", "Print the version."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Anvil, a self-hosted S3 object store."""


def main() -> None:
    """Entry point of the `anvil` script."""
    try:
        code = command.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except AnvilError as error:
        click.echo(f"anvil: {error.message}", err=True)
        sys.exit(code_of(error))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nobody to tell
        sys.exit(Exit.FAILED)
    sys.exit(code if isinstance(code, int) else Exit.OK)


if __name__ == "__main__":
    main()
