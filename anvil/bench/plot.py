"""Reports as pictures: latencies by percentile, and throughput over time; of one run, or of two in the same axes.

Owns: the drawing. matplotlib is not among Anvil's requirements: `pip install anvil-store[plots]` brings it. Not here: the figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from anvil.base.errors import InvalidSetting
from anvil.bench.histogram import decode
from anvil.bench.report import Figures, Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS: Final = (".png", ".svg")
_TICKS: Final = (0.0, 90.0, 99.0, 99.9, 99.99, 99.999)


def check(path: str) -> None:
    """Whether `draw` could: raises InvalidSetting, so that nobody learns it after a long run."""
    if Path(path).suffix.lower() not in FORMATS:
        raise InvalidSetting(f"{path}: a plot is a .png or an .svg")
    if not Path(path).absolute().parent.is_dir():
        raise InvalidSetting(f"{path}: there is no such folder")
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError:
        raise InvalidSetting("plots need matplotlib: pip install 'anvil-store[plots]'") from None


def draw(reports: list[tuple[str, Report]], path: str) -> None:
    """Each report with its name. Raises InvalidSetting."""
    check(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    latency, rate = figure.subplots(2, 1)
    for at, (name, report) in enumerate(reports):
        style = ("-", "--")[at % 2]
        for color, (operation, one) in enumerate(report.operations.items()):
            label = operation if len(reports) == 1 else f"{operation}, {name}"
            _latencies(latency, one, label, f"C{color}", style)
            whole = one.whole
            rate.plot(
                [bucket.second for bucket in whole], [bucket.requests for bucket in whole], style, color=f"C{color}", label=label
            )
    _label(latency, rate, reports)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be written: {error.strerror}") from None


def _latencies(axes: Axes, figures: Figures, label: str, color: str, style: str) -> None:
    """Percentiles on an axis on which every further nine takes the same room."""
    histogram = decode(figures.histogram)
    if not histogram.total:
        return
    most = 1 - 1 / max(2, histogram.total)
    shares = [1 - 10 ** (-step / 20) for step in range(101)]
    shares = [share for share in shares if share <= most] + [most]
    axes.plot(
        [1 / (1 - share) for share in shares],
        [histogram.percentile(100 * share) / 1e6 for share in shares],
        style,
        color=color,
        label=label,
    )


def _label(latency: Axes, rate: Axes, reports: list[tuple[str, Report]]) -> None:
    first = reports[0][1]
    latency.set_title(f"{first.plan.operation}, {first.plan.size}, {first.plan.concurrency} connections")
    latency.set_xscale("log")
    latency.set_yscale("log")
    latency.set_xticks([1 / (1 - percent / 100) for percent in _TICKS], [f"{percent:g}" for percent in _TICKS])
    latency.minorticks_off()
    latency.set_xlabel("percentile")
    latency.set_ylabel("latency, ms")
    rate.set_xlabel("second")
    rate.set_ylabel("requests per second")
    rate.set_ylim(bottom=0)
    for axes in (latency, rate):
        axes.grid(True, alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend()
