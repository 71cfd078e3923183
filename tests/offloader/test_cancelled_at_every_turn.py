"""Calls that are cancelled after n turns of the loop, for every n until they get through.

Nothing in these stacks has a thread: the tier moves a block a turn and the copies a page a turn, so every state that
a call passes through is met, and met in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import pytest

from asyncoffload import Offloader
from asyncoffload.keys import OffloadKey
from tests.offloader.rig import Device, Kept, at_rest, keys_of, settings, turns
from tests.offloader.strikes import STRIKES, Strike
from tests.offloader.turn_handler import TurnHandler

LONG_ENOUGH = 60
"""Turns in which anything that was left running would have touched the device."""


@pytest.mark.parametrize("hints", [True, False], ids=["hinted", "probed"])
@pytest.mark.parametrize("strike", STRIKES)
async def test_load(strike: Strike[object], hints: bool) -> None:
    device = Device(10)
    keys, blocks, kept = keys_of("load", 10), list(range(10)), Kept(hints=hints)
    async with Offloader(
        settings(device, 8), kv_caches=device.kv_caches, tiers=[kept], handler=TurnHandler
    ) as offloader:
        for part in (slice(0, 5), slice(5, 10)):
            device.fill(keys[part], blocks[part])
            await offloader.store(keys[part], blocks[part])
            await offloader.settle()
        cancelled = 0
        for n in count():
            await offloader._manager.reset()
            # The first blocks are copied while the others are still on their way.
            await offloader.load(keys[:3], blocks[:3])
            device.poison()
            if await strike(n, offloader.load(keys, blocks)) is not None:
                break
            cancelled += 1
            device.poison()
            await turns(LONG_ENOUGH)
            assert device.untouched(blocks), f"written to after a cancellation in turn {n}"
            assert await at_rest(offloader)
        assert cancelled > 10
        assert device.holds(keys, blocks)


@pytest.mark.parametrize("strike", STRIKES)
async def test_store(strike: Strike[object]) -> None:
    device = Device(12)
    blocks, kept = list(range(12)), Kept()
    most = 0
    async with Offloader(
        settings(device, 8, slice_blocks=4), kv_caches=device.kv_caches, tiers=[kept], handler=TurnHandler
    ) as offloader:
        for n in count():
            keys = keys_of(f"store {n}", 12)
            device.fill(keys, blocks)
            if await strike(n, offloader.store(keys, blocks)) is not None:
                break
            device.poison()
            await turns(LONG_ENOUGH)
            most = max(most, await _stored_intact(offloader, device, keys))
            assert await at_rest(offloader)
        assert most == 12, "what was copied when the cancellation came counts"


async def _stored_intact(offloader: Offloader, device: Device, keys: Sequence[OffloadKey]) -> int:
    """How many of the keys can be loaded, each with the bytes that it had before the device was poisoned."""
    found = 0
    for key in keys:
        if (await offloader.load([key], [0])).blocks:
            assert device.holds([key], [0])
            found += 1
    return found


@pytest.mark.parametrize("strike", STRIKES)
async def test_lookup(strike: Strike[object]) -> None:
    device = Device(8)
    keys, kept = keys_of("lookup", 8), Kept(hints=False)
    async with Offloader(
        settings(device, 8), kv_caches=device.kv_caches, tiers=[kept], handler=TurnHandler
    ) as offloader:
        await offloader.store(keys, range(8))
        await offloader.settle()
        await offloader._manager.reset()
        for n in count():
            found = await strike(n, offloader.lookup(keys))
            assert await at_rest(offloader)
            if found is not None:
                assert found == 8
                break
        assert n > 1


@pytest.mark.parametrize("strike", STRIKES)
async def test_settle(strike: Strike[bool]) -> None:
    device = Device(8)
    kept = Kept()
    async with Offloader(
        settings(device, 8), kv_caches=device.kv_caches, tiers=[kept], handler=TurnHandler
    ) as offloader:

        async def settled() -> bool:
            await offloader.settle()
            return True

        for n in count():
            await offloader._manager.reset()
            keys = keys_of(f"settle {n}", 8)
            await offloader.store(keys, range(8))
            if await strike(n, settled()):
                break
        assert n > 5
        assert kept.tier.memory.get_num_blocks() >= 8
