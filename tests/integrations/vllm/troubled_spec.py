"""The whole stack over a file tier whose disk is full, unreadable or slow when the test wants it to be."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence

from asyncoffload.config import FileSystemTierSettings, OffloaderSettings
from asyncoffload.integrations.vllm.spec import AsyncOffloadingSpec
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.format import BlockFormat
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.system_calls import SystemCalls
from asyncoffload.types import KVLayout

LOAD_SECONDS = 10.0
"""How long a request waits for blocks, by the disk's clock."""


class Disk:
    """The system calls of a tier, which go wrong while a test wants them to; and a clock that only a slow disk moves.

    Attributes:
        full: whether writes find no room.
        refuses_reads: whether files cannot be opened for reading.
        held: reads that wait until the disk is fast again.
    """

    def __init__(self) -> None:
        self.full = False
        self.refuses_reads = False
        self.held = 0
        self._seconds = 0.0
        self._fast = threading.Event()
        self._fast.set()

    def clock(self) -> float:
        return self._seconds

    def become_slow(self) -> None:
        """From now on every read lasts longer than a request waits, and until the disk is fast again."""
        self._fast.clear()

    def become_fast(self) -> None:
        self._fast.set()

    def make_files(self, block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
        calls = SystemCalls(open_file=self._open, pwritev=self._pwritev, preadv=self._preadv)
        return BlockFiles(block_format, owner, direct=direct, calls=calls)

    def _open(self, path: str, flags: int, mode: int) -> int:
        if self.refuses_reads and not flags & os.O_WRONLY:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return os.open(path, flags, mode)

    def _pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwritev(fd, buffers, offset)

    def _preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if not self._fast.is_set():
            self.held += 1
            self._seconds += 2 * LOAD_SECONDS
            self._fast.wait()
        return os.preadv(fd, buffers, offset)


DISK = Disk()


class TroubledSpec(AsyncOffloadingSpec):
    """Whose tier's files lie on that disk, and which tells the time by it."""

    clock = staticmethod(DISK.clock)

    def make_tiers(self, settings: OffloaderSettings, layout: KVLayout, view: memoryview) -> list[SecondaryTierManager]:
        [tier] = settings.tiers
        assert isinstance(tier, FileSystemTierSettings)
        return [FileSystemTierManager(layout, view, tier.name, tier.root_dir, 2, 2, make_files=DISK.make_files)]
