"""Hearing of what left a root, whoever removed it, by reading on in its journal."""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
import weakref
from contextlib import suppress

from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.complaints import Complaints
from asyncoffload.tiers.fs.departures import DEPARTURES, OLDER_DEPARTURES, departure_in

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_PIECE_BYTES = 1 << 20

logger = logging.getLogger("asyncoffload.tiers.fs")

Identity = tuple[int, int]


class Follower:
    """Reads what is appended to the journal of a root. Any thread; methods block.

    It keeps the file open that it reads, so it reads that to the end even after it was rotated away or removed.

    Args:
        root_dir: the root.
        directory: the name of the directory, of a layout and rank, whose blocks matter.
    """

    def __init__(self, root_dir: str, directory: str) -> None:
        self._path = os.path.join(root_dir, DEPARTURES)
        self._older = os.path.join(root_dir, OLDER_DEPARTURES)
        self._mark = f" {directory}/".encode()
        self._file: _OpenFile | None = None
        self._older_before: Identity | None = None
        self._has_begun = False
        self._lock = threading.Lock()
        self._complaints = Complaints(logger, time.monotonic)

    def begin(self) -> None:
        """Hear of what leaves from now on; idempotent."""
        with self._lock:
            if self._has_begun:
                return
            self._older_before = _identity(self._older)
            self._open()
            if self._file is not None:
                self._file.skip()
            self._has_begun = True

    def look(self) -> tuple[list[OffloadKey], bool]:
        """What has left since the last look, oldest first, and whether more may have left than was heard of."""
        with self._lock:
            lines, may_lack = self._read_on()
        found = (departure_in(line) for line in lines if self._mark in line)
        return [departure.key for departure in found if departure is not None], may_lack

    def _read_on(self) -> tuple[list[bytes], bool]:
        now, file = _identity(self._path), self._file
        if file is not None and now in (file.identity, None):
            return file.read_on()  # while it has no name, the next one is being made
        if now is None:
            return [], False
        self._open()
        if self._file is file:
            return [], False
        lines, may_lack = file.read_on() if file is not None else ([], False)
        # Between the one that was read and the one that is there now, others may have come and gone.
        older = _identity(self._older)
        is_next = older == (self._older_before if file is None else file.identity)
        more, may_lack_more = self._file.read_on() if self._file is not None else ([], False)
        return [*lines, *more], may_lack or may_lack_more or not is_next

    def _open(self) -> None:
        """Read the file that has the name now, if there is one."""
        try:
            self._file = _OpenFile(self._path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._complaints.add("departures", f"{self._path}: what others evict is not heard of: {error}")


class _OpenFile:
    """A file that is read as it grows.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, _READ)
        self._close = weakref.finalize(self, os.close, self._fd)
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no regular file: move it away")
        self.identity: Identity = status.st_dev, status.st_ino
        self._offset = 0

    def skip(self) -> None:
        """What is in it now is known."""
        self._offset = os.fstat(self._fd).st_size

    def read_on(self) -> tuple[list[bytes], bool]:
        """The whole lines since the last call, and whether some were taken out of it."""
        size = os.fstat(self._fd).st_size
        if size < self._offset:
            self._offset = size
            return [], True
        lines: list[bytes] = []
        while self._offset < size and (piece := os.pread(self._fd, _PIECE_BYTES, self._offset)):
            end = piece.rfind(b"\n") + 1
            if not end and len(piece) < _PIECE_BYTES:
                break  # it is being written
            lines += piece[:end].split(b"\n")
            self._offset += end or len(piece)
        return lines, False


def _identity(path: str) -> Identity | None:
    with suppress(OSError):
        status = os.stat(path, follow_symlinks=False)
        return status.st_dev, status.st_ino
    return None
