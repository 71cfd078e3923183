"""Random callers who come, wait, leave, are cancelled and too late, over tiers that answer when they please."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest

from asyncoffload.errors import BlocksUnavailable, CapacityError, ClosedError
from asyncoffload.keys import OffloadKey
from asyncoffload.testing import Gate
from asyncoffload.types import DirtyVictims, Priority, RequestContext, Status, TransferJob, WritePolicy
from tests.managers.gated_tier import GatedTier, content_of
from tests.managers.tiered_stack import Stack, keys_of

N_KEYS = 40
ALL_KEYS = keys_of(N_KEYS)
TROUBLE = [Status.MISSING, Status.CORRUPT, Status.FAILED, Status.TIMED_OUT, Status.SHED]


class Moody:
    """Makes a tier slow, forgetful and unreliable, by a seed."""

    def __init__(self, tier: GatedTier, dice: random.Random) -> None:
        self.tier = tier
        self.dice = dice
        tier.fault = lambda _: self.fault()

    def fault(self) -> None:
        """Raise now and then."""
        if self.dice.random() < 0.03:
            raise self.dice.choice([OSError(5, "io"), TimeoutError(), RuntimeError(), asyncio.CancelledError()])

    def turn(self) -> None:
        """Change something about the tier."""
        gates: list[Gate[Any]] = [self.tier.lookups, self.tier.loads, self.tier.stores, self.tier.halfway]
        gate = self.dice.choice(gates)
        if self.dice.random() < 0.4:
            gate.shut(after=self.dice.randrange(4))
        else:
            gate.open()
        self.tier.knows = self.dice.random() < 0.5
        self.tier.miscount = self.dice.choice([0] * 12 + [-1, 1])
        key = self.dice.choice(ALL_KEYS)
        match self.dice.randrange(4):
            case 0:
                self.tier.outcomes[key] = self.dice.choice(TROUBLE)
            case 1:
                self.tier.outcomes.clear()
            case 2:
                if self.tier.blocks.pop(key, None) is not None:
                    self.tier.events.removed([key])
            case 3:
                self.tier.keep([key])


class Caller:
    """One caller of the manager, whose every step checks what it was given."""

    def __init__(self, stack: Stack, dice: random.Random) -> None:
        self.stack = stack
        self.dice = dice

    def keys(self) -> list[OffloadKey]:
        start = self.dice.randrange(N_KEYS)
        return ALL_KEYS[start : start + self.dice.randrange(1, 14)]

    def context(self) -> RequestContext:
        return RequestContext(
            priority=self.dice.choice([Priority.DEMAND, Priority.PREFETCH]),
            deadline=self.dice.choice([None, None, None, self.stack.clock.now + self.dice.choice([-1.0, 3.0])]),
            tiers=self.dice.choice([None, None, None, frozenset({"t0"}), frozenset({"t1"}), frozenset()]),
        )

    async def linger(self) -> None:
        for _ in range(self.dice.randrange(12)):
            await asyncio.sleep(0)

    async def run(self) -> None:
        manager, keys, ctx = self.stack.manager, self.keys(), self.context()
        match self.dice.randrange(6):
            case 0:
                assert 0 <= await manager.lookup(keys, ctx) <= len(keys)
            case 1:
                with suppress(BlocksUnavailable):
                    spec = await manager.prepare_load(keys, ctx)
                    try:
                        self.stack.check(keys, spec)
                        await self.linger()
                        self.stack.check(keys, spec)
                    finally:
                        await manager.complete_load(keys)
            case 2:
                async with manager.loading(keys, ctx, streaming=True) as lease:
                    async for part in lease.parts():
                        self.stack.check(part.keys, part.spec)
                        await self.linger()
                    self.stack.check(lease.keys, lease.spec)
            case 3 | 4:
                async with manager.loading(keys, ctx) as lease:
                    self.stack.check(lease.keys, lease.spec)
                    await self.linger()
                    self.stack.check(lease.keys, lease.spec)
            case 5:
                with suppress(CapacityError):
                    async with manager.storing(keys[:6], ctx, wait=self.dice.random() < 0.7) as store:
                        for key, slot in zip(store.keys, store.spec.block_ids.tolist(), strict=True):
                            self.stack.region.slot(slot)[:] = content_of(key)
                        await self.linger()


async def history(
    seed: int, n_callers: int, write_policy: WritePolicy = "write_through", dirty_victims: DirtyVictims = "drop"
) -> None:
    dice = random.Random(seed)
    stack = Stack(
        dice.choice([8, 20, 30]),
        2,
        promoting=dice.choice([2, 8, 64]),
        cascading=dice.choice([1, 4, 32]),
        write_policy=write_policy,
        dirty_victims=dirty_victims,
    )
    moods = [Moody(tier, dice) for tier in stack.tiers]
    for tier in stack.tiers:
        tier.keep(dice.sample(ALL_KEYS, N_KEYS // 2))
    callers: list[asyncio.Task[None]] = []
    for _ in range(n_callers):
        callers.append(asyncio.create_task(Caller(stack, dice).run()))
        if dice.random() < 0.4:
            dice.choice(moods).turn()
        if dice.random() < 0.3:
            dice.choice(callers).cancel()
        if dice.random() < 0.03:
            await stack.manager.reset()
        stack.clock.now += dice.random()
        for _ in range(dice.randrange(4)):
            await asyncio.sleep(0)
    if dice.random() < 0.5:
        await at_rest(stack, callers)
        await stack.manager.aclose()
    else:
        closing = asyncio.create_task(stack.manager.aclose(drain=dice.random() < 0.5))
        await at_rest(stack, callers)
        await closing
    stack.assert_nothing_left()
    check_resident(stack)
    assert dirty_victims == "drop" or stack.manager.stats().lost == 0


async def at_rest(stack: Stack, callers: list[asyncio.Task[None]]) -> None:
    """Let everybody end."""
    for tier in stack.tiers:
        tier.open_all()
        tier.fault = lambda _: None
    stack.clock.now += 1000
    for result in await asyncio.gather(*callers, return_exceptions=True):
        if result is not None and not isinstance(result, (asyncio.CancelledError, ClosedError)):
            raise result


def check_resident(stack: Stack) -> None:
    """Every block that counts as readable has its bytes."""
    for key, slot in stack.manager._primary.table.ready.items():
        assert bytes(stack.region.slot(slot)) == content_of(key)


@pytest.mark.parametrize("batch", range(8))
async def test_random_histories_end_with_nothing_left(batch: int) -> None:
    for seed in range(batch * 6, batch * 6 + 6):
        await history(seed, 60)


@pytest.mark.parametrize("dirty_victims", ["drop", "refuse"])
@pytest.mark.parametrize("write_policy", ["write_through", "demote"])
@pytest.mark.parametrize("batch", range(3))
async def test_random_histories_of_every_write_policy_end_with_nothing_left(
    batch: int, write_policy: WritePolicy, dirty_victims: DirtyVictims
) -> None:
    for seed in range(1000 + batch * 6, 1000 + batch * 6 + 6):
        await history(seed, 60, write_policy, dirty_victims)


async def test_thousands_of_cancels_leave_nothing_and_write_nothing_late() -> None:
    dice = random.Random(7)
    stack = Stack(24)
    stack.tier.keep(ALL_KEYS)
    watched: list[TransferJob] = []
    for _ in range(800):
        start = dice.randrange(N_KEYS - 8)
        callers = [asyncio.create_task(stack.load(ALL_KEYS[start : start + 8])) for _ in range(2)]
        for _ in range(dice.randrange(14)):
            await asyncio.sleep(0)
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        watched.extend(stack.tier.running[-1:])
    assert watched, "no cancellation ever met a running transfer"
    await stack.manager.aclose()
    stack.assert_nothing_left()
    check_resident(stack)
