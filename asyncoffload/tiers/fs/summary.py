"""What lies in the directory of a layout, added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from asyncoffload.keys import group_of
from asyncoffload.tiers.fs.survey import (
    FoundFile,
    Kind,
    LayoutDirectory,
    SeenOwner,
    fan_out_of,
    files_beside,
    files_in,
    owners_of,
)

AGES = (60, 600, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400)
"""Upper bounds of the ages that blocks are counted by, in seconds; what is older is counted as one more."""


@dataclass(slots=True)
class Sum:
    """Some files, and the bytes that they take: as long as they are, and on the device."""

    files: int = 0
    nbytes: int = 0
    disk_bytes: int = 0

    def add(self, file: FoundFile) -> None:
        """Count one more."""
        self.files += 1
        self.nbytes += file.nbytes
        self.disk_bytes += file.disk_bytes

    def include(self, other: Sum) -> None:
        """Count what another sum counts."""
        self.files += other.files
        self.nbytes += other.nbytes
        self.disk_bytes += other.disk_bytes


@dataclass(slots=True)
class LayoutSummary:
    """The files of one directory, by what they are.

    Attributes:
        directory: the directory.
        owners: who uses it, and who died without leaving it.
        blocks: the blocks.
        by_group: the blocks, by KV-cache group.
        by_age: the blocks, by the time since they were used: one sum for each of :data:`AGES` and one for the rest.
        quarantined: files that were not the block they should have been.
        being_written: temporary files of processes that live.
        leftovers: temporary files of processes that died.
        strange: files that no tier makes.
    """

    directory: LayoutDirectory
    owners: list[SeenOwner] = field(default_factory=list)
    blocks: Sum = field(default_factory=Sum)
    by_group: dict[int, Sum] = field(default_factory=dict)
    by_age: list[Sum] = field(default_factory=lambda: [Sum() for _ in range(len(AGES) + 1)])
    quarantined: Sum = field(default_factory=Sum)
    being_written: Sum = field(default_factory=Sum)
    leftovers: Sum = field(default_factory=Sum)
    strange: Sum = field(default_factory=Sum)

    @property
    def in_use(self) -> bool:
        """Whether a living process uses the directory."""
        return any(owner.alive for owner in self.owners)

    @property
    def disk_bytes(self) -> int:
        """Bytes that all files together take on the device."""
        kinds = (self.blocks, self.quarantined, self.being_written, self.leftovers, self.strange)
        return sum(kind.disk_bytes for kind in kinds)

    def look(self, now: float, progress: Callable[[], None] = lambda: None) -> None:
        """Count the files of the directory, of which none was counted yet; an interrupt leaves those that were.

        Args:
            now: seconds since the epoch.
            progress: called after each directory of the fan-out.

        Raises:
            OSError: the operating system refused.
        """
        # Owners first: a process that comes later has not written what is taken for a leftover here.
        self.owners = owners_of(self.directory)
        self.add(files_beside(self.directory), now)
        for parent in fan_out_of(self.directory):
            files = list(files_in(self.directory, parent))
            if any(file.owner is not None for file in files):
                self.owners = owners_of(self.directory)
            self.add(files, now)
            progress()

    def add(self, files: Iterable[FoundFile], now: float) -> None:
        """Count some files; ``now`` is in seconds since the epoch."""
        alive = {owner.name for owner in self.owners if owner.alive}
        for file in files:
            match file.kind:
                case Kind.BLOCK:
                    self._add_block(file, now)
                case Kind.QUARANTINED:
                    self.quarantined.add(file)
                case Kind.TEMPORARY:
                    (self.being_written if file.owner in alive else self.leftovers).add(file)
                case Kind.STRANGE:
                    self.strange.add(file)

    def _add_block(self, file: FoundFile, now: float) -> None:
        assert file.key is not None
        self.blocks.add(file)
        self.by_group.setdefault(group_of(file.key), Sum()).add(file)
        age = now - file.modified
        self.by_age[next((n for n, bound in enumerate(AGES) if age <= bound), len(AGES))].add(file)


def summarise(directory: LayoutDirectory, now: float) -> LayoutSummary:
    """Add up the files of a layout's directory. Blocks; costs a system call for each file.

    Args:
        directory: the directory.
        now: seconds since the epoch.

    Raises:
        OSError: the operating system refused.
    """
    summary = LayoutSummary(directory)
    summary.look(now)
    return summary
