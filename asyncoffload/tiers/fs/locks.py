"""Locks on single bytes of a file, held by an open description of it, and so dropped when its process ends.

These are Linux's open file description locks. Unlike the older locks of POSIX they belong to the description and not
to the process: two users of one file within a process exclude each other, and closing another descriptor of the same
file drops nothing. Where the bytes lie in the file does not matter; there need not be any.
"""

from __future__ import annotations

import errno
import fcntl
import struct

_FLOCK = struct.Struct("hhqqi4x")  # type, whence, start, length, pid


class ByteLocks:
    """The locks that one open description takes. No call waits.

    Args:
        fd: the description; closing it drops all of its locks.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def take(self, byte: int) -> bool:
        """Take a byte; False when somebody else has it. What is ours already is taken again without effect.

        Raises:
            OSError: the file system has no locks.
        """
        try:
            self._call(fcntl.F_OFD_SETLK, fcntl.F_WRLCK, byte)
        except OSError as refusal:
            if refusal.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True

    def drop(self, byte: int) -> None:
        """Let a byte go; it need not be ours."""
        self._call(fcntl.F_OFD_SETLK, fcntl.F_UNLCK, byte)

    def is_taken_elsewhere(self, byte: int) -> bool:
        """Whether another description has the byte."""
        answer = self._call(fcntl.F_OFD_GETLK, fcntl.F_WRLCK, byte)
        return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK

    def _call(self, command: int, kind: int, byte: int) -> bytes:
        return fcntl.fcntl(self._fd, command, _FLOCK.pack(kind, 0, byte, 1, 0))
