"""Minutes of everything at once on a bounded root: nothing grows, nothing leaks, no byte is wrong.

Callers load, store, prefetch and look up, with deadlines and cancelled at any moment; the disk is full, refuses, tears,
flips and hangs; somebody damages files; another process works on the same blocks, and is killed again and again. The
stack is restarted in the middle, on another event loop, over what is left.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from asyncoffload import Offloader
from asyncoffload.tiers.fs import ledger
from tests.offloader.rig import Leaks, at_rest, turns
from tests.soak.growth import MIB, Growth
from tests.soak.neighbour import Neighbour
from tests.soak.stack import JOURNAL_BLOCKS, SoakTier, device_for, make_offloader
from tests.soak.test_soak import damage_a_file
from tests.soak.traffic import Traffic

SECONDS = float(os.environ.get("ASYNCOFFLOAD_SOAK_SECONDS", "180"))
"""How long it takes, without the moments in which samples are taken; 1,200 before a release."""

SAMPLES, WARM_UP = 24, 8
"""Of each half."""

LIVES = 6
"""Neighbours in each half, one after the other, all of which are killed."""

CALLERS = 12

MOST_OBJECTS = 500
"""How many more objects there may be at the end of thousands of calls: some containers fill up for long."""

MOST_BYTES = 16 * MIB

LOOPS: tuple[Callable[[], asyncio.AbstractEventLoop], ...] = (asyncio.SelectorEventLoop, uvloop.new_event_loop)


class Half:
    """One stack, from its start on until it is closed.

    Args:
        root: where its files lie; what an earlier stack and its neighbours left is there.
        seed: decides what happens.
        growth: to be sampled.

    Attributes:
        counts: what callers, the tier and the vandal counted.
    """

    def __init__(self, root: Path, seed: int, growth: Growth) -> None:
        self.counts: Counter[str] = Counter()
        self._root = root
        self._seed = seed
        self._growth = growth
        self._dice = random.Random(seed)
        self._goes_on = True

    async def run(self, seconds: float) -> None:
        device = device_for(CALLERS)
        device.poison()
        offloader, tiers = make_offloader(device, self._root, seed=self._seed)
        async with offloader:
            traffic = Traffic(offloader, device, callers=CALLERS, seed=self._seed)
            async with asyncio.TaskGroup() as group:
                group.create_task(traffic.run(lambda: self._goes_on))
                for life in range(LIVES):
                    with await asyncio.to_thread(Neighbour, self._root, LIVES * self._seed + life) as neighbour:
                        for _ in range(SAMPLES // LIVES):
                            await self._vandalise(seconds / SAMPLES)
                            async with traffic.paused():
                                await offloader.settle()
                                await all_slots_are_back(offloader)
                                tiers[0].fail_anew()
                                self._growth.take()
                        await asyncio.to_thread(neighbour.kill)
                        self.counts["kills"] += 1
                self._goes_on = False
            self._count(tiers[0], traffic)
            tiers[0].recover()
            await all_slots_are_back(offloader)
        assert device.untouched(range(device.n_blocks)), "written to after everything had ended"

    async def _vandalise(self, seconds: float) -> None:
        """Damage files now and then."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.counts["files damaged"] += await asyncio.to_thread(damage_a_file, self._root, self._dice)
            await asyncio.sleep(seconds / 50)

    def _count(self, tier: SoakTier, traffic: Traffic) -> None:
        self.counts += traffic.counts
        self.counts += Counter({f"tier: {name}": int(value) for name, value in tier.stats().items()})


async def all_slots_are_back(offloader: Offloader) -> None:
    """Once nothing moves any more, and calls that were given up have returned."""
    async with asyncio.timeout(60):
        while not await at_rest(offloader):
            await turns(1)


def run_half(root: Path, seed: int) -> Counter[str]:
    """What was counted; the process must be what it was before."""
    loop = LOOPS[seed]
    loop().close()  # what a loop opens once for all is no leak
    leaks, growth = Leaks(), Growth(WARM_UP)
    try:
        half = Half(root, seed, growth)
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(half.run(SECONDS / len(LOOPS)))
    finally:
        growth.close()
    assert leaks.none()
    print(growth.report())
    judge(growth)
    return half.counts


def judge(growth: Growth) -> None:
    assert growth.over_all("objects") <= MOST_OBJECTS, growth.report()
    assert growth.over_all("rss") <= MOST_BYTES, growth.report()
    middle = (WARM_UP + SAMPLES) // 2
    for what in ("threads", "descriptors", "tasks"):
        values = [getattr(sample, what) for sample in growth.samples]
        assert max(values[middle:]) <= max(values[:middle]) + 1, growth.report()  # one may be on its way out


@pytest.mark.slow
@pytest.mark.timeout(4 * SECONDS + 600)
def test_nothing_grows(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "TROUBLES", JOURNAL_BLOCKS)  # full before the first sample, on any machine
    # pytest keeps every record, and what it names, until the test has ended: growth, but not the library's.
    caplog.set_level(logging.CRITICAL, "asyncoffload")
    root = tmp_path / "root"
    root.mkdir()
    counts = sum((run_half(root, seed) for seed in range(len(LOOPS))), Counter[str]())
    print(dict(sorted(counts.items())))
    for verb in ("load", "store", "prefetch", "lookup"):
        assert counts[f"{verb} done"] > 0
        assert counts[f"{verb} cancelled"] > 0
    for what in ("blocks from files", "files damaged", "tier: load_corrupt", "tier: load_failed", "tier: store_failed"):
        assert counts[what] > 0, what
    assert counts["tier: evicted_files"] + counts["tier: store_shed"] > 0
    assert counts["kills"] == len(LOOPS) * LIVES
