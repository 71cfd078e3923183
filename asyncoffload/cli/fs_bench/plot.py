"""The figures of ``bench fs`` as a picture: speed and latency by block size."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from asyncoffload.cli.fs_bench.figures import DIRECTIONS, FSReport
from asyncoffload.cli.results import size_text, written

_COLOURS = {"store": "#2f6f9f", "load": "#e08e45"}


def save_plot(path: Path, report: FSReport) -> None:
    """Write the picture of a report as PNG.

    Raises:
        InvalidArgument: the file cannot be written.
    """
    picture = Picture(figsize=(10, 4.5), layout="constrained")
    speed, latency = picture.subplots(1, 2)
    _speeds(speed, report)
    _latencies(latency, report)
    picture.suptitle(f"{report.root}: {report.machine.get('file system', '')}")
    with written(path, "plot"):
        picture.savefig(path, dpi=120, format="png")


def _speeds(axes: Axes, report: FSReport) -> None:
    sizes = [size.block_bytes for size in report.sizes]
    for way in DIRECTIONS:
        flows = [size.flows[way] for size in report.sizes]
        axes.plot(sizes, [flow.raw_speed for flow in flows], "--", color=_COLOURS[way], label=f"{way}, bare threads")
        axes.plot(sizes, [flow.speed for flow in flows], "o-", color=_COLOURS[way], label=way)
    axes.set(ylabel="GB/s", title="Speed, many jobs at once")
    axes.set_ylim(bottom=0)
    _by_size(axes, sizes)


def _latencies(axes: Axes, report: FSReport) -> None:
    sizes = [size.block_bytes for size in report.sizes]
    for way in DIRECTIONS:
        flows = [size.flows[way] for size in report.sizes]
        axes.plot(
            sizes, [flow.raw_latency.p50 for flow in flows], "--", color=_COLOURS[way], label=f"{way}, one thread"
        )
        axes.plot(sizes, [flow.latency.p50 for flow in flows], "o-", color=_COLOURS[way], label=f"{way}, p50")
        axes.plot(sizes, [flow.latency.p99 for flow in flows], "^:", color=_COLOURS[way], label=f"{way}, p99")
    axes.set(ylabel="milliseconds", title="Latency of one block, nothing else under way")
    if sizes:  # an empty axis cannot be logarithmic
        axes.set_yscale("log")
    _by_size(axes, sizes)


def _by_size(axes: Axes, sizes: list[int]) -> None:
    if sizes:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [size_text(size) for size in sizes])
        axes.legend()
    axes.set_xlabel("bytes of a block")
    axes.grid(visible=True, alpha=0.3)
