"""Which blocks left a root, when and why: two files of bounded size that all processes append to.

A line is a departure: seconds since the epoch, what happened, why (``-`` where there is no more to say), the length of
the file, and its path below the root, so that ``grep`` finds a block as well. Each write begins and ends with the end
of a line, and a line that is not whole is none: whatever a crash leaves, or somebody else writes, is passed over.
When the newer file is full it takes the place of the older one.

Everything but :meth:`Departures.note` blocks and runs in an I/O thread.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from asyncoffload.core.layout import key_of
from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.complaints import Complaints
from asyncoffload.tiers.fs.blockfile import SET_ASIDE
from asyncoffload.types import Fate

DEPARTURES, OLDER_DEPARTURES = "departures", "departures.old"
"""The files below a root."""

MAX_FILE_BYTES = 32 << 20
"""Bytes of each of them: some 200,000 departures."""

MIN_FILE_BYTES = 64 << 10
QUOTA_SHARE = 256
"""With a quota, each has one part in so many of it, within these limits."""

MAX_WAITING = 16_384
"""Departures that wait for a disk that takes none."""

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_WRITE_BYTES = 64 << 10
_PIECE_BYTES = 1 << 20

logger = logging.getLogger("asyncoffload.tiers.fs")


@dataclass(frozen=True, slots=True)
class Departure:
    """A block that left.

    Attributes:
        when: seconds since the epoch.
        what: what happened.
        why: the bound that it ran into, or empty.
        nbytes: length of its file.
        directory: the name of its directory, of a layout and rank.
        key: the block.
    """

    when: float
    what: Fate
    why: str
    nbytes: int
    directory: str
    key: OffloadKey


class Departures:
    """Writes down what leaves a root. Any thread. Trouble with the files is complained about and harms nobody.

    Args:
        root_dir: the root.
        quota: bytes that it may take; None for no bound.
        max_file_bytes: bytes of each of the two files; by default in proportion to the quota.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        root_dir: str,
        quota: int | None = None,
        *,
        max_file_bytes: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root_dir = root_dir
        self._below = os.path.join(root_dir, "")
        self._path = os.path.join(root_dir, DEPARTURES)
        share = MAX_FILE_BYTES if quota is None else quota // QUOTA_SHARE
        self._max_file_bytes = max_file_bytes or max(MIN_FILE_BYTES, min(MAX_FILE_BYTES, share))
        self._clock = clock
        self._waiting: list[bytes] = []
        self._adding = threading.Lock()
        self._flushing = threading.Lock()
        self._complaints = Complaints(logger, time.monotonic)

    def note(self, path: str, nbytes: int, what: Fate, why: str = "") -> None:
        """A file left, below the directory of a layout; it is written down with the next :meth:`flush`."""
        place = path.removeprefix(self._below).removesuffix(SET_ASIDE)
        line = f"{self._clock():.6f} {what.value} {why or '-'} {nbytes} {place}\n"
        with self._adding:
            self._waiting.append(os.fsencode(line))
            if len(self._waiting) > MAX_WAITING:
                del self._waiting[:-MAX_WAITING]

    def flush(self) -> None:
        """Append what was noted."""
        if not self._waiting:
            return
        with self._flushing:
            with self._adding:
                lines, self._waiting = self._waiting, []
            try:
                while lines:
                    del lines[: self._append(lines)]
            except FileNotFoundError:
                return  # the root is gone, and its blocks with it
            except OSError as error:
                if not isinstance(
                    error, BlockingIOError
                ):  # somebody else makes room in the file, who will be done soon
                    self._complaints.add("departures", f"{self._path}: what leaves is not written down: {error}")
                with self._adding:
                    self._waiting = [*lines, *self._waiting][-MAX_WAITING:]

    def _append(self, lines: list[bytes]) -> int:
        """Append some lines in one write; returns how many are there."""
        fd = os.open(self._path, _APPEND, 0o600)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError("it is no regular file: move it away")
            if not status.st_size and os.geteuid() == 0:
                self._give_away(fd, lines[0])
            if status.st_size >= self._max_file_bytes:
                self._begin_anew(fd)
                return 0
            batch, nbytes = 0, 1
            while batch < len(lines) and nbytes < _WRITE_BYTES:
                nbytes += len(lines[batch])
                batch += 1
            written = os.write(fd, b"\n" + b"".join(lines[:batch]))
        finally:
            os.close(fd)
        if written < nbytes:
            raise OSError(f"the disk took {written} of {nbytes} bytes")
        return batch

    def _give_away(self, fd: int, line: bytes) -> None:
        """Where an administrator makes the file, tiers under another user must be able to open it."""
        directory = os.fsdecode(line.rsplit(b" ", 1)[1]).split("/")[0]
        with suppress(OSError):
            owner = os.stat(os.path.join(self._root_dir, directory), follow_symlinks=False)
            os.fchown(fd, owner.st_uid, owner.st_gid)

    def _begin_anew(self, fd: int) -> None:
        """Let the next one who opens the file find an empty one; of several who want that, one does it."""
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.stat(self._path, follow_symlinks=False), os.fstat(fd)):
            os.replace(self._path, os.path.join(self._root_dir, OLDER_DEPARTURES))


def departures_of(root_dir: str, block_hash: str = "") -> list[Departure]:
    """What left a root, oldest first, as far back as the files reach. Blocks.

    Args:
        root_dir: the root.
        block_hash: only blocks whose hash begins so, in hexadecimal digits.
    """
    found = [departure for text in _texts(root_dir) for departure in _parsed(text, block_hash.encode())]
    return sorted(found, key=lambda departure: departure.when)


def departures_since(root_dir: str, since: float) -> Counter[tuple[Fate, str]]:
    """How many blocks left a root since a time, in seconds since the epoch, by what happened and why. Blocks."""
    counts: Counter[tuple[Fate, str]] = Counter()
    since_text = f"{max(since, 0.0):017.6f}".encode()  # as long as the times in the files
    for text in _texts(root_dir):
        lines = filter(since_text.__le__, text.split(b"\n"))
        counts.update((one.what, one.why) for one in map(departure_in, lines) if one is not None)
    return counts


def _texts(root_dir: str) -> Iterator[bytes]:
    """What the files say, the older one first, in pieces of whole lines."""
    for name in (OLDER_DEPARTURES, DEPARTURES):
        with suppress(OSError):
            fd = os.open(os.path.join(root_dir, name), _READ)
            try:
                if stat.S_ISREG(os.fstat(fd).st_mode):
                    yield from _pieces(fd)
            finally:
                os.close(fd)


def _pieces(fd: int) -> Iterator[bytes]:
    rest = b""
    for _ in range(2 * MAX_FILE_BYTES // _PIECE_BYTES):  # whoever else writes must not keep us for ever
        piece = os.read(fd, _PIECE_BYTES)
        if not piece:
            return  # what is left is not whole, or being written
        text = rest + piece
        end = text.rfind(b"\n") + 1
        yield text[:end]
        rest = text[end:][-_PIECE_BYTES:]


def _parsed(text: bytes, digits: bytes) -> Iterator[Departure]:
    for line in _lines_with(text, b"/" + digits) if digits else text.split(b"\n"):
        departure = departure_in(line)
        if departure is not None:
            yield departure


def _lines_with(text: bytes, needle: bytes) -> Iterator[bytes]:
    place = text.find(needle)
    while place >= 0:
        end = text.find(b"\n", place)
        if end < 0:
            return  # it is being written
        begin = text.rfind(b"\n", 0, place) + 1
        yield text[begin:end]
        place = text.find(needle, end)


def departure_in(line: bytes) -> Departure | None:
    """What a line of the journal says; None where it is none of ours, or not whole."""
    try:
        when, what, why, nbytes, path = line.decode("ascii").split(" ")
        directory, parent, name = path.split("/")
        key = key_of(parent, name)
        if key is None or when[-7:-6] != ".":
            return None
        return Departure(float(when), Fate(what), "" if why == "-" else why, int(nbytes), directory, key)
    except ValueError:
        return None
