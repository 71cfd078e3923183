"""The ``inspect`` command for a root: what lies in it, and who uses it."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape

from asyncoffload.cli.own_directory import remove_dead
from asyncoffload.cli.results import ALL_WELL, INTERRUPTED, NO_LAYOUTS, ended, facts, progress, show, size_text
from asyncoffload.core.layout import describe
from asyncoffload.core.verdict import span
from asyncoffload.errors import ConfigError
from asyncoffload.tiers.fs.departures import departures_since
from asyncoffload.tiers.fs.stored_layout import read_stored_layout
from asyncoffload.tiers.fs.summary import AGES, LayoutSummary, Sum
from asyncoffload.tiers.fs.survey import (
    LayoutDirectory,
    SeenOwner,
    fan_out_of,
    layout_directories,
    strange_entries,
)
from asyncoffload.tiers.fs.usage import ACCOUNT, Usage, UsageBusyError
from asyncoffload.types import Fate

_BAR = 24
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class InspectedLayout:
    """One directory: its files, and what its ``config.json`` says or why it says nothing."""

    summary: LayoutSummary
    config: Mapping[str, Any] | None
    trouble: str


@dataclass(frozen=True, slots=True)
class Account:
    """What the living processes have agreed on about the root, in bytes; None where there is no such bound, and where
    no process keeps house."""

    used: int
    reserved: int
    quota: int | None
    min_free: int | None
    users: int
    keeper: int | None
    exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectCommand:
    """The options of one invocation; ``asyncoffload inspect --help`` explains each."""

    root: Path
    json: Path | None

    def run(self) -> int:
        """Look at the root, print the table, write the file; the result is the exit status of the process."""
        return ended(self._run)

    def _run(self) -> int:
        now, root = time.time(), str(self.root)
        directories = layout_directories(root)
        with progress(sum(len(fan_out_of(directory)) for directory in directories), "looking") as advance:
            layouts, interrupted = list[InspectedLayout](), False
            try:
                for directory in directories:
                    layouts.append(_inspected(directory))
                    layouts[-1].summary.look(now, advance)
            except KeyboardInterrupt:
                interrupted = True
        strange = strange_entries(root)
        left = departures_since(root, now - _HOUR)
        account = _account(root) if any(layout.summary.in_use for layout in layouts) else None
        space = os.statvfs(root)
        figures = {
            "root": root,
            "interrupted": interrupted,
            "free_bytes": space.f_bavail * space.f_frsize,
            "disk_bytes": sum(layout.summary.disk_bytes for layout in layouts),
            "account": None if account is None else asdict(account),
            "layouts": [_figures(layout) for layout in layouts],
            "left_in_last_hour": [
                {"what": what.value, "why": why, "blocks": blocks} for (what, why), blocks in sorted(left.items())
            ],
            "strange": strange,
        }
        free_bytes = space.f_bavail * space.f_frsize
        show(figures, lambda: self._tables(layouts, strange, account, left, free_bytes, now, interrupted), self.json)
        return INTERRUPTED if interrupted else ALL_WELL

    def _tables(
        self,
        layouts: Sequence[InspectedLayout],
        strange: Sequence[str],
        account: Account | None,
        left: Mapping[tuple[Fate, str], int],
        free_bytes: int,
        now: float,
        interrupted: bool,
    ) -> RenderableType:
        table = facts()
        table.add_row("root", escape(str(self.root)))
        total = sum(layout.summary.disk_bytes for layout in layouts)
        table.add_row("space", f"{size_text(total)} in {len(layouts)} layouts, {size_text(free_bytes)} free")
        if account is not None:
            table.add_row("account", _account_text(account))
        if left:
            reasons = [f"{n:,} {what.value}" + (f" ({why})" if why else "") for (what, why), n in sorted(left.items())]
            table.add_row("left", f"in the last hour {', '.join(reasons)}")
        if strange:
            names = ", ".join(map(repr, strange[:5])) + (" …" if len(strange) > 5 else "")
            table.add_row("not ours", escape(f"{len(strange)} entries that no tier made: {names}"))
        for name in remove_dead(str(self.root), only_look=True):
            table.add_row("leftover", f"{name} of a command that was killed: removed by asyncoffload gc")
        if interrupted:
            table.add_row("", "interrupted: this is not all of it")
        elif not layouts:
            table.add_row("layouts", NO_LAYOUTS)
        return Group(table, *(_table(layout, now) for layout in layouts))


def _inspected(directory: LayoutDirectory) -> InspectedLayout:
    """What is known of a directory before one looks at its files."""
    config, trouble = None, ""
    try:
        with suppress(FileNotFoundError):
            config = describe(read_stored_layout(directory))
    except ConfigError as error:
        trouble = str(error)
    return InspectedLayout(LayoutSummary(directory), config, trouble)


def _account(root: str) -> Account | None:
    """The account that living processes keep; None where there is none, or it cannot be had now."""
    if not os.path.exists(os.path.join(root, ACCOUNT)):
        return None
    with suppress(OSError, UsageBusyError, ConfigError):
        usage = Usage(root)
        try:
            exact = usage.is_known and not usage.in_doubt
            others = usage.users - 1
            return Account(usage.used, usage.reserved, usage.quota, usage.min_free, others, usage.keeper or None, exact)
        finally:
            usage.leave()
    return None


def _account_text(account: Account) -> str:
    bounds = [
        f"{name} {'none' if value is None else size_text(value)}"
        for name, value in (("quota", account.quota), ("min_free", account.min_free))
    ]
    exact = "" if account.exact else ", being counted"
    keeper = "" if account.keeper is None else f"; process {account.keeper} keeps house"
    used = f"{size_text(account.used)} used, {size_text(account.reserved)} reserved{exact}"
    return f"{used}; {', '.join(bounds)}{keeper}"


def _table(layout: InspectedLayout, now: float) -> RenderableType:
    summary, table = layout.summary, facts()
    table.add_row("layout", f"{summary.directory.name}")
    if layout.config is not None:
        table.add_row("config", escape(_config_text(layout.config)))
    else:
        table.add_row("config", f"[red]{escape(layout.trouble)}[/red]" if layout.trouble else "no config.json")
    table.add_row("rank", str(summary.directory.rank))
    table.add_row("used by", _owners_text(summary.owners, now))
    table.add_row("blocks", _sum_text(summary.blocks))
    if len(summary.by_group) > 1:
        for group, blocks in sorted(summary.by_group.items()):
            table.add_row(f"  group {group}", _sum_text(blocks))
    most = max(1, *(blocks.files for blocks in summary.by_age))
    for name, blocks in zip(_age_names(), summary.by_age, strict=True):
        if blocks.files:
            bar = "█" * max(1, round(_BAR * blocks.files / most))
            table.add_row(f"  {name}", f"{bar:<{_BAR}} {_sum_text(blocks)}")
    for name, files in (
        ("being written", summary.being_written),
        ("leftovers", summary.leftovers),
        ("quarantined", summary.quarantined),
        ("strange", summary.strange),
    ):
        if files.files:
            table.add_row(name, _sum_text(files))
    return table


def _config_text(config: Mapping[str, Any]) -> str:
    """What the configuration says, in clear; layers of the same size are told as one."""
    told = {key: repr(value) if isinstance(value, str) else str(value) for key, value in config.items()}
    groups = "; ".join(_pages_text(group["page_bytes"]) for group in config["groups"])
    told["groups"] = f"{groups} (layers x bytes of a page)"
    told["parallel"] = " x ".join(f"{name} {size}" for name, size in config["parallel"]) or "none"
    return ", ".join(f"{key} {text}" for key, text in told.items())


def _pages_text(page_bytes: Sequence[int]) -> str:
    runs = ((nbytes, len(list(same))) for nbytes, same in itertools.groupby(page_bytes))
    return " + ".join(f"{count} x {nbytes:,}" for nbytes, count in runs)


def _age_names() -> list[str]:
    return [*(f"used in {span(bound)}" for bound in AGES), "older"]


def _owners_text(owners: Sequence[SeenOwner], now: float) -> str:
    alive = [f"process {owner.pid} for {span(now - owner.since)}" for owner in owners if owner.alive]
    dead = sum(not owner.alive for owner in owners)
    text = ", ".join(alive) or "nobody"
    return f"{text}; {dead} died without leaving" if dead else text


def _sum_text(files: Sum) -> str:
    return f"{files.files:,} files, {size_text(files.nbytes)}, {size_text(files.disk_bytes)} on disk"


def _figures(layout: InspectedLayout) -> dict[str, object]:
    summary = layout.summary
    return {
        "directory": summary.directory.name,
        "fingerprint": summary.directory.fingerprint.hex(),
        "rank": summary.directory.rank,
        "config": layout.config,
        "trouble": layout.trouble,
        "in_use": summary.in_use,
        "owners": [asdict(owner) for owner in summary.owners],
        "blocks": _sum_figures(summary.blocks),
        "groups": {str(group): _sum_figures(blocks) for group, blocks in sorted(summary.by_group.items())},
        "ages": [
            {"up_to_seconds": bound, **_sum_figures(blocks)}
            for bound, blocks in zip([*AGES, None], summary.by_age, strict=True)
        ],
        "being_written": _sum_figures(summary.being_written),
        "leftovers": _sum_figures(summary.leftovers),
        "quarantined": _sum_figures(summary.quarantined),
        "strange": _sum_figures(summary.strange),
    }


def _sum_figures(files: Sum) -> dict[str, int]:
    return {"files": files.files, "bytes": files.nbytes, "disk_bytes": files.disk_bytes}
