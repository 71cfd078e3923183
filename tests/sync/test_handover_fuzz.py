"""Both threads at once: a stepping engine, and a loop that plans whenever it can have the core."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.errors import TierUnavailable
from asyncoffload.keys import OffloadKey
from asyncoffload.memory.region import HostRegion
from asyncoffload.sync.manager import SyncOffloadingManager
from asyncoffload.testing.slots import content_of as payload_of
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import KVGroup, KVLayout
from tests.managers.gated_tier import content_of
from tests.managers.test_tiering_random_histories import Moody
from tests.sync.manager_stack import SteppingStack, keys_of, named, stepping
from tests.sync.stepping_engine import Engine, Request

CHAINS = [keys_of(n, start) for n, start in [(4, 0), (8, 4), (14, 12), (3, 26), (10, 30), (24, 40), (1, 64)]]
ALL_KEYS = [key for chain in CHAINS for key in chain]
CHAINS += [CHAINS[0] + CHAINS[1], CHAINS[0] + CHAINS[2], CHAINS[4][:5] + CHAINS[3]]


@pytest.fixture(autouse=True)
def _threads_take_turns_quickly() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    yield
    sys.setswitchinterval(interval)


def engine_over(stack: SteppingStack, dice: random.Random) -> Engine:
    region = stack.region

    def write(key: OffloadKey, slot: int) -> None:
        region.slot(slot)[:] = content_of(key)

    def holds(key: OffloadKey, slot: int) -> bool:
        return bytes(region.slot(slot)) == content_of(key)

    return Engine(stack.manager, CHAINS, write, holds, dice, "t1")


def calm(stack: SteppingStack) -> None:
    """Make every tier open and reliable."""
    for tier in stack.tiers:
        tier.fault = lambda _: None
        tier.miscount = 0
        tier.outcomes.clear()
    stack.open_all()


@pytest.mark.parametrize("seed", range(30))
def test_steps_against_moody_tiers_leave_nothing_over(seed: int) -> None:
    dice = random.Random(seed)
    with stepping(
        dice.choice([8, 20, 40]), 2, promoting=dice.choice([2, 8, 64]), cascading=dice.choice([1, 4, 32])
    ) as stack:
        moods = [Moody(tier, dice) for tier in stack.tiers]
        for mood in moods:
            mood.tier.keep(dice.sample(ALL_KEYS, len(ALL_KEYS) // 2))
        engine = engine_over(stack, dice)
        try:
            for _ in range(150):
                engine.step()
                if dice.random() < 0.3:
                    stack.loop.post(dice.choice(moods).turn)
                if dice.random() < 0.05:
                    with suppress(TierUnavailable):
                        stack.manager.drain_jobs(timeout=0.005)
        finally:
            stack.on_loop(lambda: None)  # the last turn of a mood is over
            calm(stack)
        engine.finish()


@pytest.mark.parametrize("seed", range(8))
def test_closing_under_load_leaves_nothing_over(seed: int) -> None:
    dice = random.Random(seed)
    with stepping(20, 2, promoting=8) as stack:
        moods = [Moody(tier, dice) for tier in stack.tiers]
        for mood in moods:
            mood.tier.keep(dice.sample(ALL_KEYS, len(ALL_KEYS) // 2))
        engine = engine_over(stack, dice)
        for _ in range(60):
            engine.step()
            if dice.random() < 0.3:
                stack.loop.post(dice.choice(moods).turn)
        stack.on_loop(lambda: None)
        with suppress(TierUnavailable):
            stack.manager.shutdown(timeout=0.002)
        calm(stack)
        while engine.storing:
            engine.end_store()
        while any(request.loading for request in engine.requests):
            engine.end_load()


@pytest.mark.parametrize("seed", range(4))
def test_steps_against_real_files_leave_nothing_over(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    layout = KVLayout("fuzz", "bfloat16", 16, (KVGroup((4096,)),))
    region = HostRegion(dice.choice([12, 30]), layout.block_bytes)
    loop = LoopThread.shared()

    async def make() -> FileSystemTierManager:
        tier = FileSystemTierManager(layout, region.view, "fs", tmp_path, 3, 3)
        await tier.start()
        return tier

    tier = loop.run(make)
    manager = SyncOffloadingManager(
        region, [tier], promotion_bytes=dice.choice([4, 64]) * region.slot_bytes, cascade_blocks=dice.choice([4, 30])
    )
    try:

        def write(key: OffloadKey, slot: int) -> None:
            region.slot(slot)[:] = payload_of(key, region.slot_bytes)

        def holds(key: OffloadKey, slot: int) -> bool:
            return bytes(region.slot(slot)) == payload_of(key, region.slot_bytes)

        engine = Engine(manager, CHAINS, write, holds, dice, "fs")
        for _ in range(200):
            engine.step()
        engine.finish()
        manager.reset()
        for key in ALL_KEYS:
            engine.see_answered(Request(named("last"), [key]))
            manager.end_request("last")
            manager.drain_jobs()
        counts = manager.tier_counts()["fs"]
        assert counts["promoted"] or not counts["stored"]
        for key, slot in manager._primary.table.ready.items():
            assert holds(key, slot)
        assert not manager.stats().pinned
        assert not manager.has_pending_work()
        manager.shutdown()
        assert not any(map(region.is_held, range(region.n_slots)))
    finally:
        loop.run(tier.aclose)


@pytest.mark.parametrize("seed", range(6))
def test_the_loop_ends_what_a_step_began_without_another_call(seed: int) -> None:
    dice = random.Random(seed)
    with stepping(16, 2, promoting=dice.choice([1, 3]), cascading=dice.choice([1, 4])) as stack:
        for tier in stack.tiers:
            tier.keep(dice.sample(ALL_KEYS, len(ALL_KEYS) // 2))
        engine = engine_over(stack, dice)
        conductor = stack.manager._conductor
        for _ in range(60):
            engine.step()
            stack.until(lambda: conductor.idle)
        engine.finish()


@pytest.mark.parametrize("seed", range(3))
def test_steps_without_a_pause_do_not_starve_the_loop(seed: int) -> None:
    dice = random.Random(seed)
    with stepping(16, 2, promoting=2) as stack:
        for tier in stack.tiers:
            tier.keep(ALL_KEYS)
        keys = dice.choice(CHAINS)[:12]
        ctx = named("r")
        hits = 0
        while hits < len(keys):
            with stack.manager.step():
                hits = stack.manager.lookup(keys, ctx)
        stack.manager.end_request("r")
