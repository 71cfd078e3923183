"""The ``gc`` command: from its options to its exit status."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape

from asyncoffload.cli.own_directory import remove_dead
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
from asyncoffload.cli.signals import interrupts_put_off
from asyncoffload.errors import TierUnavailable
from asyncoffload.tiers.fs.collecting import Collection, LayoutPlan, Removal
from asyncoffload.tiers.fs.counting import has_files
from asyncoffload.tiers.fs.summary import Sum
from asyncoffload.tiers.fs.survey import strange_entries
from asyncoffload.tiers.fs.usage import Usage, UsageBusyError

_DAY = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GCCommand:
    """The options of one invocation; ``asyncoffload gc --help`` explains each."""

    root: Path
    quota: int | None
    older_than: float | None
    dry_run: bool
    json: Path | None

    def run(self) -> int:
        """Collect, print the table, write the file; the result is the exit status of the process."""
        return ended(self._run)

    def _run(self) -> int:
        root = str(self.root)
        older_than = None if self.older_than is None else self.older_than * _DAY
        collection = Collection(root, now=time.time(), quota=self.quota, older_than=older_than)
        steps, interrupted = collection.steps, False
        dead: list[str] = []
        with progress(steps if self.dry_run else 2 * steps, "collecting") as advance:
            try:
                dead += remove_dead(root, only_look=self.dry_run)
                collection.plan(lambda: advance("looking"))
                if not self.dry_run:
                    self._carry_out(collection, lambda: advance("removing"))
            except KeyboardInterrupt:
                interrupted = True
        removed = _planned(collection.layouts) if self.dry_run else collection.removed
        after = collection.nbytes - removed.counted_bytes
        within = self.quota is None or after <= self.quota
        gone = [layout.directory.name for layout in collection.layouts if layout.goes and self._is_gone(layout)]
        figures = {
            "root": root,
            "dry_run": self.dry_run,
            "interrupted": interrupted,
            "bytes_before": collection.nbytes,
            "bytes_after": after,
            "quota": self.quota,
            "within_quota": within,
            "removed": _removal_figures(removed),
            "removed_layouts": gone,
            "removed_directories": dead,
            "layouts": [
                {
                    "directory": layout.directory.name,
                    "in_use": layout.in_use,
                    "bytes": layout.nbytes,
                    "planned": _removal_figures(layout.removal),
                }
                for layout in collection.layouts
            ],
            "strange": strange_entries(root),
        }
        show(figures, lambda: self._table(collection, removed, gone, dead, interrupted=interrupted), self.json)
        if interrupted:
            return INTERRUPTED
        return ALL_WELL if within else SOMETHING_WRONG

    def _is_gone(self, layout: LayoutPlan) -> bool:
        return self.dry_run or not os.path.exists(layout.directory.path)

    def _carry_out(self, collection: Collection, advance: Callable[[], None]) -> None:
        root = str(self.root)
        if not collection.layouts:
            return
        try:
            usage = Usage(root, is_empty=lambda: not has_files(root))
            try:
                _give_to_owner_of(collection.layouts[0].directory.path, usage.path)
                # If it is free; if not, the process that has it counts again whatever both remove at the same moment.
                usage.take_housekeeping()
                with interrupts_put_off() as interrupt:  # not between a removal and its entry into the account

                    def step() -> None:
                        advance()
                        interrupt()

                    collection.carry_out(usage, step)
            finally:
                usage.leave()
        except UsageBusyError as error:
            raise TierUnavailable(str(error)) from None

    def _table(
        self, collection: Collection, removed: Removal, gone: Sequence[str], dead: Sequence[str], *, interrupted: bool
    ) -> RenderableType:
        table, after = facts(), collection.nbytes - removed.counted_bytes
        would = "would be removed" if self.dry_run else "removed"
        table.add_row("root", escape(str(self.root)))
        if not collection.layouts:
            table.add_row("layouts", NO_LAYOUTS)
        table.add_row("before", f"{size_text(collection.nbytes)} in {len(collection.layouts)} layouts")
        for reason, files in removed.by_reason.items():
            table.add_row(reason.replace("_", " "), f"{_sum_text(files)} {would}" if files.files else "none")
        for name in gone:
            table.add_row("layout", f"{name} {would}: nothing is left in it, and nobody uses it")
        for name in dead:
            table.add_row("directory", f"{name} {would}: of a command that was killed")
        table.add_row("after", size_text(after))
        if interrupted:
            table.add_row("", "interrupted: this is not all of it")
        elif self.quota is not None and after > self.quota:
            text = f"[red]more than {size_text(self.quota)}[/red]: what is left was used or written meanwhile, or is "
            table.add_row("quota", text + "not the tiers' own; see asyncoffload inspect")
        if self.dry_run:
            table.add_row("", "nothing was changed: leave --dry-run out to do it")
        return table


def _give_to_owner_of(directory: str, path: str) -> None:
    """Where an administrator makes the account of a root, tiers under another user must be able to open it."""
    owner, made = os.stat(directory), os.stat(path)
    if os.geteuid() == 0 and made.st_uid != owner.st_uid:
        os.chown(path, owner.st_uid, owner.st_gid)


def _planned(layouts: Sequence[LayoutPlan]) -> Removal:
    total = Removal()
    for layout in layouts:
        for reason, files in layout.removal.by_reason.items():
            total.by_reason[reason].include(files)
    return total


def _sum_text(files: Sum) -> str:
    return f"{files.files:,} files, {size_text(files.nbytes)},"


def _removal_figures(removal: Removal) -> dict[str, dict[str, int]]:
    return {name: {"files": files.files, "bytes": files.nbytes} for name, files in removal.by_reason.items()}
