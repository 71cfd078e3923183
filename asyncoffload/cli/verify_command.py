"""The ``verify`` command: from its options to its exit status."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from asyncoffload.cli.results import (
    ALL_WELL,
    INTERRUPTED,
    NO_LAYOUTS,
    SOMETHING_WRONG,
    ended,
    facts,
    progress,
    show,
    size_text,
)
from asyncoffload.cli.verifying import BadBlock, CheckedLayout, Verification, open_layout, tell_neighbours
from asyncoffload.keys import OffloadKey, block_hash_of
from asyncoffload.tiers.fs.checking import State
from asyncoffload.tiers.fs.sizing import auto_io_threads
from asyncoffload.tiers.fs.survey import layout_directories

_SHOWN = 20
_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyCommand:
    """The options of one invocation; ``asyncoffload verify --help`` explains each."""

    root: Path
    quarantine: bool
    rate: int | None
    threads: int | str
    json: Path | None

    def run(self) -> int:
        """Look at every block, print the table, write the file; the result is the exit status of the process."""
        return ended(self._run)

    def _run(self) -> int:
        layouts = [open_layout(directory) for directory in layout_directories(str(self.root))]
        verification = Verification(
            layouts,
            n_threads=auto_io_threads(1 << 20) if self.threads == "auto" else int(self.threads),
            bytes_per_second=self.rate,
            set_aside=self.quarantine,
        )
        began, interrupted = time.perf_counter(), False
        with progress(verification.steps, "verifying") as advance:
            try:
                verification.run(lambda: advance(f"{size_text(verification.nbytes)}, {verification.bad:,} bad"))
            except KeyboardInterrupt:
                interrupted = True
        seconds = time.perf_counter() - began
        tell_neighbours(str(self.root), layouts)
        figures = {
            "root": str(self.root),
            "seconds": seconds,
            "interrupted": interrupted,
            "blocks": sum(checked.counts.total() for checked in layouts),
            "bytes": verification.nbytes,
            "layouts": [_layout_figures(checked) for checked in layouts],
            "bad": [figures for checked in layouts for figures in _bad_figures(checked)],
        }
        show(figures, lambda: self._table(layouts, seconds, interrupted), self.json)
        if interrupted:
            return INTERRUPTED
        return ALL_WELL if all(checked.is_well for checked in layouts) else SOMETHING_WRONG

    def _table(self, layouts: Sequence[CheckedLayout], seconds: float, interrupted: bool) -> RenderableType:
        table = facts()
        nbytes = sum(checked.nbytes for checked in layouts)
        speed = f"{nbytes / max(seconds, 1e-9) / 1e9:.2f} GB/s"
        so_far = ", interrupted: this is not all of it" if interrupted else ""
        table.add_row("root", escape(str(self.root)))
        table.add_row("read", f"{size_text(nbytes)} in {seconds:.1f} s, {speed}{so_far}")
        if not layouts:
            table.add_row("layouts", NO_LAYOUTS)
        for checked in layouts:
            table.add_section()
            table.add_row("layout", escape(_title(checked)))
            table.add_row("blocks", _counts_text(checked))
            if checked.trouble:
                table.add_row("config.json", f"[red]{escape(checked.trouble)}[/red]")
        bad = [block for checked in layouts for block in checked.bad]
        if not bad:
            return table
        return Group(table, _tables_of_bad(layouts, quarantine=self.quarantine))


def _title(checked: CheckedLayout) -> str:
    model = f"{checked.layout.model}, " if checked.layout else ""
    return f"{checked.directory.name}  ({model}rank {checked.directory.rank})"


def _counts_text(checked: CheckedLayout) -> str:
    text = f"{checked.counts[State.GOOD]:,} good"
    for state, colour in ((State.BAD, "red"), (State.UNREADABLE, "red"), (State.GONE, "dim")):
        if checked.counts[state]:
            text += f", [{colour}]{checked.counts[state]:,} {state.value}[/{colour}]"
    return text


def _tables_of_bad(layouts: Sequence[CheckedLayout], *, quarantine: bool) -> RenderableType:
    parts: list[RenderableType] = []
    left = _SHOWN
    for checked in layouts:
        shown = checked.bad[:left]
        left -= len(shown)
        if shown:
            parts += [f"bad in {checked.directory.name}", _table_of_bad(shown)]
    bad = [block for checked in layouts for block in checked.bad]
    if len(bad) > _SHOWN:
        parts.append(f"… and {len(bad) - _SHOWN:,} more: --json FILE lists all of them.")
    if not quarantine:
        parts.append("Tiers find this at the next load, and miss; --quarantine sets bad blocks aside now.")
    elif not all(block.verdict.set_aside for block in bad):
        parts.append(
            "Those that are not in quarantine could not be set aside: see that the disk can be written to; where no "
            "config.json tells how long a block should be, remove the file."
        )
    return Group(*parts)


def _table_of_bad(blocks: Sequence[BadBlock]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("bad block", no_wrap=True)
    table.add_column("what is wrong", overflow="fold")
    table.add_column("quarantined")
    for block in blocks:
        trouble = block.verdict.trouble.removeprefix(f"{block.path}: ")
        table.add_row(_name(block.key), escape(trouble), "yes" if block.verdict.set_aside else "no")
    return table


def _name(key: OffloadKey) -> str:
    """As many digits as ``inspect`` needs to find it."""
    return block_hash_of(key).hex()[:_DIGITS]


def _layout_figures(checked: CheckedLayout) -> dict[str, object]:
    return {
        "directory": checked.directory.name,
        "fingerprint": checked.directory.fingerprint.hex(),
        "rank": checked.directory.rank,
        "model": checked.layout.model if checked.layout else None,
        "trouble": checked.trouble,
        "blocks": checked.counts.total(),
        **{state.value: checked.counts[state] for state in State},
        "bytes": checked.nbytes,
    }


def _bad_figures(checked: CheckedLayout) -> list[dict[str, object]]:
    return [
        {
            "path": block.path,
            "key": block.key.hex(),
            "state": block.verdict.state.value,
            "trouble": block.verdict.trouble,
            "quarantined": block.verdict.set_aside,
        }
        for block in checked.bad
    ]
