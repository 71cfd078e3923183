"""Tiers hear of blocks that are served from host memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from asyncoffload.keys import OffloadKey
from asyncoffload.managers.touching import MAX_WAITING, Touches
from asyncoffload.testing import Gate
from tests.managers.gated_tier import GatedTier
from tests.managers.tiered_stack import keys_of, tiered, until

Keys = Sequence[OffloadKey]


class TouchedTier(GatedTier):
    """Remembers what was touched, each time after a gate."""

    def __init__(self) -> None:
        super().__init__(memoryview(bytearray(64)))
        self.touched: list[Keys] = []
        self.touches: Gate[Keys] = Gate()

    async def touch(self, keys: Keys) -> None:
        self.fault("touch")
        await self.touches.passing(keys)
        self.touched.append(keys)


async def test_what_is_touched_is_passed_on_in_order() -> None:
    tier = TouchedTier()
    touches = Touches([GatedTier(memoryview(bytearray(64))), tier])
    for first in (0, 4):
        touches.add(keys_of(4, first))
    await until(lambda: len(tier.touched) == 2)
    assert tier.touched == [keys_of(4), keys_of(4, 4)]
    touches.add(keys_of(1, 9))
    await until(lambda: len(tier.touched) == 3)
    await touches.aclose()


async def test_a_manager_passes_on_what_it_is_told() -> None:
    async with tiered(8) as stack:
        tier = TouchedTier()
        stack.manager._touches = Touches([tier])
        await stack.store(keys_of(4))
        await stack.manager.touch(keys_of(4))
        await until(lambda: tier.touched == [keys_of(4)])


async def test_a_slow_tier_keeps_nobody_waiting_and_the_oldest_are_forgotten() -> None:
    tier = TouchedTier()
    touches = Touches([tier])
    with tier.touches.shut():
        touches.add(keys_of(1))
        await tier.touches.reached()
        for n in range(2 * MAX_WAITING):
            touches.add(keys_of(1, n))
    await until(lambda: len(tier.touched) == MAX_WAITING + 1)
    assert tier.touched[-1] == keys_of(1, 2 * MAX_WAITING - 1)
    await touches.aclose()


async def test_a_tier_that_raises_is_complained_about(caplog: pytest.LogCaptureFixture) -> None:
    tier, other = TouchedTier(), TouchedTier()

    def fail(call: str) -> None:
        raise ValueError(call)

    tier.fault = fail
    touches = Touches([tier, other])
    touches.add(keys_of(2))
    await until(lambda: other.touched)
    assert "touch: ValueError" in caplog.text
    await touches.aclose()


async def test_closing_leaves_what_waits() -> None:
    tier = TouchedTier()
    touches = Touches([tier])
    with tier.touches.shut():
        touches.add(keys_of(1))
        touches.add(keys_of(1, 1))
        await tier.touches.reached()
        await touches.aclose()
    touches.add(keys_of(1, 2))
    await asyncio.sleep(0)
    assert tier.touched == []


def test_without_a_tier_that_cares_nothing_is_kept() -> None:
    assert not Touches([GatedTier(memoryview(bytearray(64)))]).wanted
