"""Counting what lies below a root, bucket by bucket, and collecting the leftovers of the dead on the way.

Everything here blocks and runs in an I/O thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from asyncoffload.core.layout import is_fan_out
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
    """Whether there is, or ever was, a block below a root."""
    return any(fan_out_of(directory) for directory in layout_directories(root_dir))


class Census:
    """Looks at each bucket of a root once.

    Files of living processes that are still being written are left out: they are within what was reserved. Those of
    the dead are removed.

    Args:
        root_dir: the root.
        usage: its account; a bucket that nobody changes while it is looked at is entered as counted.
    """

    def __init__(self, root_dir: str, usage: Usage) -> None:
        self._root_dir = root_dir
        self._usage = usage
        self._leftovers: dict[str, Leftovers] = {}

    @property
    def leftovers_removed(self) -> int:
        """Temporary files of the dead that were removed."""
        return sum(leftovers.removed for leftovers in self._leftovers.values())

    def count(self, bucket: int) -> tuple[list[Candidate], bool]:
        """The files of a bucket, and whether the count of it was entered.

        Raises:
            UsageBusyError: the account was held by somebody for long.
            OSError: the operating system refused.
        """
        before = self._usage.moment(bucket)
        found = [candidate for place, leftovers in self._places(bucket) for candidate in _files(place, leftovers)]
        if before is None:
            return found, False
        return found, self._usage.counted(bucket, before, sum(candidate.nbytes for candidate in found))

    def finish(self) -> None:
        """After the last bucket: collect what lies beside the blocks, and forget the dead."""
        for layout in layout_directories(self._root_dir):
            leftovers = self._leftovers_in(layout.path)
            for beside in files_beside(layout):
                if beside.owner is not None:
                    leftovers.remove_if_dead(beside.path, beside.owner)
            leftovers.forget_dead_owners()

    def _places(self, bucket: int) -> Iterator[tuple[str, Leftovers]]:
        """The directories of a bucket. They are looked for anew, since whatever appears counts at once."""
        digits = f"{bucket:02x}"
        for layout in layout_directories(self._root_dir):
            with suppress(FileNotFoundError):
                for name in os.listdir(layout.path):
                    if name.startswith(digits) and is_fan_out(name):
                        yield f"{layout.path}/{name}", self._leftovers_in(layout.path)

    def _leftovers_in(self, directory: str) -> Leftovers:
        return self._leftovers.setdefault(directory, Leftovers(directory, keep=""))


def _files(place: str, leftovers: Leftovers) -> Iterator[Candidate]:
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as entries:
        for entry in entries:
            owner = owner_of(entry.name) if entry.name.endswith(TEMPORARY) else None
            if owner is not None:
                leftovers.remove_if_dead(entry.path, owner)
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if entry.is_file(follow_symlinks=False):
                modified = 0 if entry.name.endswith(SET_ASIDE) else status.st_mtime_ns
                yield Candidate(modified, entry.path, status.st_size)
