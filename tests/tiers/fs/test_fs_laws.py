"""The file system tier under the laws."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import xxhash

from asyncoffload.core.layout import block_path, directory_name, fingerprint
from asyncoffload.keys import OffloadKey
from asyncoffload.testing import TierLaws
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import KVLayout


def file_of(place: Path, layout: KVLayout, key: OffloadKey) -> Path:
    """Where a block lies."""
    return Path(block_path(str(place / directory_name(layout)), key))


def block_file(layout: KVLayout, key: OffloadKey, payload: bytes) -> bytes:
    """A block file as docs/on-disk-format.md describes it, made without the code under test."""
    header = b"\x89AOKV\r\n\x1a" + (1).to_bytes(2, "little") + len(key).to_bytes(2, "little")
    header += layout.rank.to_bytes(4, "little") + fingerprint(layout) + len(payload).to_bytes(8, "little")
    header += key.ljust(68, b"\0")
    header = header.ljust(4088, b"\0")
    payload += bytes(-len(payload) % 4096)
    return header + xxhash.xxh3_64_intdigest(header + payload).to_bytes(8, "little") + payload


class TestFileSystemTier(TierLaws):
    persistent = True

    def make_tier(self, layout: KVLayout, view: memoryview, place: Path) -> SecondaryTierManager:
        self.place = place
        return FileSystemTierManager(layout, view, "fs", place, 3, 3)

    async def raw_read(self, tier: SecondaryTierManager, key: OffloadKey) -> bytes | None:  # noqa: ARG002
        nbytes = self.layout().group_bytes(int.from_bytes(key[-4:], "big"))
        try:
            return self._file(key).read_bytes()[4096 : 4096 + nbytes]
        except FileNotFoundError:
            return None

    async def raw_write(self, tier: SecondaryTierManager, key: OffloadKey, payload: bytes) -> None:  # noqa: ARG002
        self._file(key).parent.mkdir(parents=True, exist_ok=True)
        self._file(key).write_bytes(block_file(self.layout(), key, payload))

    async def raw_delete(self, tier: SecondaryTierManager, key: OffloadKey) -> None:  # noqa: ARG002
        self._file(key).unlink(missing_ok=True)

    async def raw_damage(self, tier: SecondaryTierManager, key: OffloadKey) -> None:  # noqa: ARG002
        with self._file(key).open("r+b") as file:
            file.seek(4096)
            byte = file.read(1)[0]
            file.seek(4096)
            file.write(bytes([byte ^ 1]))

    @contextmanager
    def broken_storage(self, tier: SecondaryTierManager) -> Iterator[None]:
        """A file where the directory should be."""
        directory = cast("FileSystemTierManager", tier)._space.directory
        os.rename(directory, directory + ".away")
        Path(directory).touch()
        try:
            yield
        finally:
            os.unlink(directory)
            os.rename(directory + ".away", directory)

    def _file(self, key: OffloadKey) -> Path:
        return file_of(self.place, self.layout(), key)


class TestDurableFileSystemTier(TestFileSystemTier):
    def make_tier(self, layout: KVLayout, view: memoryview, place: Path) -> SecondaryTierManager:
        self.place = place
        return FileSystemTierManager(layout, view, "fs", place, 3, 3, durability="fsync")
