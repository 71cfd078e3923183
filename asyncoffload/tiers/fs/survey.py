"""What lies below a root, seen from outside: without a tier, without knowing any layout, changing nothing.

The functions block, and may run beside any number of processes that use the root: what disappears while it is looked
at is left out.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from asyncoffload.core.layout import is_fan_out, key_of
from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.fs.blockfile import SET_ASIDE
from asyncoffload.tiers.fs.config_file import CONFIG
from asyncoffload.tiers.fs.departures import DEPARTURES, OLDER_DEPARTURES
from asyncoffload.tiers.fs.owner import OWNERS, owner_of
from asyncoffload.tiers.fs.usage import ACCOUNT

_LAYOUT = re.compile(r"(?P<fingerprint>[0-9a-f]{32})_r(?P<rank>0|[1-9][0-9]{0,9})")
_OWNER = re.compile(r"[0-9a-f]{16}")
_PID = re.compile(rb"pid ([0-9]+)\n")


class Kind(StrEnum):
    """What a file below the directory of a layout is, by its name alone."""

    BLOCK = "block"
    TEMPORARY = "temporary"
    QUARANTINED = "quarantined"
    STRANGE = "strange"


@dataclass(frozen=True, slots=True)
class LayoutDirectory:
    """The directory of one layout and rank.

    Attributes:
        path: where it is.
        fingerprint: of its layout, as the name tells, 16 bytes.
        rank: as the name tells.
    """

    path: str
    fingerprint: bytes
    rank: int

    @property
    def name(self) -> str:
        """Its name below the root."""
        return os.path.basename(self.path)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file below the directory of a layout.

    Attributes:
        path: where it is.
        kind: what it is.
        nbytes: its length.
        disk_bytes: what it takes on the device.
        modified_ns: nanoseconds since the epoch; for a block, about when it was last used.
        key: the block that the name is about; None where it is about none.
        owner: whose temporary file it is; None for others.
    """

    path: str
    kind: Kind
    nbytes: int
    disk_bytes: int
    modified_ns: int
    key: OffloadKey | None = None
    owner: str | None = None

    @property
    def modified(self) -> float:
        """:attr:`modified_ns` in seconds."""
        return self.modified_ns / 1e9


@dataclass(frozen=True, slots=True)
class SeenOwner:
    """A process that uses, or used, the directory of a layout.

    Attributes:
        name: its random name.
        alive: whether it holds its lock.
        pid: its process id, as it saw it itself; None where its file does not say.
        since: when it came, in seconds since the epoch.
    """

    name: str
    alive: bool
    pid: int | None
    since: float


def layout_directories(root: str) -> list[LayoutDirectory]:
    """The directories of layouts below a root, by name.

    Raises:
        OSError: the root cannot be read.
    """
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    matches = [(name, _LAYOUT.fullmatch(name)) for name in names]
    return [
        LayoutDirectory(os.path.join(root, name), bytes.fromhex(match["fingerprint"]), int(match["rank"]))
        for name, match in matches
        if match is not None
    ]


def is_layout_name(name: str) -> bool:
    """Whether the directory of a layout may have this name."""
    return _LAYOUT.fullmatch(name) is not None


def strange_entries(root: str) -> list[str]:
    """Names below a root that no tier makes.

    Raises:
        OSError: the root cannot be read.
    """
    ours = {ACCOUNT, DEPARTURES, OLDER_DEPARTURES, *(directory.name for directory in layout_directories(root))}
    return sorted(name for name in os.listdir(root) if name not in ours)


def fan_out_of(directory: LayoutDirectory) -> list[str]:
    """The names of the directories that the files of a layout are spread over."""
    with suppress(FileNotFoundError), os.scandir(directory.path) as entries:
        return sorted(e.name for e in entries if is_fan_out(e.name) and e.is_dir(follow_symlinks=False))
    return []


def files_in(directory: LayoutDirectory, parent: str) -> Iterator[FoundFile]:
    """The files in one directory of the fan-out, in no order."""
    path = os.path.join(directory.path, parent)
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        for entry in entries:
            found = _found(entry, parent)
            if found is not None:
                yield found


def files_beside(directory: LayoutDirectory) -> Iterator[FoundFile]:
    """What lies beside the fan-out and does not belong there for good: temporary and strange files."""
    with suppress(FileNotFoundError), os.scandir(directory.path) as entries:
        for entry in entries:
            if entry.name not in (CONFIG, OWNERS) and not is_fan_out(entry.name):
                found = _found(entry, "")
                if found is not None:
                    yield found


def owners_of(directory: LayoutDirectory) -> list[SeenOwner]:
    """The processes that use the directory of a layout, and those that died without leaving it."""
    owners = os.path.join(directory.path, OWNERS)
    names: list[str] = []
    with suppress(FileNotFoundError):
        names = sorted(filter(_OWNER.fullmatch, os.listdir(owners)))
    seen = (_seen_owner(os.path.join(owners, name), name) for name in names)
    return [owner for owner in seen if owner is not None]


def living_owners(directory: LayoutDirectory) -> set[str]:
    """The names of the processes that use the directory of a layout now."""
    return {owner.name for owner in owners_of(directory) if owner.alive}


def _found(entry: os.DirEntry[str], parent: str) -> FoundFile | None:
    try:
        status = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    key, owner, kind = None, owner_of(entry.name), Kind.STRANGE
    if not entry.is_file(follow_symlinks=False):
        owner = None
    elif owner is not None:
        kind, key = Kind.TEMPORARY, key_of(parent, entry.name.rsplit(".", 2)[0])
    elif entry.name.endswith(SET_ASIDE):
        key = key_of(parent, entry.name.removesuffix(SET_ASIDE))
        kind = Kind.STRANGE if key is None else Kind.QUARANTINED
    else:
        key = key_of(parent, entry.name)
        kind = Kind.STRANGE if key is None else Kind.BLOCK
    return FoundFile(entry.path, kind, status.st_size, status.st_blocks * 512, status.st_mtime_ns, key, owner)


def _seen_owner(path: str, name: str) -> SeenOwner | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        alive = False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two who look do not take each other for it
        except BlockingIOError:
            alive = True
        pid = _PID.fullmatch(os.read(fd, 64))
        return SeenOwner(name, alive, int(pid[1]) if pid else None, os.fstat(fd).st_mtime)
    finally:
        os.close(fd)
