"""What the disk gives to bare threads: the same files, without a checksum, a queue or an event loop.

A thread opens a file, moves header page and payload with one vectored call, closes the file, and renames it when it was
written; then it takes the next. This is the ceiling for a tier that keeps blocks as files.
"""

from __future__ import annotations

import mmap
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence

import xxhash

Move = Callable[[str, memoryview, memoryview], None]

DIRECT = os.O_DIRECT


def remove_tree(directory: str) -> None:
    """Remove files and let the file system finish with it, so that the next measurement does not pay for it."""
    shutil.rmtree(directory)
    os.sync()


def write_file(path: str, header: memoryview, payload: memoryview) -> None:
    """One block to a file, by way of a temporary name."""
    temporary = f"{path}.{threading.get_ident()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | DIRECT
    try:
        fd = os.open(temporary, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        fd = os.open(temporary, flags, 0o600)
    try:
        moved = os.pwritev(fd, [header, payload], 0)
    finally:
        os.close(fd)
    assert moved == len(header) + len(payload)
    os.replace(temporary, path)


def read_file(path: str, header: memoryview, payload: memoryview) -> None:
    """One block from a file."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | DIRECT)
    try:
        moved = os.preadv(fd, [header, payload], 0)
    finally:
        os.close(fd)
    assert moved == len(header) + len(payload)


def check_and_write(path: str, header: memoryview, payload: memoryview) -> None:
    """:func:`write_file` after a pass over the payload for its checksum."""
    xxhash.xxh3_64().update(payload)
    write_file(path, header, payload)


def read_and_check(path: str, header: memoryview, payload: memoryview) -> None:
    """:func:`read_file`, then a pass over the payload, which is in no cache of this processor yet."""
    read_file(path, header, payload)
    xxhash.xxh3_64().update(payload)


class BareThreads:
    """Threads that move blocks until a list is empty; ``seconds`` after :meth:`join`."""

    def __init__(self, n_threads: int, move: Move, paths: Sequence[str], slots: Sequence[memoryview]) -> None:
        self._todo = list(zip(paths, slots, strict=True))[::-1]
        self._move = move
        self._threads = [threading.Thread(target=self._run) for _ in range(n_threads)]
        self._began = time.perf_counter()
        for thread in self._threads:
            thread.start()

    @property
    def running(self) -> bool:
        """Whether a block is still on its way."""
        return any(thread.is_alive() for thread in self._threads)

    def join(self) -> float:
        """Wait for the end; seconds since the start."""
        for thread in self._threads:
            thread.join()
        return time.perf_counter() - self._began

    def _run(self) -> None:
        header = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
        while True:
            try:
                path, slot = self._todo.pop()
            except IndexError:
                return
            self._move(path, header, slot)
