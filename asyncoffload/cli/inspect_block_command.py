"""The ``inspect`` command for one block: where it is, what it says it is, and whether it would be served."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.markup import escape

from asyncoffload.cli.results import ALL_WELL, SOMETHING_WRONG, ended, facts, show, size_text
from asyncoffload.cli.verifying import CheckedLayout, open_layout
from asyncoffload.core.verdict import cause, span
from asyncoffload.keys import block_hash_of, group_of
from asyncoffload.tiers.fs.checking import BlockChecker, State, Verdict, header_of
from asyncoffload.tiers.fs.departures import Departure
from asyncoffload.tiers.fs.finding import PlaceOfBlock, departures_named, places_of
from asyncoffload.tiers.fs.format import Header
from asyncoffload.tiers.fs.survey import Kind, layout_directories, living_owners
from asyncoffload.types import Fate

_SHOWN = 10


@dataclass(frozen=True, slots=True)
class InspectedFile:
    """A file that is about the block."""

    place: PlaceOfBlock
    layout: CheckedLayout
    header: Header | None
    verdict: Verdict
    owner_alive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectBlockCommand:
    """The options of one invocation; ``asyncoffload inspect --help`` explains each."""

    root: Path
    key: str
    json: Path | None

    def run(self) -> int:
        """Find the block, print the table, write the file; the result is the exit status of the process."""
        return ended(self._run)

    def _run(self) -> int:
        now, directories = time.time(), layout_directories(str(self.root))
        layouts = {directory.path: open_layout(directory) for directory in directories}
        files = [_inspected(place, layouts[place.directory.path]) for place in places_of(directories, self.key)]
        left = departures_named(str(self.root), self.key)
        served = [f for f in files if f.place.file.kind is Kind.BLOCK and f.verdict.state is State.GOOD]
        figures = {
            "root": str(self.root),
            "key": self.key,
            "served": bool(served),
            "looked_in": [directory.name for directory in directories],
            "files": [_figures(file) for file in files],
            "left": [_departure_figures(departure) for departure in left],
        }
        show(figures, lambda: self._tables(files, left, [directory.name for directory in directories], now), self.json)
        return ALL_WELL if served else SOMETHING_WRONG

    def _tables(
        self, files: Sequence[InspectedFile], left: Sequence[Departure], names: Sequence[str], now: float
    ) -> RenderableType:
        history = [_history(left, now)] if left else []
        if not files:
            table = facts()
            table.add_row("block", escape(self.key))
            table.add_row("found", "nowhere: a load of it is a miss")
            if not left:
                table.add_row("left", "not that anybody knows: never stored, or longer ago than the journal reaches")
            table.add_row("looked in", escape("\n".join(names)) or "no layout: no tier has used this directory")
            return Group(table, *history)
        rest = [f"… and {len(files) - _SHOWN} more files: give more digits"] if len(files) > _SHOWN else []
        return Group(*(_table(file, now) for file in files[:_SHOWN]), *rest, *history)


def _inspected(place: PlaceOfBlock, layout: CheckedLayout) -> InspectedFile:
    header, file = None, place.file
    with suppress(OSError):
        header = header_of(file.path)
    verdict = BlockChecker(place.directory, layout.layout).check(file.path, place.key)
    alive = file.owner in living_owners(place.directory)
    return InspectedFile(place, layout, header, verdict, alive)


def _table(inspected: InspectedFile, now: float) -> RenderableType:
    table, file, key = facts(), inspected.place.file, inspected.place.key
    table.add_row("block", block_hash_of(key).hex())
    table.add_row("group", str(group_of(key)))
    layout = inspected.layout.layout
    model = f" ({layout.model})" if layout else ""
    table.add_row("layout", escape(f"{inspected.place.directory.name}{model}"))
    table.add_row("file", escape(file.path))
    table.add_row("is", _meaning(inspected))
    table.add_row("size", f"{size_text(file.nbytes)}, {size_text(file.disk_bytes)} on disk")
    table.add_row("last used", f"{span(now - file.modified)} ago")
    if inspected.header is not None:
        header = inspected.header
        text = f"version {header.version}, rank {header.rank}, fingerprint {header.fingerprint.hex()}, "
        text += f"key {header.key.hex()}, payload {header.payload_bytes:,} bytes"
        table.add_row("header", text)
    verdict = inspected.verdict
    good = verdict.state is State.GOOD
    trouble = verdict.trouble.removeprefix(f"{file.path}: ")
    table.add_row("verified", "[green]good[/green]" if good else f"[red]{verdict.state.value}: {escape(trouble)}[/red]")
    return table


def _history(left: Sequence[Departure], now: float) -> RenderableType:
    table = facts()
    for departure in left[-_SHOWN:]:
        when = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(departure.when))}, "
        when += f"{span(now - departure.when)} ago"
        key = f"{block_hash_of(departure.key).hex()}, group {group_of(departure.key)}"
        table.add_row("left", f"{when}: {_reason(departure)}")
        table.add_row("", escape(f"{key}, {size_text(departure.nbytes)}, {departure.directory}"))
    if len(left) > _SHOWN:
        table.add_row("", f"… and {len(left) - _SHOWN} times before: --json tells all of them")
    return table


def _reason(departure: Departure) -> str:
    because = f", for the sake of {cause(departure.why)}" if departure.why else ""
    match departure.what:
        case Fate.EVICTED:
            return f"evicted{because}"
        case Fate.CORRUPT:
            return "set aside, since it was not the block" + (f" ({departure.why})" if departure.why else "")
        case Fate.DISCARDED:
            return "removed from quarantine" + (" by gc" if departure.why == "gc" else because)
        case Fate.COLLECTED:
            return f"removed by gc ({departure.why})"
        case _:
            return departure.what.value + because


def _departure_figures(departure: Departure) -> dict[str, object]:
    return {
        "when": departure.when,
        "what": departure.what.value,
        "why": departure.why,
        "bytes": departure.nbytes,
        "directory": departure.directory,
        "block_hash": block_hash_of(departure.key).hex(),
        "group": group_of(departure.key),
    }


def _meaning(inspected: InspectedFile) -> str:
    match inspected.place.file.kind:
        case Kind.BLOCK:
            return "the block, under its final name"
        case Kind.STRANGE:
            return "no file, though it has the name of the block; no tier made it, and none can store the block"
        case Kind.QUARANTINED:
            return "set aside, since it was not the block; never served"
        case _ if inspected.owner_alive:
            return "being written now; not served yet"
        case _:
            return "a leftover of a process that died; never served, and removed by the next tier or by gc"


def _figures(inspected: InspectedFile) -> dict[str, object]:
    place, header = inspected.place, inspected.header
    return {
        "path": place.file.path,
        "kind": place.file.kind.value,
        "directory": place.directory.name,
        "model": inspected.layout.layout.model if inspected.layout.layout else None,
        "block_hash": block_hash_of(place.key).hex(),
        "group": group_of(place.key),
        "bytes": place.file.nbytes,
        "disk_bytes": place.file.disk_bytes,
        "modified": place.file.modified,
        "owner": place.file.owner,
        "owner_alive": inspected.owner_alive,
        "header": None
        if header is None
        else {
            "version": header.version,
            "rank": header.rank,
            "fingerprint": header.fingerprint.hex(),
            "key": header.key.hex(),
            "payload_bytes": header.payload_bytes,
        },
        "state": inspected.verdict.state.value,
        "trouble": inspected.verdict.trouble,
    }
