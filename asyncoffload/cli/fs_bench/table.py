"""The figures of ``bench fs`` as a table for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from asyncoffload.cli.fs_bench.figures import DIRECTIONS, Flow, FSReport, SizeFigures
from asyncoffload.cli.results import facts, size_text


def table_of(report: FSReport) -> RenderableType:
    """All figures of a report: a line for each block size and direction."""
    head = facts()
    head.add_row("root", escape(report.root))
    for name, text in report.machine.items():
        head.add_row(name, escape(text))
    wrong = f"[red]{report.wrong_blocks:,} blocks wrong[/red]" if report.wrong_blocks else "every byte right"
    head.add_row("verified", wrong + (", interrupted: this is not all of it" if report.interrupted else ""))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("block", "", "GB/s", "raw", "of raw (quartiles)", "ms p50", "p99", "raw p50"):
        table.add_column(name, no_wrap=True)
    for size in report.sizes:
        for direction in DIRECTIONS:
            table.add_row(size_text(size.block_bytes), direction, *_cells(size.flows[direction]))
        table.add_section()
    notes = [note for size in report.sizes for note in _notes(size)]
    return Group(head, table, *dict.fromkeys(notes)) if report.sizes else head


def _cells(flow: Flow) -> list[str]:
    low, middle, high = flow.ratio
    return [
        f"{flow.speed:.3f}",
        f"{flow.raw_speed:.3f}",
        f"{middle:.2f} ({low:.2f}..{high:.2f})",
        f"{flow.latency.p50:.2f}",
        f"{flow.latency.p99:.2f}",
        f"{flow.raw_latency.p50:.2f}",
    ]


def _notes(size: SizeFigures) -> list[str]:
    notes = [
        f"{size_text(size.block_bytes)}: {size.io_threads} + {size.io_threads} I/O threads; raw was best with "
        f"{size.flows['store'].raw_threads} that write, {size.flows['load'].raw_threads} that read"
    ]
    if not size.direct_io:
        notes.append("Without O_DIRECT: what was just written is read from the page cache, not from the disk.")
    return notes
