"""A file-system tier on a disk that is slow, or full, when the test wants it to be."""

from __future__ import annotations

from typing import ClassVar

from asyncoffload.integrations.vllm.tiers import FileSystemTier
from asyncoffload.testing import FaultyDisk
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.format import BlockFormat


class TroubledTier(FileSystemTier):
    """Whose disk is that of all such tiers.

    Attributes:
        disk: sound at first.
    """

    disk: ClassVar[FaultyDisk] = FaultyDisk()

    def make_files(self, block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
        return self.disk.make_files(block_format, owner, direct)
