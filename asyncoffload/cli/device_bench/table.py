"""A report as a table for a terminal, and as one for a page of documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich import box
from rich.markup import escape
from rich.table import Table

from asyncoffload.cli.device_bench.figures import RATIO, DeviceReport, Figure, Section

_UNITS = {"us": "µs"}
_HEADINGS = ("measured", "figure", "quartiles", "aim", "met", "notes")


def table_of(report: DeviceReport) -> Table:
    """All figures with their aims, section by section."""
    machine = "  ".join(f"{name}: {value}" for name, value in report.machine.items())
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=escape(machine), title_justify="left", title_style="not italic"
    )
    for heading in _HEADINGS:
        table.add_column(heading, justify="right" if heading in ("figure", "quartiles", "aim") else "left")
    for section in report.sections:
        table.add_section()
        table.add_row(f"[bold]{escape(section.title)}[/bold]", *[""] * 4, _state(section))
        for figure in section.figures:
            table.add_row(*map(escape, _cells(figure)), style="red" if figure.met is False else None)
    return table


def markdown_of(report: DeviceReport) -> str:
    """The same as GitHub's markdown: the machine as a sentence, and one table."""
    lines = ["; ".join(f"{name} {value}" for name, value in report.machine.items()) + ".", ""]
    lines += [f"| {' | '.join(_HEADINGS)} |", "|---" * len(_HEADINGS) + "|"]
    for section in report.sections:
        lines.append(f"| **{section.title}** | | | | | {_plain_state(section)} |")
        lines += [f"| {' | '.join(cell.replace('|', '/') for cell in _cells(figure))} |" for figure in section.figures]
    return "\n".join(lines) + "\n"


def _state(section: Section) -> str:
    state = escape(_plain_state(section))
    return f"[red]{state}[/red]" if section.error else f"[dim]{state}[/dim]"


def _plain_state(section: Section) -> str:
    if section.skipped:
        return f"skipped: {section.skipped}"
    return f"failed: {section.error}" if section.error else f"{section.seconds:.1f} s"


def _cells(figure: Figure) -> tuple[str, ...]:
    unit = _UNITS.get(figure.unit, figure.unit)
    spread = "" if figure.quartiles is None else " to ".join(map(_number, figure.quartiles))
    met = {True: "yes", False: "no", None: ""}[figure.met]
    value = f"{_number(figure.value)}{'' if unit == RATIO else ' '}{unit}"
    return figure.name, value, spread, _aim(figure), met, ", ".join(_notes(figure.notes))


def _aim(figure: Figure) -> str:
    return "" if figure.aim is None else f"{'>=' if figure.aim.at_least else '<='} {figure.aim.bound:g}"


def _notes(notes: Mapping[str, float | str]) -> Iterator[str]:
    """Such as ``raw 12.3 GB/s``: the unit of a number is the end of its name."""
    for name, value in notes.items():
        if isinstance(value, str):
            yield f"{name.replace('_', ' ')}: {value}" if value else ""
            continue
        what, _, unit = name.rpartition("_")
        known = {"GBps": "GB/s", "us": "µs", "ms": "ms", "TFLOPS": "TFLOPS"}.get(unit)
        yield f"{what.replace('_', ' ')} {_number(value)} {known}" if known else f"{name.replace('_', ' ')} {value:.2g}"


def _number(value: float) -> str:
    """Three digits that count."""
    if value != value or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
