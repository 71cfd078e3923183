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


class BareThreads:
    """Threads that move files, from now on until all are done or ``limit`` seconds have passed."""

    def __init__(
        self,
        n_threads: int,
        move: Move,
        paths: Sequence[str],
        payloads: Sequence[memoryview],
        *,
        limit: float = float("inf"),
    ) -> None:
        self._move, self._limit = move, limit
        self._payloads = payloads
        self._todo = list(zip(paths, payloads, strict=True))[::-1]
        self._moved, self._refusals = Moved(), list[OSError]()
        self._began = time.perf_counter()
        self._threads = [threading.Thread(target=self._run) for _ in range(n_threads)]
        try:
            for thread in self._threads:
                thread.start()
        except BaseException:
            self._stop()
            raise

    @property
    def running(self) -> bool:
        """Whether a file is still on its way."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> Moved:
        """Wait for the end. An interrupt ends it after the files that are on their way.

        Raises:
            OSError: the operating system refused; all threads have ended.
        """
        try:
            self._join_all()
        except BaseException:
            self._stop()
            raise
        if self._refusals:
            raise self._refusals[0]
        self._moved.seconds = time.perf_counter() - self._began
        self._moved.nbytes = sum(map(len, self._payloads[: len(self._moved.each)]))
        return self._moved

    def _join_all(self) -> None:
        for thread in self._threads:
            thread.join()

    def _stop(self) -> None:
        """Wait for the files that are on their way, so that nobody writes below a directory that is removed."""
        self._todo.clear()
        for thread in self._threads:
            with suppress(RuntimeError):  # one that has not started yet will find nothing to do
                thread.join()

    def _run(self) -> None:
        header = memoryview(mmap.mmap(-1, PAGE))
        while not self._refusals and time.perf_counter() - self._began < self._limit:
            try:
                path, payload = self._todo.pop()
            except IndexError:
                return
            started = time.perf_counter()
            try:
                self._move(path, header, payload)
            except OSError as refusal:
                self._refusals.append(refusal)
                return
            self._moved.each.append(time.perf_counter() - started)


def remove_files(paths: Sequence[str]) -> None:
    """Remove files, of which some may not be there."""
    for path in paths:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _whole(count: int, header: memoryview, payload: memoryview) -> None:
    if count != len(header) + len(payload):
        raise OSError(errno.EIO, f"moved {count} of {len(header) + len(payload)} bytes")
