"""The calls of the operating system that change what lies on disk, as one value: so that another may stand in for them.

Whatever a tier does to its blocks, their names and their directories goes through these. The kit puts a disk in their
place that fails (:class:`~asyncoffload.testing.FaultyDisk`), or one that remembers what was asked of it and can tell
what would be left after a loss of power (:class:`~asyncoffload.testing.PowerLoss`).
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asyncoffload.tiers.fs.whole_sync import may_sync_whole

NO_REPLACE = 1
EXCHANGE = 2

_AT_FDCWD = -100
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)
_renameat2 = getattr(_libc, "renameat2", None)

VectoredCall = Callable[[int, Sequence[memoryview], int], int]
"""``os.preadv`` or ``os.pwritev``: a descriptor, buffers, an offset; returns the bytes moved."""


def rename_with(old: str, new: str, flags: int) -> None:
    """Linux's ``renameat2``; ``ENOSYS`` where there is none.

    Args:
        old, new: the two paths.
        flags: :data:`NO_REPLACE` or :data:`EXCHANGE`.

    Raises:
        OSError: the operating system refused.
    """
    if _renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if _renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), old, None, new)


def sync_directory(path: str) -> None:
    """Make the names in a directory durable.

    Raises:
        OSError: the operating system refused.
    """
    fd = os.open(path, _DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_whole(path: str) -> None:
    """Make everything durable on the file system of a directory, whosever it is: Linux's ``syncfs``.

    Raises:
        OSError: the operating system refused, or could not write something; it tells that to one of those who ask.
    """
    fd = os.open(path, _DIRECTORY)
    try:
        if _libc.syncfs(fd):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class SystemCalls:
    """What the file tier asks of the operating system; each is given and raises what the call of that name is and does.

    Attributes:
        open_file: path, flags, mode; returns a descriptor.
        pwritev, preadv: move bytes.
        sync_file: make the bytes of an open file durable.
        sync_directory: make the names in a directory durable.
        may_sync_whole: path; whether :attr:`sync_whole` is right there, and cheap now.
        sync_whole: make everything durable on the file system of a path.
        rename: old path, new path, flags of ``renameat2``.
        replace: old path, new path.
        unlink: path.
        mkdir: path, mode.
    """

    open_file: Callable[[str, int, int], int] = os.open
    pwritev: VectoredCall = os.pwritev
    preadv: VectoredCall = os.preadv
    sync_file: Callable[[int], None] = os.fdatasync
    sync_directory: Callable[[str], None] = sync_directory
    may_sync_whole: Callable[[str], bool] = may_sync_whole
    sync_whole: Callable[[str], None] = sync_whole
    rename: Callable[[str, str, int], None] = rename_with
    replace: Callable[[str, str], None] = os.replace
    unlink: Callable[[str], None] = os.unlink
    mkdir: Callable[[str, int], None] = os.mkdir


THE_SYSTEM = SystemCalls()
