"""What the disk gives to bare threads: the same files, without a checksum, a queue or an event loop.

A thread opens a file, moves header page and payload with one vectored call, closes the file, and renames it when it was
written; then it takes the next. This is the ceiling for a tier that keeps blocks as files.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from asyncoffload.tiers.fs.format import PAGE

Move = Callable[[str, memoryview, memoryview], None]


class RawFiles:
    """Writes and reads whole files; ``direct`` passes by the page cache. Payloads are whole pages. Any thread."""

    def __init__(self, *, direct: bool) -> None:
        self._flags = os.O_CLOEXEC | (os.O_DIRECT if direct else 0)

    def write(self, path: str, header: memoryview, payload: memoryview) -> None:
        """One file, by way of a temporary name."""
        temporary = f"{path}.{threading.get_ident()}.tmp"
        flags = self._flags | os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            fd = os.open(temporary, flags, 0o600)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            fd = os.open(temporary, flags, 0o600)
        try:
            _whole(os.pwritev(fd, [header, payload], 0), header, payload)
        finally:
            os.close(fd)
        os.replace(temporary, path)

    def read(self, path: str, header: memoryview, payload: memoryview) -> None:
        """One file."""
        fd = os.open(path, self._flags | os.O_RDONLY)
        try:
            _whole(os.preadv(fd, [header, payload], 0), header, payload)
        finally:
            os.close(fd)


@dataclass(slots=True)
class Moved:
    """What some threads moved.

    Attributes:
        nbytes: bytes of payload.
        seconds: from the start of the first thread to the end of the last.
        each: seconds of each file.
    """

    nbytes: int = 0
    seconds: float = 0.0
    each: list[float] = field(default_factory=list)

    @property
    def bytes_per_second(self) -> float:
        """Payload by time."""
        return self.nbytes / max(self.seconds, 1e-9)


def move_files(
    n_threads: int, move: Move, paths: Sequence[str], payloads: Sequence[memoryview], *, limit: float = float("inf")
) -> Moved:
    """Move files with so many threads, until all are done or ``limit`` seconds have passed.

    Raises:
        OSError: the operating system refused; all threads have ended.
    """
    todo = list(zip(paths, payloads, strict=True))[::-1]
    moved, refusals = Moved(), list[OSError]()

    def run() -> None:
        header = memoryview(mmap.mmap(-1, PAGE))
        while not refusals and time.perf_counter() - began < limit:
            try:
                path, payload = todo.pop()
            except IndexError:
                return
            started = time.perf_counter()
            try:
                move(path, header, payload)
            except OSError as refusal:
                refusals.append(refusal)
                return
            moved.each.append(time.perf_counter() - started)

    began = time.perf_counter()
    threads = [threading.Thread(target=run) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        todo.clear()
        for thread in threads:
            thread.join()
        raise
    if refusals:
        raise refusals[0]
    moved.seconds = time.perf_counter() - began
    moved.nbytes = sum(map(len, payloads[: len(moved.each)]))
    return moved


def remove_files(paths: Sequence[str]) -> None:
    """Remove files, of which some may not be there."""
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _whole(count: int, header: memoryview, payload: memoryview) -> None:
    if count != len(header) + len(payload):
        raise OSError(errno.EIO, f"moved {count} of {len(header) + len(payload)} bytes")
