"""Housekeeping goes on whatever the I/O workers do: it has threads of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

from asyncoffload.testing import FaultyDisk
from asyncoffload.testing.slots import Slots, some_keys
from asyncoffload.tiers.fs.format import file_bytes
from asyncoffload.types import KVGroup, KVLayout, Status
from tests.tiers.fs.test_bounds import bytes_below, make_tier, store_all, until

LAYOUT = KVLayout("share", "bfloat16", 16, (KVGroup((8192,)),))
BLOCK = file_bytes(8192)


async def test_it_makes_room_while_every_io_worker_is_busy(tmp_path: Path) -> None:
    quota, disk = 40 * BLOCK, FaultyDisk()
    slots, others = Slots(LAYOUT, 16), Slots(LAYOUT, 16)
    kept, more = some_keys(LAYOUT, 8), some_keys(LAYOUT, 120, "more")
    async with make_tier(tmp_path, slots, quota, make_files=disk.make_files) as keeper:
        await store_all(keeper, slots, kept)
        housekeeping = keeper._residence._housekeeping
        assert housekeeping is not None
        await until(lambda: housekeeping.is_ours)
        with disk.gates["read"].shut(), disk.gates["write"].shut():
            loads = [asyncio.create_task(keeper.load(slots.load_job(kept[n : n + 4], n))) for n in (0, 4)]
            stores = [asyncio.create_task(keeper.store(slots.store_job(some_keys(LAYOUT, 4, n), n))) for n in (8, 12)]
            await disk.gates["read"].reached(2)
            await disk.gates["write"].reached(2)
            assert keeper.pool_stats().threads == 4  # all of them are held
            async with make_tier(tmp_path, others, quota) as neighbour:
                await store_all(neighbour, others, more)
                assert neighbour.stats()["evicted_files"] == 0
            assert keeper.stats()["evicted_files"] >= 60
            assert bytes_below(tmp_path) <= quota
        await asyncio.wait(stores)
        outcomes = [outcome for load in loads for outcome in (await load).outcomes]
        for slot, (key, outcome) in enumerate(zip(kept, outcomes, strict=True)):
            assert outcome.status in (Status.DONE, Status.MISSING)
            assert not outcome.ok or slots.hold(slot, key)
