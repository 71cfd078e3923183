"""A file is written to only when nobody can notice."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from asyncoffload.core.layout import block_path, directory_name
from asyncoffload.keys import OffloadKey
from asyncoffload.testing.slots import Slots, some_keys
from asyncoffload.tiers.fs.format import file_bytes
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.recycling import take_over
from asyncoffload.types import KVGroup, KVLayout

LAYOUT = KVLayout("recycling", "bfloat16", 16, (KVGroup((8192,)),))


def test_a_file_that_nobody_has_open_is_taken_over(tmp_path: Path) -> None:
    path, temporary = tmp_path / "block", tmp_path / "new directory" / "temporary"
    path.write_bytes(b"old")
    assert take_over(str(path), str(temporary))
    assert not path.exists()
    assert temporary.read_bytes() == b"old"


def test_a_file_that_somebody_reads_stays_with_him(tmp_path: Path) -> None:
    path, temporary = tmp_path / "block", tmp_path / "temporary"
    path.write_bytes(b"old")
    with path.open("rb") as reader:
        assert not take_over(str(path), str(temporary))
        assert os.listdir(tmp_path) == []
        assert reader.read() == b"old"


def test_a_file_with_another_name_keeps_its_bytes(tmp_path: Path) -> None:
    path, backup, temporary = tmp_path / "block", tmp_path / "backup", tmp_path / "temporary"
    path.write_bytes(b"old")
    backup.hardlink_to(path)
    assert not take_over(str(path), str(temporary))
    assert backup.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["backup"]


def open_all(directory: Path, keys: list[OffloadKey]) -> list[tuple[int, bytes]]:
    """Descriptors of blocks, and what they hold."""
    found = [os.open(block_path(str(directory), key), os.O_RDONLY) for key in keys]
    return [(fd, os.pread(fd, 1 << 20, 0)) for fd in found]


async def test_eviction_leaves_its_bytes_to_whoever_reads(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 16)
    async with FileSystemTierManager(LAYOUT, slots.view, "fs", tmp_path, 2, 2, quota=16 * file_bytes(8192)) as tier:
        assert (await tier.store(slots.store_job(keys))).success
        readers = open_all(tmp_path / directory_name(LAYOUT), list(keys[8:]))
        for number in range(4):
            left = some_keys(LAYOUT, 16, number)
            while left:
                left = (await tier.store(slots.store_job(left))).failed_keys
                await asyncio.sleep(0.001)
        assert tier.stats()["recycled_files"] > 0
        for fd, content in readers:
            assert os.pread(fd, 1 << 20, 0) == content
            os.close(fd)
