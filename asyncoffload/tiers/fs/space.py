"""The directory that holds the blocks of one layout and rank: opened, looked into, left.

All methods but the constructor block, unless they say otherwise, and run in an I/O thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

from asyncoffload.core.layout import block_path, describe, directory_name, fingerprint, is_fan_out, key_of
from asyncoffload.errors import ConfigError
from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.directio import file_system_takes_direct_io
from asyncoffload.tiers.fs.format import BlockFormat
from asyncoffload.tiers.fs.owner import Leftovers, Owner, owner_of
from asyncoffload.types import KVLayout

DirectIO = Literal["auto", "on", "off"]
MakeFiles = Callable[[BlockFormat, str, bool], BlockFiles]


class BlockSpace:
    """One directory of blocks.

    Args:
        root_dir: where the directories of all layouts lie.
        layout: the layout whose blocks are meant.
        direct_io: bypass the page cache: where it works, always, or never.
        aligned: whether the slots begin at page boundaries, as direct I/O needs.
        make_files: what writes and reads the files, from a format, an owner's name and whether to use direct I/O.
    """

    def __init__(
        self, root_dir: str, layout: KVLayout, *, direct_io: DirectIO, aligned: bool, make_files: MakeFiles
    ) -> None:
        self.root_dir = root_dir
        self.directory = os.path.join(root_dir, directory_name(layout))
        self.config = {"fingerprint": fingerprint(layout).hex(), "rank": layout.rank, **describe(layout)}
        self.format = BlockFormat(fingerprint(layout), layout.rank)
        self._direct_io = direct_io
        self._aligned = aligned
        self._make_files = make_files
        self._owner: Owner | None = None
        self._leftovers: Leftovers | None = None
        self._files: BlockFiles | None = None

    @property
    def config_path(self) -> str:
        """Where the directory says what its blocks are. Does not block."""
        return os.path.join(self.directory, "config.json")

    @property
    def is_open(self) -> bool:
        """Whether this process is an owner here. Does not block."""
        return self._owner is not None

    @property
    def files(self) -> BlockFiles:
        """What writes and reads the blocks; the space is open. Does not block."""
        assert self._files is not None, "the space is not open"
        return self._files

    @property
    def leftovers_removed(self) -> int:
        """Temporary files of dead owners that were removed. Does not block."""
        return self._leftovers.removed if self._leftovers else 0

    def path(self, key: OffloadKey) -> str:
        """Where a block lies. Does not block."""
        return block_path(self.directory, key)

    def temporary(self, name: str) -> str:
        """A path at which this process may make a file; who finds it later can tell whether it is a leftover."""
        assert self._owner is not None, "the space is not open"
        return os.path.join(self.directory, f"{name}.{self._owner.name}.tmp")

    def open(self) -> None:
        """Make the directory if there is none, become an owner in it, and find out how to do I/O.

        A second call starts over.

        Raises:
            ConfigError: direct I/O is demanded and cannot be had.
            OSError: the operating system refused.
        """
        self.leave()
        self.directory = os.path.abspath(self.directory)
        os.makedirs(self.directory, 0o700, exist_ok=True)
        self._owner = Owner(self.directory)
        self._leftovers = Leftovers(self.directory, keep=self._owner.name)
        self._files = self._make_files(self.format, self._owner.name, self._decide_direct_io())

    def leave(self) -> None:
        """Stop being an owner; idempotent."""
        if self._owner is not None:
            self._owner.leave()
            self._owner = None

    def which_exist(self, keys: Sequence[OffloadKey]) -> list[OffloadKey]:
        """Those of the keys that have a file."""
        access = os.access
        return [key for key in keys if access(self.path(key), os.F_OK)]

    def fan_out(self) -> list[str]:
        """The directories of the fan-out, by name."""
        with suppress(FileNotFoundError):
            return sorted(filter(is_fan_out, os.listdir(self.directory)))
        return []

    def look_through(self, parent: str) -> list[OffloadKey]:
        """The blocks in one directory of the fan-out. Leftovers found on the way are removed."""
        found: list[OffloadKey] = []
        directory = os.path.join(self.directory, parent)
        with suppress(FileNotFoundError, NotADirectoryError):  # removed meanwhile, or never ours
            for name in os.listdir(directory):
                key = key_of(parent, name)
                if key is not None:
                    found.append(key)
                else:
                    self._remove_leftover(os.path.join(directory, name), name)
        return found

    def finish_looking(self) -> None:
        """After all of the fan-out was looked through: dead owners need not be remembered any more."""
        assert self._leftovers is not None, "the space is not open"
        for name in os.listdir(self.directory):
            self._remove_leftover(os.path.join(self.directory, name), name)
        self._leftovers.forget_dead_owners()

    def _remove_leftover(self, path: str, name: str) -> None:
        assert self._leftovers is not None, "the space is not open"
        owner = owner_of(name)
        if owner is not None:
            self._leftovers.remove_if_dead(path, owner)

    def _decide_direct_io(self) -> bool:
        if self._direct_io == "off":
            return False
        works = self._aligned and file_system_takes_direct_io(self.temporary("direct_io"))
        if self._direct_io == "on" and not works:
            raise ConfigError(
                f"direct_io='on' cannot be had in {self.directory}: "
                + (
                    "its file system refuses O_DIRECT; use another root_dir, or direct_io='auto'"
                    if self._aligned
                    else "slots do not begin at multiples of 4096 bytes; choose a block size that is one, "
                    "or direct_io='auto'"
                )
            )
        return works
