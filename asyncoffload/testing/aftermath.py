"""What a loss of power may leave of files that were written, named and synced."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from asyncoffload.tiers.fs.format import PAGE

SECTOR = 512

ALL_LOST = 0.1
"""How often nothing at all of what was written to a file since its last sync has come to disk."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes that were written to a file between two moments."""

    began: int
    ended: int
    offset: int
    content: bytes


@dataclass(slots=True, eq=False)
class File:
    """A file or a directory, whatever its names.

    Attributes:
        is_directory: which of both.
        before: what was in the file when it was first seen; that is durable.
        writes: what was written to it, in the order in which that ended.
        syncs: the moments at which syncs of it began and ended; of a directory, syncs of the names in it.
    """

    is_directory: bool = False
    before: bytes = b""
    writes: list[Write] = field(default_factory=list)
    syncs: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Naming:
    """A path was made to lead to a file, or to nothing.

    Attributes:
        began, ended: the moments of the call.
        directory: what it is in; None for the root.
        file: what it leads to from then on.
        is_durable: nothing can take it back.
    """

    began: int
    ended: int
    directory: File | None
    file: File | None
    is_durable: bool = False


class Aftermath:
    """One of the many ways in which a root may look afterwards.

    Args:
        names: what each path was made to lead to, in order.
        everything: its syncs are those of the whole file system.
        root: the path above all others.
        moment: when the power failed.
        chance: decides.
    """

    def __init__(
        self, names: Mapping[str, Sequence[Naming]], everything: File, root: str, moment: int, chance: Random
    ) -> None:
        self._names = names
        self._everything = everything
        self._root = root
        self._moment = moment
        self._chance = chance
        self._keeps_order = chance.random() < 0.5
        self._journal_end = self._choose_journal_end()
        self._luck = chance.choice([0.1, 0.5, 0.9])  # with which anything is there that need not be
        self._made: dict[File, str] = {}

    def make(self, target: str) -> None:
        """Make the directory ``target`` look like that."""
        os.mkdir(target, 0o700)
        left: dict[str, File | None] = {self._root: self._left_at(self._root, None)}
        for path in sorted(self._names, key=lambda path: path.count("/")):
            parent = os.path.dirname(path)
            directory = left.get(parent)
            if path == self._root or directory is None:
                continue
            left[path] = file = self._left_at(path, directory)
            if file is not None:
                self._put(target + path[len(self._root) :], file)

    def _put(self, path: str, file: File) -> None:
        if file.is_directory:
            os.mkdir(path, 0o700)
        elif file in self._made:
            os.link(self._made[file], path)  # its old name has not left, or comes back
        else:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as there:
                there.write(self._content(file))
            self._made[file] = path

    def _left_at(self, path: str, directory: File | None) -> File | None:
        """What a path leads to."""
        namings = [n for n in self._names[path] if n.directory is directory and n.began <= self._moment]
        if not namings:
            return None
        durable = max((i for i, naming in enumerate(namings) if self._is_durable_name(naming)), default=-1)
        possible = [None if durable < 0 else namings[durable].file, *(n.file for n in namings[durable + 1 :])]
        if self._keeps_order:
            return possible[sum(naming.ended <= self._journal_end for naming in namings[durable + 1 :])]
        if self._chance.random() < self._luck:
            return possible[-1]
        return self._chance.choice(possible)

    def _content(self, file: File) -> bytes:
        writes = [write for write in file.writes if write.began <= self._moment]
        content, unsynced = bytearray(file.before), []
        for write in writes:
            if self._is_covered(write.ended, file):
                _overwrite(content, write.offset, write.content)
            else:
                unsynced.append(write)
        certain = len(content)
        if self._chance.random() < ALL_LOST:
            return bytes(content)
        for write in unsynced:
            for begin in range(0, len(write.content), PAGE):
                self._write_page(content, write.offset + begin, write.content[begin : begin + PAGE])
        if len(content) > certain and self._chance.random() >= self._luck:
            some = self._chance.randrange(certain, len(content) + 1)
            del content[self._chance.choice([certain, some, max(certain, some // PAGE * PAGE)]) :]
        return bytes(content)

    def _write_page(self, content: bytearray, offset: int, page: bytes) -> None:
        if self._chance.random() < self._luck:
            _overwrite(content, offset, page)
            return
        match self._chance.choice(["lost", "zeroed", "torn"]):
            case "lost":
                content.extend(bytes(max(0, offset + len(page) - len(content))))
            case "zeroed":
                _overwrite(content, offset, bytes(len(page)))
            case "torn":
                content.extend(bytes(max(0, offset + len(page) - len(content))))
                _overwrite(content, offset, page[: self._chance.randrange(1, PAGE // SECTOR) * SECTOR])

    def _is_durable_name(self, naming: Naming) -> bool:
        return naming.is_durable or naming.directory is None or self._is_covered(naming.ended, naming.directory)

    def _is_covered(self, ended: int, file: File) -> bool:
        """Whether what ended then was made durable before the power failed."""
        syncs = [*file.syncs, *self._everything.syncs]
        return any(began >= ended and over <= self._moment for began, over in syncs)

    def _choose_journal_end(self) -> int:
        """Where a journal that keeps the order of names may end: not before any sync that has ended."""
        syncs = [sync for namings in self._names.values() for n in namings if n.file for sync in n.file.syncs]
        ended = [began for began, over in [*syncs, *self._everything.syncs] if over <= self._moment]
        return self._chance.randint(max(ended, default=0), self._moment)


def _overwrite(content: bytearray, offset: int, some: bytes) -> None:
    content.extend(bytes(max(0, offset + len(some) - len(content))))
    content[offset : offset + len(some)] = some
