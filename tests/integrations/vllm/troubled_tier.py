"""A file-system tier on a disk that is slow, or full, when the test wants it to be."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from typing import ClassVar

from asyncoffload.integrations.vllm.tiers import FileSystemTier
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.format import BlockFormat


def _preadv(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
    time.sleep(TroubledTier.read_seconds)
    return os.preadv(fd, buffers, offset)


def _pwritev(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
    if TroubledTier.full:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return os.pwritev(fd, buffers, offset)


class TroubledTier(FileSystemTier):
    """Whose trouble is that of all such tiers.

    Attributes:
        read_seconds: how long every read takes.
        full: whether the disk has no room left.
    """

    read_seconds: ClassVar[float] = 0.0
    full: ClassVar[bool] = False

    def make_files(self, block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
        return BlockFiles(block_format, owner, direct=direct, preadv=_preadv, pwritev=_pwritev)
