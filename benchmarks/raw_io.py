"""Bare threads that write and read blocks as ``bench fs`` does, with a checksum or without, and can be waited for."""

from __future__ import annotations

import mmap
import os
import shutil
import threading
import time
from collections.abc import Sequence

import xxhash

from asyncoffload.cli.fs_bench.raw import Move, RawFiles

_files = RawFiles(direct=True)
write_file, read_file = _files.write, _files.read


def remove_tree(directory: str) -> None:
    """Remove files and let the file system finish with it, so that the next measurement does not pay for it."""
    shutil.rmtree(directory)
    os.sync()


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
