"""A report as a picture: where the blocks came from over time, and how long loads took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asyncoffload.cli.report import COMPUTED, Report, Served
from asyncoffload.cli.results import written

_SLICES = 60
_COLOURS = ("#2f6f9f", "#e08e45", "#6a9f58", "#9f5f8f", "#c9b458")
_COMPUTED_COLOUR = "#d0d0d0"


def save_plot(path: Path, report: Report, served: Sequence[Served]) -> None:
    """Write the picture of a run as PNG.

    Raises:
        InvalidArgument: the file cannot be written.
    """
    figure = Figure(figsize=(9, 7), layout="constrained")
    over_time, latency = figure.subplots(2, 1)
    _hits_over_time(over_time, report, served)
    _load_latency(latency, served)
    figure.suptitle(f"{report.served:,} requests, {report.blocks:,} blocks in {report.seconds:.1f} s")
    with written(path, "plot"):
        figure.savefig(path, dpi=120, format="png")


def _hits_over_time(axes: Axes, report: Report, served: Sequence[Served]) -> None:
    edges = np.linspace(0, max((request.finished for request in served), default=1.0), _SLICES + 1)
    finished = [request.finished for request in served]
    tiers = [tier for tier in report.hits if tier != COMPUTED]
    counts = {
        tier: np.histogram(finished, edges, weights=[request.hits.get(tier, 0) for request in served])[0]
        for tier in tiers
    }
    counts[COMPUTED] = np.histogram(finished, edges, weights=[r.blocks - r.loaded for r in served])[0]
    whole = np.maximum(sum(counts.values()), 1)
    colours = dict(zip(tiers, _COLOURS, strict=False)) | {COMPUTED: _COMPUTED_COLOUR}
    shares = [100 * count / whole for count in counts.values()]
    axes.stackplot(
        edges,
        [np.append(share, share[-1]) for share in shares],
        labels=list(counts),
        colors=[colours.get(tier, _COMPUTED_COLOUR) for tier in counts],
        step="post",
    )
    axes.set(
        xlabel="seconds",
        ylabel="% of blocks",
        xlim=(0, edges[-1]),
        ylim=(0, 100),
        title="Where the blocks of a request came from",
    )
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _load_latency(axes: Axes, served: Sequence[Served]) -> None:
    milliseconds = np.sort([1e3 * request.load_seconds for request in served if request.loaded])
    if milliseconds.size:
        axes.plot(milliseconds, np.linspace(0, 100, milliseconds.size), color=_COLOURS[0])
        axes.set_xscale("log")
    axes.set(xlabel="milliseconds", ylabel="% of loads that took at most so long", title="Load latency")
    axes.grid(visible=True, alpha=0.3)
