"""What an offloader counts of its calls, its blocks and its copies."""

from __future__ import annotations

import asyncio
import time

import pytest

from asyncoffload import InvalidArgument, Offloader, RequestContext, TransferError
from asyncoffload.offloader.stats import OffloaderStats, VerbStats
from asyncoffload.types import Status
from tests.offloader.rig import CopyGate, Device, Kept, keys_of, only_in_tiers, settings
from tests.offloader.turn_handler import TurnHandler


def _ends(verb: VerbStats) -> tuple[int, int, int, int]:
    assert verb.durations.count == verb.ok + verb.cancelled + verb.failed
    return verb.in_flight, verb.ok, verb.cancelled, verb.failed


def _missed(stats: OffloaderStats) -> dict[Status, int]:
    assert stats.blocks is not None
    return {status: count for status, count in stats.blocks.missed.items() if count}


async def test_blocks_by_what_became_of_them() -> None:
    device, kept = Device(16), Kept()
    keys = keys_of("count", 8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys[:6])
        kept.tier.faults.damage(keys[4:5])
        assert await offloader.lookup(keys) == 6
        assert (await offloader.load(keys, range(8))).blocks == 4
        assert (await offloader.load(keys[:4], range(4))).blocks == 4
        await offloader.store(keys, range(8))
        stats = offloader.stats()
        blocks = stats.blocks
        assert blocks is not None
        assert (blocks.queried, blocks.found) == (8, 6)
        assert blocks.loaded == {"CPU": 4, "gated": 4}
        assert _missed(stats) == {Status.CORRUPT: 4}
        # A promotion beyond the hole may have landed, so that its block need not be stored again.
        assert (blocks.stored + blocks.present, blocks.shed) == (6 + 8, 0)
        assert stats.copies["load"].nbytes == 8 * device.block_bytes
        assert stats.copies["store"].nbytes == blocks.stored * device.block_bytes
        assert sum(engine.nbytes for engine in stats.engines.values()) == sum(c.nbytes for c in stats.copies.values())


async def test_calls_under_way_cancelled_and_failed() -> None:
    device, gate, kept = Device(16), CopyGate(), Kept()
    keys = keys_of("calls", 8)
    async with Offloader(
        settings(device, 8), kv_caches=device.kv_caches, handler=gate.handler, tiers=[kept]
    ) as offloader:
        with gate.shut():
            storing = asyncio.create_task(offloader.store(keys, range(8)))
            await gate.arrived.acquire()
            stats = offloader.stats()
            assert _ends(stats.verbs["store"]) == (1, 0, 0, 0)
            assert stats.copies["store"].in_flight == 1
            storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        gate.failing = {"store"}
        with pytest.raises(TransferError):
            await offloader.store(keys, range(8))
        with pytest.raises(InvalidArgument):
            await offloader.load(keys, range(3))
        stats = offloader.stats()
        assert _ends(stats.verbs["store"]) == (0, 0, 1, 1)
        assert _ends(stats.verbs["load"]) == (0, 0, 0, 0)
        assert stats.copies["store"].in_flight == 0
        stopped_too_late = stats.copies["store"].nbytes // (8 * device.block_bytes)
        assert stats.copies["store"].failed == 2 - stopped_too_late
        assert stats.copies["store"].durations.count == 2


async def test_what_a_deadline_cuts_is_a_miss_with_that_reason() -> None:
    device, kept = Device(8), Kept()
    keys = keys_of("late", 8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await only_in_tiers(offloader, device, keys)
        with kept.tier.before.load.shut():
            loaded = await offloader.load(keys, range(8), RequestContext(deadline=time.monotonic()))
        assert loaded.blocks == 0
        assert _missed(offloader.stats()) == {Status.TIMED_OUT: 8}


async def test_a_tier_that_cannot_tell_its_numbers_spoils_nobody_elses(caplog: pytest.LogCaptureFixture) -> None:
    device, kept, mute = Device(8), Kept(), Kept(name="mute")
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept, mute]) as offloader:
        await only_in_tiers(offloader, device, keys_of("mute", 4))

        def raising() -> dict[str, float]:
            raise OSError("no numbers today")

        mute.tier.stats = raising  # type: ignore[method-assign]
        stats = offloader.stats()
        assert stats.tiers["gated"]["blocks"] == 4
        assert stats.tiers["mute"]["stored"] == 4
        assert "blocks" not in stats.tiers["mute"]
        assert "tier mute does not tell its numbers: OSError('no numbers today')" in caplog.text


async def test_numbers_can_be_had_after_the_end() -> None:
    device, kept = Device(8), Kept()
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        await offloader.store(keys_of("end", 4), range(4))
    stats = offloader.stats()
    assert stats.verbs["store"].ok == 1
    assert stats.tier_calls["gated"]["store"].blocks[Status.DONE] == 4


async def test_a_handler_need_not_tell_how_it_copies() -> None:
    device = Device(8)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches, handler=TurnHandler) as offloader:
        await offloader.store(keys_of("turns", 4), range(4))
        stats = offloader.stats()
        assert stats.engines == {}
        assert stats.copies["store"].durations.count == 1
