"""Four processes on one root, killed at any moment: nothing is corrupt, the account is exact, the bound holds."""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import suppress
from pathlib import Path

import pytest

from asyncoffload.keys import OffloadKey
from asyncoffload.testing.slots import Slots
from asyncoffload.tiers.fs.counting import has_files
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.usage import Usage
from asyncoffload.types import Status
from tests.tiers.fs import sharing_processes as sharing

KILLS = int(os.environ.get("ASYNCOFFLOAD_KILLS", "24"))
"""How many processes are killed; 200 take some minutes."""

PROCESSES = 4


def bytes_below(root: Path, pattern: str = "*_g*/*") -> int:
    """Bytes of the files below a root; what is removed meanwhile counts or does not."""
    nbytes = 0
    for path in root.rglob(pattern):
        with suppress(FileNotFoundError):
            nbytes += path.stat().st_size
    return nbytes


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("blocks", [100, 1_000_000], ids=["evicting", "with room"])
def test_kills(tmp_path: Path, blocks: int) -> None:
    chance, quota, hits = random.Random(1), blocks * sharing.BLOCK, 0
    upcoming = start(tmp_path, quota, 0)
    try:
        for number in range(1, KILLS // PROCESSES + 1):
            running, upcoming = upcoming, start(tmp_path, quota, number)
            bounds = Usage(str(tmp_path), is_empty=lambda: not has_files(str(tmp_path)), quota=quota)
            for process in running:
                process.begin()
            for process in chance.sample(running, PROCESSES):
                process.wait_for_batches(chance.randrange(1, 4))
                # A slice a process, which is a block where room is short.
                assert bytes_below(tmp_path) <= quota + PROCESSES * sharing.BLOCK
                process.kill()
            bounds.leave()
            hits += any(tmp_path.rglob("*.tmp"))
            stored = [key for process in running for key in process.stored]
            asyncio.run(check(tmp_path, quota, stored, may_miss=blocks == 100))
            if blocks > 100:  # or every round takes longer than the one before
                remove_blocks(tmp_path)
    finally:
        for process in upcoming:
            process.kill()
    # Where blocks are evicted, most stores are shed, and survivors collect what the dead have left.
    assert blocks == 100 or hits >= KILLS // PROCESSES // 3, f"only {hits} rounds hit a write: the test shows nothing"


def remove_blocks(root: Path) -> None:
    """From outside, while nobody is there."""
    for path in root.rglob("*.bin"):
        path.unlink()


def start(root: Path, quota: int, number: int) -> list[sharing.SharingProcess]:
    """The processes of a round, getting ready; one of them has no bounds."""
    return [sharing.SharingProcess(root, quota if index else None, f"{number}.{index}") for index in range(PROCESSES)]


async def counted_bytes(tier: FileSystemTierManager, root: Path) -> int:
    """The bytes of a root once the account has exactly these; it may still evict, and count a file after it is gone.

    Raises:
        AssertionError: something has to be counted anew.
        TimeoutError: the account is wrong, and stays so.
    """
    async with asyncio.timeout(60):
        while True:
            before = tier.stats()
            nbytes = bytes_below(root)
            after = tier.stats()
            assert before["counted"] and after["counted"], "a clean start leaves no doubts"  # noqa: PT018
            if before["used_bytes"] == after["used_bytes"] == nbytes:
                return nbytes
            await asyncio.sleep(0.005)


async def check(root: Path, quota: int, stored: list[OffloadKey], *, may_miss: bool) -> None:
    """What the dead have left is whole and counted."""
    slots = Slots(sharing.LAYOUT, 64)
    async with FileSystemTierManager(sharing.LAYOUT, slots.view, "fs", root, 2, 2, quota=quota) as tier:
        while not tier.stats()["counted"]:  # noqa: ASYNC110 (the housekeeping comes by itself)
            await asyncio.sleep(0.005)
        nbytes = await counted_bytes(tier, root)
        assert nbytes <= quota
        assert bytes_below(root, "*.tmp") == bytes_below(root, "*.bad") == 0
        for begin in range(0, len(stored), 64):
            keys = stored[begin : begin + 64]
            result = await tier.load(slots.load_job(keys))
            for slot, (key, outcome) in enumerate(zip(keys, result.outcomes, strict=True)):
                assert outcome.ok or (may_miss and outcome.status is Status.MISSING)
                assert not outcome.ok or slots.hold(slot, key)
        assert tier.stats().get("load_corrupt", 0) == 0
