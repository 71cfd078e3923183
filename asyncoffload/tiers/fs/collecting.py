"""Making room below a root by hand: rubbish first, then blocks that nobody has used for long, down to a size.

A plan is made by looking, and changes nothing; carrying it out enters every removal into the account of the root, with
the brackets of :class:`~asyncoffload.tiers.fs.usage.Usage`, so processes that use the root keep an exact count. A block
that is used between the plan and its turn is passed over, and one that is being read stays with its reader.

Everything here blocks.
"""

from __future__ import annotations

import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from asyncoffload.tiers.fs.counting import Candidate
from asyncoffload.tiers.fs.departures import Departures
from asyncoffload.tiers.fs.eviction import Evictor
from asyncoffload.tiers.fs.owner import OWNERS, Leftovers
from asyncoffload.tiers.fs.summary import Sum
from asyncoffload.tiers.fs.survey import (
    FoundFile,
    Kind,
    LayoutDirectory,
    fan_out_of,
    files_beside,
    files_in,
    layout_directories,
    living_owners,
)
from asyncoffload.tiers.fs.usage import Usage
from asyncoffload.types import Fate

QUIET_SECONDS = 60.0
"""How long nobody must have touched the directory of a layout before it is removed: a process that just starts makes
the directory a moment before it shows that it lives."""

_ALL = 1 << 62


@dataclass(slots=True)
class Removal:
    """Files by the reason for which they go, or went."""

    leftovers: Sum = field(default_factory=Sum)
    quarantined: Sum = field(default_factory=Sum)
    old: Sum = field(default_factory=Sum)
    over_quota: Sum = field(default_factory=Sum)

    @property
    def by_reason(self) -> dict[str, Sum]:
        """The same, by names for figures and tables."""
        return {
            "leftovers": self.leftovers,
            "quarantined": self.quarantined,
            "older": self.old,
            "over_quota": self.over_quota,
        }

    @property
    def counted_bytes(self) -> int:
        """Bytes of the files among them that count against a quota: all but the leftovers."""
        return self.quarantined.nbytes + self.old.nbytes + self.over_quota.nbytes


@dataclass(slots=True)
class LayoutPlan:
    """What is to become of one directory.

    Attributes:
        directory: the directory.
        in_use: whether a living process uses it.
        nbytes: bytes of its files that count against a quota.
        removal: what goes.
        until_ns: blocks that were last used then or before go; nanoseconds since the epoch.
        last_files: how many of those that were last used just then go, where room is wanted.
        goes: whether the directory itself is removed, since nothing would be left in it.
    """

    directory: LayoutDirectory
    in_use: bool
    nbytes: int = 0
    removal: Removal = field(default_factory=Removal)
    until_ns: int = -1
    last_files: int = 0
    goes: bool = False


class Collection:
    """Makes a plan for a root, and carries it out.

    Args:
        root: the root.
        now: seconds since the epoch.
        quota: bytes that its files may take together afterwards; None for no such bound.
        older_than: seconds since the last use after which a block goes; None for no such bound.

    Attributes:
        layouts: the plan, once it was made.
        removed: what :meth:`carry_out` has removed so far.
    """

    def __init__(self, root: str, *, now: float, quota: int | None = None, older_than: float | None = None) -> None:
        self.layouts = [
            LayoutPlan(directory, in_use=bool(living_owners(directory))) for directory in layout_directories(root)
        ]
        self.removed = Removal()
        self._now = now
        self._departures = Departures(root, quota)
        self._quota = quota
        self._old_ns = -1 if older_than is None else int((now - older_than) * 1e9)
        self._blocks: dict[str, _Blocks] = {}
        self._others: dict[str, int] = {}

    @property
    def steps(self) -> int:
        """How often :meth:`plan` reports progress, and how often :meth:`carry_out` does."""
        return sum(len(fan_out_of(layout.directory)) for layout in self.layouts)

    @property
    def nbytes(self) -> int:
        """Bytes of all files that count against a quota, as the plan found them."""
        return sum(layout.nbytes for layout in self.layouts)

    def plan(self, progress: Callable[[], None] = lambda: None) -> None:
        """Look at everything and decide what goes.

        Raises:
            OSError: a directory cannot be read.
        """
        for layout in self.layouts:
            self._look(layout, progress)
        lacking = 0
        if self._quota is not None:
            lacking = self.nbytes - sum(layout.removal.counted_bytes for layout in self.layouts) - self._quota
        for in_use in (False, True):  # what no process uses now goes first
            layouts = [layout for layout in self.layouts if layout.in_use == in_use]
            lacking -= self._choose(layouts, lacking)
        for layout in self.layouts:
            layout.goes = not layout.in_use and self._will_be_empty(layout) and self._is_quiet(layout.directory)

    def carry_out(self, usage: Usage, progress: Callable[[], None] = lambda: None) -> Removal:
        """Remove what the plan says; returns what was removed.

        Args:
            usage: the account of the root.
            progress: called after each directory of the fan-out; what it raises ends this between two removals.

        Raises:
            OSError: the operating system refused.
        """
        done, evictor = self.removed, Evictor(usage)
        for layout in self.layouts:
            leftovers, left = Leftovers(layout.directory.path, keep=""), layout.last_files
            self._remove_temporary(files_beside(layout.directory), leftovers, done)
            for parent in fan_out_of(layout.directory):
                files = _in_order(layout.directory, parent)
                self._remove_temporary(files, leftovers, done)
                bad = [f for f in files if f.kind is Kind.QUARANTINED]
                self._evict(evictor, bad, done.quarantined, Fate.DISCARDED, "gc")
                blocks = [f for f in files if f.kind is Kind.BLOCK and f.modified_ns <= layout.until_ns]
                old = [f for f in blocks if f.modified_ns <= self._old_ns]
                self._evict(evictor, old, done.old, Fate.COLLECTED, "older_than")
                last = [f for f in blocks if f.modified_ns == layout.until_ns > self._old_ns]
                rest = [f for f in blocks if self._old_ns < f.modified_ns < layout.until_ns] + last[:left]
                left = max(0, left - len(last))
                self._evict(evictor, rest, done.over_quota, Fate.COLLECTED, "quota")
                progress()
            leftovers.forget_dead_owners()
            if layout.goes:
                layout.goes = _remove_empty(layout.directory)
        return done

    def _look(self, layout: LayoutPlan, progress: Callable[[], None]) -> None:
        blocks = self._blocks[layout.directory.name] = _Blocks()
        others = self._enter(layout, blocks, files_beside(layout.directory), counts=False)
        for parent in fan_out_of(layout.directory):
            others += self._enter(layout, blocks, _in_order(layout.directory, parent), counts=True)
            progress()
        self._others[layout.directory.name] = others
        layout.until_ns = self._old_ns
        layout.removal.old = blocks.until(self._old_ns)

    def _enter(self, layout: LayoutPlan, blocks: _Blocks, files: Iterable[FoundFile], *, counts: bool) -> int:
        """Count some files; returns how many stay although they are no blocks."""
        others = 0
        for file in files:
            if file.kind is Kind.TEMPORARY:
                if file.owner in living_owners(layout.directory):
                    others += 1
                else:
                    layout.removal.leftovers.add(file)
                continue
            layout.nbytes += file.nbytes if counts else 0
            if file.kind is Kind.BLOCK:
                blocks.add(file)
            elif file.kind is Kind.QUARANTINED:
                layout.removal.quarantined.add(file)
            else:
                others += 1
        return others

    def _choose(self, layouts: Sequence[LayoutPlan], lacking: int) -> int:
        """Let the oldest blocks of some directories go, of so many bytes together; returns the bytes that go."""
        if lacking <= 0 or not layouts:
            return 0
        times = np.concatenate([self._blocks[layout.directory.name].times for layout in layouts])
        sizes = np.concatenate([self._blocks[layout.directory.name].sizes for layout in layouts])
        fresh = times > self._old_ns
        times, sizes = times[fresh], sizes[fresh]
        if not len(times):
            return 0
        order = np.argsort(times, kind="stable")
        together = np.cumsum(sizes[order])
        last = min(int(np.searchsorted(together, lacking)), len(order) - 1)
        until_ns, chosen = int(times[order[last]]), 0
        # Many blocks may have the same time, which is coarse: of those that have the last one, only as many go as must.
        at_last = order[: last + 1][times[order[: last + 1]] == until_ns]
        begin = 0
        for layout in layouts:
            blocks = self._blocks[layout.directory.name]
            end = begin + int(np.count_nonzero(blocks.times > self._old_ns))
            layout.until_ns = until_ns
            layout.last_files = int(np.count_nonzero((at_last >= begin) & (at_last < end)))
            layout.removal.over_quota = blocks.until(until_ns, after=self._old_ns, last_files=layout.last_files)
            chosen += layout.removal.over_quota.nbytes
            begin = end
        return chosen

    def _will_be_empty(self, layout: LayoutPlan) -> bool:
        name = layout.directory.name
        gone = layout.removal.old.files + layout.removal.over_quota.files
        return not self._others[name] and gone == len(self._blocks[name])

    def _is_quiet(self, directory: LayoutDirectory) -> bool:
        touched = 0.0
        for path in (directory.path, os.path.join(directory.path, OWNERS)):
            with suppress(FileNotFoundError):
                touched = max(touched, os.stat(path).st_mtime)
        return self._now - touched >= QUIET_SECONDS

    def _remove_temporary(self, files: Iterable[FoundFile], leftovers: Leftovers, done: Removal) -> None:
        for file in files:
            if file.owner is not None:
                before = leftovers.removed
                leftovers.remove_if_dead(file.path, file.owner)
                if leftovers.removed > before:
                    done.leftovers.add(file)

    def _evict(self, evictor: Evictor, files: Sequence[FoundFile], removed: Sum, what: Fate, why: str) -> None:
        """Remove files of one directory, unless they were used since they were looked at."""
        by_path = {file.path: file for file in files}
        evictor.gather(
            [
                Candidate(0 if file.kind is Kind.QUARANTINED else file.modified_ns, file.path, file.nbytes)
                for file in files
            ]
        )
        evictor.found_all()
        evictor.evict(_ALL, max_files=len(files))
        for path in evictor.take_removed():
            removed.add(by_path[path])
            self._departures.note(path, by_path[path].nbytes, what, why)
        self._departures.flush()


class _Blocks:
    """Times and lengths of blocks, in little memory: there may be millions."""

    def __init__(self) -> None:
        self._times, self._sizes, self._disk = array("q"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self._times)

    @property
    def times(self) -> npt.NDArray[np.int64]:
        return np.array(self._times, np.int64)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        return np.array(self._sizes, np.int64)

    def add(self, file: FoundFile) -> None:
        self._times.append(file.modified_ns)
        self._sizes.append(file.nbytes)
        self._disk.append(file.disk_bytes)

    def until(self, last_ns: int, after: int = -1, last_files: int | None = None) -> Sum:
        """Those used at ``last_ns`` (of these, so many) or before, and later than ``after``."""
        times = self.times
        which = (times <= last_ns) & (times > after)
        if last_files is not None:
            which[np.flatnonzero(which & (times == last_ns))[last_files:]] = False
        disk = np.array(self._disk, np.int64)
        return Sum(int(np.count_nonzero(which)), int(self.sizes[which].sum()), int(disk[which].sum()))


def _in_order(directory: LayoutDirectory, parent: str) -> list[FoundFile]:
    """The files in one directory of the fan-out, in the same order at each look."""
    return sorted(files_in(directory, parent), key=lambda file: file.path)


def _remove_empty(directory: LayoutDirectory) -> bool:
    """Remove a directory in which nothing is left but its own furniture; False when somebody came meanwhile."""
    try:
        for parent in fan_out_of(directory):
            os.rmdir(os.path.join(directory.path, parent))
    except OSError:
        return False
    if living_owners(directory):
        return False
    shutil.rmtree(directory.path, ignore_errors=True)
    return True
