"""The file system tier's own ways: scanning, sharing, shedding, closing."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from asyncoffload.aio.dual_queue import DualQueueThreadPool
from asyncoffload.core.layout import directory_name
from asyncoffload.errors import ClosedError, InvalidArgument, TierUnavailable
from asyncoffload.keys import OffloadKey
from asyncoffload.testing import FaultyDisk, Slots, small_layout, some_keys
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import JobResult, KVLayout, LookupResult, Priority, Status

LAYOUT = small_layout()
HIT, MISS = LookupResult.HIT, LookupResult.MISS


def make_tier(root: Path, slots: Slots, pool: DualQueueThreadPool | None = None) -> FileSystemTierManager:
    return FileSystemTierManager(slots.layout, slots.view, "fs", root, 2, 2, pool=pool)


def statuses(result: JobResult) -> list[Status]:
    return [outcome.status for outcome in result.outcomes]


async def test_serves_before_it_has_looked_through_an_old_directory(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 16)
    async with make_tier(tmp_path, slots) as tier:
        await tier.store(slots.store_job(keys))
        stored_bytes = tier.stats()["bytes"]
    tier, looked, opened = make_tier(tmp_path, slots), threading.Event(), threading.Event()
    look_through = tier._space.look_through

    def slowly(parent: str) -> list[OffloadKey]:
        looked.set()
        opened.wait()
        return look_through(parent)

    tier._space.look_through = slowly  # type: ignore[method-assign]
    async with tier:
        try:
            await asyncio.get_running_loop().run_in_executor(None, looked.wait)
            assert list(await tier.lookup(keys)) == [HIT] * 16
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE] * 16
            assert slots.have(keys)
            assert tier.stats()["scanned"] == 0
        finally:
            opened.set()
        await tier.scanned()
        assert (tier.stats()["blocks"], tier.stats()["bytes"], tier.stats()["scanned"]) == (16, stored_bytes, 1)


async def test_a_block_that_was_set_aside_while_the_directory_was_read_can_be_stored_anew(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 1), some_keys(LAYOUT, 1)
    async with make_tier(tmp_path, slots) as tier:
        await tier.store(slots.store_job(keys))
        path = tier._space.path(keys[0])
    os.truncate(path, os.stat(path).st_size - 9)
    tier, looked, opened = make_tier(tmp_path, slots), threading.Event(), threading.Event()
    look_through = tier._space.look_through

    def seen_before(parent: str) -> list[OffloadKey]:
        found = look_through(parent)
        looked.set()
        opened.wait()
        return found

    tier._space.look_through = seen_before  # type: ignore[method-assign]
    async with tier:
        try:
            await asyncio.get_running_loop().run_in_executor(None, looked.wait)
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.CORRUPT]
        finally:
            opened.set()
        await tier.scanned()
        assert not tier.hint(keys[0])
        assert statuses(await tier.store(slots.store_job(keys))) == [Status.DONE]
        assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE]
        assert slots.have(keys)


async def test_a_scan_makes_the_index_know(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 16)
    async with make_tier(tmp_path, slots) as tier:
        await tier.store(slots.store_job(keys))
    strange = tmp_path / directory_name(LAYOUT)
    (strange / "fff").touch()
    (strange / "ffe").mkdir()
    (strange / "ffe" / "a file").touch()
    async with make_tier(tmp_path, slots) as tier:
        await tier.scanned()
        assert all(map(tier.hint, keys))
        assert list(await tier.lookup(keys)) == [HIT] * 16
        assert "probed" not in tier.stats()


async def test_a_scan_passes_over_what_cannot_be_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 16)
    async with make_tier(tmp_path, slots) as tier:
        await tier.store(slots.store_job(keys))
        hidden = os.path.basename(os.path.dirname(tier._space.path(keys[3])))
    tier = make_tier(tmp_path, slots)
    look_through = tier._space.look_through

    def failing(parent: str) -> list[OffloadKey]:
        if parent == hidden:
            raise OSError(5, "Input/output error", parent)
        return look_through(parent)

    tier._space.look_through = failing  # type: ignore[method-assign]
    async with tier:
        await tier.scanned()
        seen = [key for key in keys if os.path.basename(os.path.dirname(tier._space.path(key))) != hidden]
        assert [key for key in keys if tier.hint(key)] == seen
        assert f"passes over [Errno 5] Input/output error: '{hidden}'" in caplog.text
        assert list(await tier.lookup(keys)) == [HIT] * 16


async def test_misses_are_believed_briefly(tmp_path: Path) -> None:
    now = 0.0
    slots, keys = Slots(LAYOUT, 4), some_keys(LAYOUT, 4)
    tier = FileSystemTierManager(LAYOUT, slots.view, "fs", tmp_path, 2, 2, clock=lambda: now)
    async with tier, make_tier(tmp_path, slots) as neighbour:
        assert list(await tier.lookup(keys)) == [MISS] * 4
        await neighbour.store(slots.store_job(keys))
        assert list(await tier.lookup(keys)) == [MISS] * 4
        assert tier.stats()["probed"] == 4
        now = 1.5
        assert list(await tier.lookup(keys)) == [HIT] * 4
        assert tier.stats()["probed"] == 8


async def test_a_block_that_is_being_stored_is_not_written_twice(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 16), some_keys(LAYOUT, 4), FaultyDisk()
    writes = disk.gates["write"].shut()
    tier = FileSystemTierManager(LAYOUT, slots.view, "fs", tmp_path, 2, 2, make_files=disk.make_files)
    async with tier:
        first = asyncio.create_task(tier.store(slots.store_job(keys)))
        await writes.reached()
        second = asyncio.create_task(tier.store(slots.store_job(keys, first_slot=4)))
        third = asyncio.create_task(tier.store(slots.store_job(keys, first_slot=8)))
        await asyncio.sleep(0)
        third.cancel()
        await asyncio.wait([third])
        assert third.cancelled()
        writes.open()
        assert statuses(await first) == statuses(await second) == [Status.DONE] * 4
        assert writes.unseen == 4


async def test_nothing_is_visible_while_it_is_written(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 16), some_keys(LAYOUT, 4), FaultyDisk()
    writes = disk.gates["write"].shut()
    tier = FileSystemTierManager(LAYOUT, slots.view, "fs", tmp_path, 2, 2, make_files=disk.make_files)
    async with tier, make_tier(tmp_path, slots) as neighbour:
        storing = asyncio.create_task(tier.store(slots.store_job(keys)))
        await writes.reached()
        for each in (tier, neighbour):
            assert list(await each.lookup(keys)) == [MISS] * 4
        await neighbour.scanned()
        writes.open()
        assert (await storing).success


async def test_a_key_dropped_while_its_job_runs_is_skipped(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 16), some_keys(LAYOUT, 12), FaultyDisk()
    writes = disk.gates["write"].shut()
    pool = DualQueueThreadPool(1, 1)
    tier = FileSystemTierManager(LAYOUT, slots.view, "fs", tmp_path, pool=pool, make_files=disk.make_files)
    async with tier:
        job = slots.store_job(keys)
        storing = asyncio.create_task(tier.store(job))
        await writes.reached()
        job.unwanted.update(keys[3:])
        writes.open()
        result = statuses(await storing)
        assert result[0] is Status.DONE
        assert result[-1] is Status.CANCELLED
        assert list(await tier.lookup([keys[-1]])) == [MISS]
    await pool.aclose()


async def test_a_cancelled_job_ends_when_its_thread_has_let_go(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 16), some_keys(LAYOUT, 8), FaultyDisk()
    tier = FileSystemTierManager(LAYOUT, slots.view, "fs", tmp_path, 2, 2, make_files=disk.make_files)
    async with tier:
        await tier.store(slots.store_job(keys))
        with disk.gates["read"].shut() as reads:
            job = slots.load_job(keys)
            loading = asyncio.create_task(tier.load(job))
            await reads.reached()
            loading.cancel()
            for _ in range(100):
                await asyncio.sleep(0)
            assert not loading.done()
        await asyncio.wait([loading])
        assert loading.cancelled()
        slots.guard(job.slots)
        await tier.drain()
        assert slots.are_untouched(job.slots)


async def test_more_than_the_queue_holds_is_shed(tmp_path: Path) -> None:
    slots, disk = Slots(LAYOUT, 64), FaultyDisk()
    writes = disk.gates["write"].shut()
    tier = FileSystemTierManager(
        LAYOUT, slots.view, "fs", tmp_path, 1, 1, max_queued_bytes=100_000, make_files=disk.make_files
    )
    async with tier:
        stores = [
            asyncio.create_task(tier.store(slots.store_job(some_keys(LAYOUT, 16, n), 16 * n)), name=str(n))
            for n in range(4)
        ]
        await writes.reached()
        tier.hurry(1, Priority.DEMAND)
        writes.open()
        results = await asyncio.gather(*stores)
        seen = {status for result in results for status in statuses(result)}
        assert seen == {Status.DONE, Status.SHED}
        assert tier.stats()["store_shed"] == sum(statuses(result).count(Status.SHED) for result in results)


async def test_closing_says_what_still_runs(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 16), some_keys(LAYOUT, 4), FaultyDisk()
    writes = disk.gates["write"].shut()
    tier = FileSystemTierManager(LAYOUT, slots.view, "fs", tmp_path, 2, 2, make_files=disk.make_files)
    job = slots.store_job(keys)
    storing = asyncio.create_task(tier.store(job))
    await writes.reached()
    try:
        with pytest.raises(TierUnavailable, match=f"jobs {job.job_id},"):
            await tier.aclose(drain=False, timeout=0)
    finally:
        writes.open()
    await tier.aclose()
    assert set(statuses(await storing)) <= {Status.DONE, Status.CANCELLED}
    assert "closed" in repr(tier)


async def test_a_cancelled_close_still_waits(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 16), some_keys(LAYOUT, 4), FaultyDisk()
    writes = disk.gates["write"].shut()
    tier = FileSystemTierManager(LAYOUT, slots.view, "fs", tmp_path, 2, 2, make_files=disk.make_files)
    storing = asyncio.create_task(tier.store(slots.store_job(keys)))
    await writes.reached()
    closing = asyncio.create_task(tier.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.sleep(0)
    assert not closing.done()
    writes.open()
    await asyncio.wait([closing])
    assert closing.cancelled()
    assert storing.done()
    await tier.aclose()


async def test_a_shared_pool_is_left_open(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 4)
    pool = DualQueueThreadPool(2, 2)
    async with make_tier(tmp_path / "a", slots, pool) as a:
        async with make_tier(tmp_path / "b", slots, pool) as b:
            await b.store(slots.store_job(keys))
        assert (await a.store(slots.store_job(keys))).success
        with pytest.raises(ClosedError):
            await b.store(slots.store_job(keys))
    await pool.aclose()


async def test_a_tier_that_never_started_closes(tmp_path: Path) -> None:
    await make_tier(tmp_path / "never made", Slots(LAYOUT, 1)).aclose()
    assert not (tmp_path / "never made").exists()


async def test_a_cancelled_start_can_be_repeated(tmp_path: Path) -> None:
    slots = Slots(LAYOUT, 4)
    tier = make_tier(tmp_path, slots)
    for turns in range(8):
        starting = asyncio.create_task(tier.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
    async with tier:
        assert len(os.listdir(tmp_path / directory_name(LAYOUT) / "owners")) == 1
        assert (await tier.store(slots.store_job(some_keys(LAYOUT, 2)))).success
    assert os.listdir(tmp_path / directory_name(LAYOUT) / "owners") == []


def test_views_that_are_no_slots_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"shape \(8192,\): pass HostRegion.view"):
        FileSystemTierManager(LAYOUT, memoryview(bytearray(8192)), "fs", tmp_path)
    with pytest.raises(InvalidArgument, match="slots of 4096 bytes cannot hold the layout's blocks of 8192"):
        FileSystemTierManager(LAYOUT, memoryview(bytearray(8192)).cast("B", (2, 4096)), "fs", tmp_path)


def test_a_tier_needs_no_running_loop_to_be_made(tmp_path: Path) -> None:
    layout: KVLayout = small_layout()
    slots = Slots(layout, 2)
    tier = make_tier(tmp_path, slots)
    assert "not started" in repr(tier)
    assert asyncio.run(_first_lookup(tier)) == [MISS]


async def _first_lookup(tier: FileSystemTierManager) -> list[LookupResult]:
    async with tier:
        return list(await tier.lookup(some_keys(LAYOUT, 1)))
