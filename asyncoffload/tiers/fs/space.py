"""The directory that holds the blocks of one layout and rank: opened, looked into, left.

All methods but the constructor block, unless they say otherwise, and run in an I/O thread.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

from asyncoffload.core.layout import block_path, directory_name, fingerprint, is_fan_out, key_of
from asyncoffload.errors import ConfigError
from asyncoffload.keys import OffloadKey, block_hash_of
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.config_file import CONFIG, config_of
from asyncoffload.tiers.fs.counting import has_files
from asyncoffload.tiers.fs.departures import Departure, Departures, departures_of
from asyncoffload.tiers.fs.directio import file_system_takes_direct_io
from asyncoffload.tiers.fs.eviction import Evictor, Place
from asyncoffload.tiers.fs.format import BlockFormat
from asyncoffload.tiers.fs.owner import Leftovers, Owner, owner_of
from asyncoffload.tiers.fs.quota import Allowance, Bounds, Unaccounted, free_bytes
from asyncoffload.tiers.fs.recency import used_again
from asyncoffload.tiers.fs.syncing import Durability
from asyncoffload.tiers.fs.usage import Usage
from asyncoffload.types import Fate, KVLayout

NAMES_AT_A_TIME = 64
"""Names that are looked at in one go, some 200 us."""

_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS}

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
        bounds: of the root.
        free: bytes free on the file system of a directory.
        durability: whether directories are to survive a loss of power.

    Attributes:
        allowance: what may be stored; there is always one.
        evictor: removes files; None where the root has no account.
    """

    def __init__(
        self,
        root_dir: str,
        layout: KVLayout,
        *,
        direct_io: DirectIO,
        aligned: bool,
        make_files: MakeFiles,
        bounds: Bounds,
        free: Callable[[str], int] = free_bytes,
        durability: Durability = "none",
    ) -> None:
        self.root_dir = root_dir
        self.directory = os.path.join(root_dir, directory_name(layout))
        self.config = config_of(layout)
        self.format = BlockFormat(fingerprint(layout), layout.rank)
        self._direct_io = direct_io
        self._aligned = aligned
        self._make_files = make_files
        self.bounds = bounds
        self._free = free
        self._durability = durability
        self._made_in: list[str] = []
        self.allowance: Allowance = Unaccounted()
        self.evictor: Evictor | None = None
        self._departures = Departures(self.root)
        self._usage: Usage | None = None
        self._owner: Owner | None = None
        self._leftovers: Leftovers | None = None
        self._files: BlockFiles | None = None

    @property
    def root(self) -> str:
        """Where the directories of all layouts lie. Does not block."""
        return os.path.dirname(self.directory)

    @property
    def config_path(self) -> str:
        """Where the directory says what its blocks are. Does not block."""
        return os.path.join(self.directory, CONFIG)

    @property
    def is_open(self) -> bool:
        """Whether this process is an owner here. Does not block."""
        return self._owner is not None or self._usage is not None

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
            ConfigError: direct I/O is demanded and cannot be had, the file system is smaller than ``min_free``, or the
                directory is a symbolic link.
            OSError: the operating system refused.
            UsageBusyError: somebody has held the account of the root for long.
        """
        self.leave()
        self.directory = os.path.abspath(self.directory)
        self._made_in = _missing_from(self.directory)
        os.makedirs(self.directory, 0o700, exist_ok=True)
        if os.path.islink(self.directory):
            raise ConfigError(
                f"{self.directory} is a symbolic link, and what lies behind it would not count against a quota: give "
                "root_dir a path on the other file system, or mount that one here"
            )
        self._departures = Departures(self.root, self.bounds.quota)
        self._open_account()
        self._owner = Owner(self.directory)
        self._files = self._make_files(self.format, self._owner.name, self._decide_direct_io())
        self._leftovers = Leftovers(self.directory, keep=self._owner.name, unlink=self._files.calls.unlink)
        if self._usage is not None:
            self.evictor = Evictor(self._usage, self._departures, self._files.calls)

    def make_durable(self) -> None:
        """Let the directory, and what describes it, survive a loss of power, if that is wanted.

        Raises:
            ConfigError: the file system cannot do that.
            OSError: the operating system refused.
        """
        if self._durability == "none":
            return
        try:
            for directory in dict.fromkeys([self.directory, self.root, *self._made_in]):
                self.files.calls.sync_directory(directory)
        except OSError as refusal:
            if refusal.errno in _CANNOT_SYNC:
                raise ConfigError(
                    f"durability='fsync' cannot be had in {self.directory}: its file system does not sync directories "
                    f"({refusal}); use another root_dir, or durability='none'"
                ) from refusal
            raise

    def leave(self) -> None:
        """Stop being an owner; idempotent."""
        self._departures.flush()
        if self._owner is not None:
            self._owner.leave()
            self._owner = None
        if self._usage is not None:
            self._usage.leave()
            self._usage = None

    @property
    def is_pressed(self) -> bool:
        """Whether stores should rather take the place of other blocks than the room that is left. Does not block."""
        return self.evictor is not None and self.evictor.is_pressed

    def reclaim(self, path: str, nbytes: int) -> Place | None:
        """Have the block that goes next make way for a file of this length at ``path``, if it is known which."""
        if self.evictor is None or not len(self.evictor) or not self.allowance.usage.take_housekeeping():
            return None
        return self.evictor.reclaim(nbytes, self.files.temporary(path))

    def settle(self, place: Place) -> None:
        """The store that took a place has ended."""
        assert self.evictor is not None
        self.evictor.settle(place)

    def make_room(self, nbytes: int) -> bool:
        """Evict so many bytes at once, if it is known what to evict."""
        if self.evictor is None or not self.allowance.usage.take_housekeeping():
            return False
        return self.evictor.evict(nbytes, why="space") >= nbytes

    def set_aside(self, path: str, nbytes: int) -> None:
        """The file at a path was found to be bad: write it down."""
        self._departures.note(path, nbytes, Fate.CORRUPT)
        self._departures.flush()

    def departures_of(self, key: OffloadKey) -> list[Departure]:
        """What left of a block, oldest first, whoever removed it."""
        self._departures.flush()
        own = os.path.basename(self.directory)
        left = departures_of(self.root, block_hash_of(key).hex())
        return [departure for departure in left if departure.directory == own and departure.key == key]

    def bound_stats(self) -> dict[str, float]:
        """Where the root has bounds, or this process: ``used_bytes`` of all of it, ``quota_bytes`` (-1: none),
        ``min_free_bytes`` (-1), ``reserved_bytes``, whether the root is ``counted``; blocks ``shed_by_quota`` and
        ``shed_by_space``; and what this process removed: ``evicted_files``, ``evicted_bytes``, and among the files
        ``recycled_files`` and ``quarantined_removed``. Does not block."""
        usage, evictor = self._usage, self.evictor
        if usage is None or evictor is None or not (self.bounds or usage.is_bounded):
            return {}
        return {
            "used_bytes": usage.used,
            "reserved_bytes": usage.reserved,
            "quota_bytes": -1 if usage.quota is None else usage.quota,
            "min_free_bytes": -1 if usage.min_free is None else usage.min_free,
            "counted": float(not usage.in_doubt),
            "shed_by_quota": self.allowance.shed_by_quota,
            "shed_by_space": self.allowance.shed_by_space,
            "evicted_files": evictor.files,
            "evicted_bytes": evictor.nbytes,
            "recycled_files": evictor.recycled,
            "quarantined_removed": evictor.quarantined,
        }

    def probe(self) -> None:
        """Make a file, read it and remove it, to see whether the file system answers.

        Raises:
            OSError: the operating system refused, which is an answer.
        """
        if self._owner is None:
            os.stat(self.root_dir)
            return
        path, calls = self.temporary("probe"), self.files.calls
        word = memoryview(bytearray(b"probe"))
        fd = calls.open_file(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            calls.pwritev(fd, [word], 0)
            calls.preadv(fd, [word], 0)
        finally:
            os.close(fd)
            calls.unlink(path)

    def touch(self, used: Sequence[tuple[OffloadKey, int]]) -> None:
        """Renew the times of some blocks, nanoseconds since the epoch."""
        for key, when in used:
            path = self.path(key)
            with suppress(OSError):
                again = used_again(when, os.stat(path, follow_symlinks=False).st_mtime_ns)
                os.utime(path, ns=(again, again), follow_symlinks=False)

    def key_at(self, path: str) -> OffloadKey | None:
        """The block of this space that lies at a path; None when it is none of ours."""
        place, name = os.path.split(path)
        directory, parent = os.path.split(place)
        return key_of(parent, name) if directory == self.directory else None

    def _open_account(self) -> None:
        root, self.evictor = self.root, None
        self.bounds.check(root)
        try:
            self._usage = Usage(
                root,
                is_empty=lambda: not has_files(root),
                quota=self.bounds.quota,
                min_free=self.bounds.min_free,
            )
        except OSError:
            if self.bounds:
                raise
            self.allowance = Unaccounted()
            return
        self.allowance = Allowance(self._usage, self.bounds, lambda: self._free(root))

    def which_exist(self, keys: Sequence[OffloadKey]) -> list[OffloadKey]:
        """Those of the keys that have a file."""
        access = os.access
        return [key for key in keys if access(self.path(key), os.F_OK)]

    def which_are_gone(self, keys: Sequence[OffloadKey]) -> list[OffloadKey]:
        """Those of the keys that certainly have no file; a file that cannot be looked at may come back."""
        return [key for key in keys if _is_gone(self.path(key))]

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
            for place, name in enumerate(os.listdir(directory)):
                if not place % NAMES_AT_A_TIME:
                    time.sleep(0)  # lets go of the interpreter, which loads want as well
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


def _is_gone(path: str) -> bool:
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENOENT
    return False


def _missing_from(path: str) -> list[str]:
    """The directories in which others have to be made for a path to exist, the innermost first."""
    parents = []
    while not os.path.lexists(path):
        path = os.path.dirname(path)
        parents.append(path)
    return parents
