"""Progress bars with time left, and with speed where bytes move: on standard error, and only where somebody looks at it.

Not here: what moves.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click


class Meter:
    """One bar for one command. `quiet`: none at all. `unit`: what is counted, bytes unless given."""

    def __init__(self, quiet: bool, unit: str = "") -> None:
        self._unit = unit
        self._shown = not quiet and sys.stderr.isatty()
        self._bar: _Bar | None = None

    @contextmanager
    def __call__(self, what: str) -> Iterator[Meter]:
        if not self._shown:
            yield self
            return
        self._bar = _Bar(what, self._unit)
        with self._bar.progress:
            try:
                yield self
            finally:
                self._bar = None

    def expect(self, size: int | None) -> None:
        """So many more are to come; None: nobody knows."""
        if self._bar is not None and size is not None:
            self._bar.expect(size)

    def moved(self, size: int) -> None:
        """A `Progress` of the client."""
        if self._bar is not None:
            self._bar.moved(size)

    def say(self, line: str) -> None:
        """A line on standard error, above the bar."""
        if self._bar is not None:
            self._bar.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(line, err=True)


class _Bar:
    def __init__(self, what: str, unit: str) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        bytes_moved = (DownloadColumn(binary_units=True), TransferSpeedColumn())
        self.progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            *((MofNCompleteColumn(), TextColumn(unit)) if unit else bytes_moved),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._total = 0
        self._task = self.progress.add_task(escape(what), total=None)

    def expect(self, size: int) -> None:
        self._total += size
        self.progress.update(self._task, total=self._total)

    def moved(self, size: int) -> None:
        self.progress.advance(self._task, size)
