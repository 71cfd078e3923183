"""A report as a picture: the share of the raw speed by page size, and the engines side by side."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import NullFormatter, ScalarFormatter

from asyncoffload.cli.device_bench.figures import DeviceReport, Figure
from asyncoffload.cli.results import written

_COLOURS = {"store": "#2f6f9f", "load": "#e08e45"}
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def save_plot(path: Path, report: DeviceReport) -> None:
    """Write the picture of a report as PNG.

    Raises:
        InvalidArgument: the file cannot be written.
    """
    picture = Picture(figsize=(10, 8), layout="constrained")
    grid = picture.subplots(2, 2)
    by_key = {section.key: section.figures for section in report.sections}
    _shares(grid[0, 0], by_key.get("speed", ()))
    _aims(grid[0, 1], report)
    for axes, direction in ((grid[1, 0], "store"), (grid[1, 1], "load")):
        _engines(axes, by_key.get("engines", ()), direction)
    picture.suptitle(report.machine.get("device", ""))
    with written(path, "plot"):
        picture.savefig(path, dpi=120, format="png")


def _shares(axes: Axes, figures: Sequence[Figure]) -> None:
    for direction, colour in _COLOURS.items():
        points = sorted((_page_bytes(f.name), f) for f in figures if f.name.startswith(direction))
        if not points:
            continue
        sizes = [size for size, _ in points]
        axes.plot(sizes, [f.value for _, f in points], "o-", color=colour, label=direction)
        spreads = [f.quartiles or (f.value, f.value) for _, f in points]
        axes.fill_between(sizes, [low for low, _ in spreads], [high for _, high in spreads], color=colour, alpha=0.2)
        aimed = [(size, f.aim.bound) for size, f in points if f.aim]
        axes.plot([size for size, _ in aimed], [bound for _, bound in aimed], "_", color="black", markersize=14)
    _by_size(axes, "share of one raw copy", "Speed (bars: aims)")


def _aims(axes: Axes, report: DeviceReport) -> None:
    """How far each figure is beyond its aim; to the right of 1 it is met."""
    aimed = [(f, s.key) for s in report.sections for f in s.figures if f.aim and f.value > 0]
    shares = [f.value / f.aim.bound if f.aim.at_least else f.aim.bound / f.value for f, _ in aimed if f.aim]
    axes.barh(
        [f"{key}: {figure.name}" for figure, key in aimed],
        shares,
        color=["#6a9f58" if figure.met else "#b04a4a" for figure, _ in aimed],
    )
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="times the aim", title="Aims (1 and more: met)")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", labelsize=6)


def _engines(axes: Axes, figures: Sequence[Figure], direction: str) -> None:
    """The speed of each engine at the largest count of pages that was measured for a size."""
    lines: dict[str, dict[int, tuple[int, float]]] = defaultdict(dict)
    for figure in figures:
        if not figure.name.startswith(direction):
            continue
        size, count = _page_bytes(figure.name), int(figure.name.rpartition(" ")[2])
        for name, speed in figure.notes.items():
            if name.endswith("_GBps") and isinstance(speed, float):
                engine = name.removesuffix("_GBps")
                lines[engine][size] = max(lines[engine].get(size, (0, 0.0)), (count, speed))
    for engine, points in lines.items():
        axes.plot(sorted(points), [points[size][1] for size in sorted(points)], "o-", label=engine)
    _by_size(axes, "GB/s", f"Engines, {direction}, largest transfers")


def _by_size(axes: Axes, quantity: str, title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set(xlabel="bytes of a page", ylabel=quantity, title=title)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _page_bytes(name: str) -> int:
    found = re.search(r"(\d+) (B|KiB|MiB|GiB)", name)
    return int(found[1]) * _UNITS[found[2]] if found else 0
