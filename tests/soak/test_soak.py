"""Twenty seconds of everything at once: loads, stores, cancellations, deadlines, tiers and copies that fail."""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from asyncoffload import Offloader
from asyncoffload.keys import OffloadKey
from asyncoffload.testing import FaultyTier
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import ANONYMOUS, JobResult, KVLayout, LookupResult, RequestContext, Status, TransferJob
from tests.offloader.rig import CopyGate, Device, Leaks, MemoryTier, at_rest, settings, turns
from tests.offloader.storm import Storm

SECONDS = 20


class MoodyTier(FaultyTier[MemoryTier]):
    """The memory tier on a bad day: it raises, dawdles, and lets blocks rot."""

    def __init__(self, layout: KVLayout, view: memoryview) -> None:
        super().__init__(MemoryTier(layout, view, "moody", hints=False), seed=1, primary_kv_view=view)
        self._dice = random.Random(1)
        bad_mood = OSError(errno.EIO, "in a bad mood")
        for verb in ("lookup", "store", "load"):
            self.raises(verb, bad_mood, chance=0.1)
        self.answers("load", Status.CORRUPT, chance=0.02)

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> Sequence[LookupResult]:
        await self._dawdle()
        return await super().lookup(keys, ctx)

    async def store(self, job: TransferJob) -> JobResult:
        await self._dawdle()
        return await super().store(job)

    async def load(self, job: TransferJob) -> JobResult:
        await self._dawdle()
        return await super().load(job)

    async def _dawdle(self) -> None:
        await turns(self._dice.choice([0, 0, 3, 40]))


async def vandalise(root: Path, gate: CopyGate, until: float) -> int:
    """Damage files, and let copies fail now and then; returns how many files were damaged."""
    dice, damaged, rounds = random.Random(2), 0, itertools.count()
    run = asyncio.get_running_loop().run_in_executor
    with ThreadPoolExecutor(1) as vandals:
        while time.monotonic() < until:
            gate.failing = {dice.choice(["store", "load"])} if next(rounds) % 3 == 0 else set()
            damaged += await run(vandals, damage_a_file, root, dice)
            await turns(100)
    gate.failing = set()
    return damaged


def damage_a_file(root: Path, dice: random.Random) -> int:
    """Truncate, flip or remove one block; 0 if there is none."""
    files = sorted(root.rglob("*.bin"))
    if not files:
        return 0
    victim = dice.choice(files)
    try:
        content = bytearray(victim.read_bytes())
        match dice.randrange(3):
            case 0:
                victim.write_bytes(content[: dice.randrange(len(content))])
            case 1:
                content[dice.randrange(len(content))] ^= 0xFF
                victim.write_bytes(content)
            case _:
                victim.unlink()
    except (FileNotFoundError, ValueError):  # set aside meanwhile, or being written
        return 0
    return 1


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_soak(tmp_path: Path) -> None:
    leaks, device, gate = Leaks(), Device(24 * 8, groups=(2,)), CopyGate()
    plan = settings(device, 40, slice_blocks=3, cascade_blocks=10)

    def files(layout: KVLayout, view: memoryview) -> FileSystemTierManager:
        return FileSystemTierManager(layout, view, "files", tmp_path, 2, 2)

    until = time.monotonic() + SECONDS
    async with Offloader(plan, kv_caches=device.kv_caches, tiers=[MoodyTier, files], handler=gate.handler) as offloader:
        calls = Storm(offloader, device, callers=24, seed=3)
        _, damaged = await asyncio.gather(
            calls.rage(lambda: time.monotonic() < until, deadlines=True), vandalise(tmp_path, gate, until)
        )
        assert await at_rest(offloader)
        assert device.untouched(range(device.n_blocks))
        counts = calls.counts
        assert min(counts[what] for what in ("done", "cancelled", "loaded", "failed")) > 0, counts
        assert damaged > 0
        tiers = offloader.stats().tiers
        assert tiers["moody"]["failed"] > 0
        assert tiers["files"]["load_corrupt"] > 0
    assert leaks.none()
    assert device.untouched(range(device.n_blocks))
