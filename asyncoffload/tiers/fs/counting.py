"""Counting what lies below a root, bucket by bucket, and collecting the leftovers of the dead on the way.

Everything here blocks and runs in an I/O thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from asyncoffload.core.layout import is_fan_out, may_be_block
from asyncoffload.tiers.fs.blockfile import SET_ASIDE, TEMPORARY
from asyncoffload.tiers.fs.owner import Leftovers, owner_of
from asyncoffload.tiers.fs.survey import fan_out_of, files_beside, layout_directories
from asyncoffload.tiers.fs.usage import Usage


class Candidate(NamedTuple):
    """A file that may be evicted. They compare by how long ago they were used.

    Attributes:
        modified: when the file was last used, nanoseconds since the epoch; 0 for one that nobody will use.
        path: where it is.
        nbytes: its length.
    """

    modified: int
    path: str
    nbytes: int


def has_files(root_dir: str) -> bool:
    """Whether there is, or ever was, a block below a root, as far as can be seen."""
    try:
        return any(fan_out_of(directory) for directory in layout_directories(root_dir))
    except PermissionError:
        return True


class Census:
    """Looks at each bucket of a root once.

    Files of living processes that are still being written are left out: they are within what was reserved. Those of
    the dead are removed. What cannot be listed is passed over, and its bucket stays in doubt.

    Args:
        root_dir: the root.
        usage: its account; a bucket that nobody changes while it is looked at is entered as counted.

    Attributes:
        files: how many were looked at.
        troubles: why directories could not be listed.
    """

    def __init__(self, root_dir: str, usage: Usage) -> None:
        self.files = 0
        self.troubles: list[OSError] = []
        self._root_dir = root_dir
        self._usage = usage
        self._leftovers: dict[str, Leftovers] = {}

    @property
    def leftovers_removed(self) -> int:
        """Temporary files of the dead that were removed."""
        return sum(leftovers.removed for leftovers in self._leftovers.values())

    def count(self, bucket: int) -> tuple[list[Candidate], bool]:
        """The files of a bucket that may go, and whether the count of all of them was entered.

        Raises:
            UsageBusyError: the account was held by somebody for long.
            OSError: the root cannot be listed.
        """
        before, troubles = self._usage.moment(bucket), len(self.troubles)
        found: list[Candidate] = []
        together = 0
        for place, leftovers in self._places(bucket):
            with self._passing_over():
                for nbytes, candidate in self._files(place, leftovers):
                    together += nbytes
                    if candidate is not None:
                        found.append(candidate)
        is_whole = len(self.troubles) == troubles
        # What is known of what cannot be seen now is better than nothing, and what can be seen better than a guess.
        if before is None or (not is_whole and self._usage.is_known):
            return found, False
        entered = self._usage.counted(bucket, before, together)
        if not is_whole:
            self._usage.doubt(bucket)
        return found, entered and is_whole

    def finish(self) -> None:
        """After the last bucket: collect what lies beside the blocks, and forget the dead."""
        for layout in layout_directories(self._root_dir):
            leftovers = self._leftovers_in(layout.path)
            with self._passing_over():
                for beside in files_beside(layout):
                    if beside.owner is not None:
                        leftovers.remove_if_dead(beside.path, beside.owner)
                leftovers.forget_dead_owners()

    def _places(self, bucket: int) -> Iterator[tuple[str, Leftovers]]:
        """The directories of a bucket. They are looked for anew, since whatever appears counts at once."""
        digits = f"{bucket:02x}"
        for layout in layout_directories(self._root_dir):
            names: list[str] = []
            with suppress(FileNotFoundError), self._passing_over():
                names = os.listdir(layout.path)
            for name in names:
                if name.startswith(digits) and is_fan_out(name):
                    yield f"{layout.path}/{name}", self._leftovers_in(layout.path)

    def _files(self, place: str, leftovers: Leftovers) -> Iterator[tuple[int, Candidate | None]]:
        """The bytes of each file, and the candidate that it is, unless it is none of ours."""
        parent = os.path.basename(place)
        with suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as entries:
            for entry in entries:
                self.files += 1
                owner = owner_of(entry.name) if entry.name.endswith(TEMPORARY) else None
                if owner is not None:
                    with self._passing_over():
                        leftovers.remove_if_dead(entry.path, owner)
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if entry.is_file(follow_symlinks=False):
                    yield status.st_size, _candidate(parent, entry, status)

    @contextmanager
    def _passing_over(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            self.troubles.append(error)

    def _leftovers_in(self, directory: str) -> Leftovers:
        return self._leftovers.setdefault(directory, Leftovers(directory, keep=""))


def _candidate(parent: str, entry: os.DirEntry[str], status: os.stat_result) -> Candidate | None:
    name = entry.name.removesuffix(SET_ASIDE)
    if not may_be_block(parent, name):
        return None
    return Candidate(0 if len(name) < len(entry.name) else status.st_mtime_ns, entry.path, status.st_size)
