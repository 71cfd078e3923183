"""Of a prompt that moved in several batches, files lose the end first."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import torch
from pydantic import ByteSize

from asyncoffload.config import OffloaderSettings
from asyncoffload.core.layout import block_path
from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.offloader import Offloader
from asyncoffload.tiers.fs.format import file_bytes
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import KVLayout

BLOCK = 16 << 10
FILE = file_bytes(BLOCK)


def prompt(name: str, n: int) -> list[OffloadKey]:
    return [make_key(f"{name}{index:04}".encode().ljust(32, b".")) for index in range(n)]


def on_disk(root: Path, keys: list[OffloadKey]) -> list[bool]:
    (directory,) = (path.parent for path in root.rglob("config.json"))
    return [Path(block_path(str(directory), key)).exists() for key in keys]


async def test_a_prompt_of_many_batches_loses_its_end(tmp_path: Path) -> None:
    caches = [torch.zeros(128, BLOCK // 2, dtype=torch.bfloat16)]
    settings = OffloaderSettings(host_bytes=ByteSize(256 * BLOCK), slice_blocks=16)

    def files(layout: KVLayout, view: memoryview) -> FileSystemTierManager:
        return FileSystemTierManager(layout, view, "fs", tmp_path, 2, 2, quota=140 * FILE, now=lambda: 10**18)

    first = prompt("first", 128)
    async with Offloader(settings, kv_caches=caches, tiers=[files]) as offloader:
        await offloader.store(first, range(128))
        await offloader.settle()
        assert all(on_disk(tmp_path, first))
        for number in count():
            if sum(on_disk(tmp_path, first)) < 100:
                break
            await offloader.store(prompt(f"{number} more", 8), range(8))
            await offloader.settle()
    left = on_disk(tmp_path, first)
    assert left == sorted(left, reverse=True), "what is left is a prefix"
