"""Calls that hang: waiters are told, slots stay in quarantine, the tier pauses and goes on. On virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from asyncoffload.errors import TierUnavailable, TransferTimeout
from asyncoffload.keys import OffloadKey
from asyncoffload.managers.tiering import TieringOffloadingManager
from asyncoffload.memory.region import HostRegion
from asyncoffload.testing import Delayed, FaultyDisk, Slots, VirtualTimeLoop, small_layout, some_keys
from asyncoffload.tiers.fs.breaker import PROBES
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.watch import LOOKS, PROBE_SECONDS
from asyncoffload.types import KeyOutcome, LookupResult, RequestContext, Status, TransferJob

LAYOUT = small_layout()
TIMEOUT = 10.0
NOTICED = TIMEOUT * (1 + 2 / LOOKS)
"""Seconds by which a call that hangs has been noticed."""
PROBED = (PROBES + 1) * PROBE_SECONDS
"""Seconds by which a file system that answers again is relied upon."""


def disk_in_virtual_time() -> FaultyDisk:
    return FaultyDisk(sleep=VirtualTimeLoop.running().block)


@asynccontextmanager
async def opened(
    root: Path, slots: Slots, disk: FaultyDisk, *, threads: int = 2
) -> AsyncIterator[FileSystemTierManager]:
    tier = FileSystemTierManager(
        LAYOUT,
        slots.view,
        "fs",
        root,
        threads,
        threads,
        io_timeout=TIMEOUT,
        clock=VirtualTimeLoop.running().time,
        make_files=disk.make_files,
    )
    try:
        await tier.scanned()
        yield tier
    finally:
        disk.recover()
        await tier.aclose()


def watched(job: TransferJob) -> asyncio.Future[Sequence[KeyOutcome]]:
    """What the waiters of a job are told when it is abandoned."""
    told: asyncio.Future[Sequence[KeyOutcome]] = asyncio.get_running_loop().create_future()
    job.report = told.set_result
    return told


def statuses(outcomes: Sequence[KeyOutcome]) -> list[Status]:
    return [outcome.status for outcome in outcomes]


async def eventually(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 (time is virtual)
        await asyncio.sleep(0.1)


@pytest.mark.virtual_time
async def test_a_load_that_hangs_is_abandoned_and_ends_when_its_call_returns(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 32), some_keys(LAYOUT, 8), disk_in_virtual_time()
    async with opened(tmp_path, slots, disk, threads=1) as tier:
        await tier.store(slots.store_job(keys))
        gate = disk.gates["read"].shut(after=3)
        job = slots.load_job(keys)
        told, loading = watched(job), asyncio.create_task(tier.load(job))
        async with asyncio.timeout(NOTICED):
            outcomes = await told
        assert statuses(outcomes).count(Status.DONE) == 3
        assert set(statuses(outcomes)) == {Status.DONE, Status.TIMED_OUT}
        late = next(outcome for outcome in outcomes if not outcome.ok)
        assert isinstance(late.error, TransferTimeout)
        await asyncio.sleep(10 * TIMEOUT)
        assert not loading.done(), "a thread may still write into its slot"
        gate.open()
        done = statuses((await loading).outcomes)
        assert 3 < done.count(Status.DONE) <= 5, "also what hung, and nothing behind it"
        assert [slots.hold(slot, key) for slot, key in enumerate(keys)] == [one is Status.DONE for one in done]


@pytest.mark.virtual_time
async def test_while_it_is_paused_it_answers_misses_and_takes_nothing(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 32), some_keys(LAYOUT, 8), disk_in_virtual_time()
    async with opened(tmp_path, slots, disk) as tier:
        await tier.store(slots.store_job(keys[:4]))
        disk.gates["read"].shut()
        hung = slots.load_job(keys[:1])
        told, loading = watched(hung), asyncio.create_task(tier.load(hung))
        await told
        assert tier.stats()["paused"] == 1
        assert tier.stats()["hanging_calls"] == tier.stats()["hung_calls"] == 1
        assert set(await tier.lookup(keys)) == {LookupResult.MISS}
        assert not any(map(tier.hint, keys))
        assert set(statuses((await tier.load(slots.load_job(keys[1:4], 8))).outcomes)) == {Status.TIMED_OUT}
        assert set(statuses((await tier.store(slots.store_job(keys[4:], 8))).outcomes)) == {Status.SHED}
        assert tier.stats()["shed_by_pause"] == 4
        await tier.touch(keys)
        await asyncio.sleep(100 * TIMEOUT)
        assert tier.stats()["paused"] == 1, "no probe came back"
        disk.recover()
        await loading
        await asyncio.sleep(TIMEOUT + PROBED)
        assert tier.stats()["paused"] == tier.stats()["hanging_calls"] == 0
        assert set(await tier.lookup(keys[:4])) == {LookupResult.HIT}
        assert (await tier.load(slots.load_job(keys[:4]))).success
        assert slots.have(keys[:4])


@pytest.mark.virtual_time
async def test_jobs_that_wait_for_a_thread_are_broken_off(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 64), some_keys(LAYOUT, 24), disk_in_virtual_time()
    async with opened(tmp_path, slots, disk, threads=1) as tier:
        await tier.store(slots.store_job(keys[:12]))
        disk.gates["read"].shut()
        hanging = [asyncio.create_task(tier.load(slots.load_job([key]))) for key in keys[:2]]
        await disk.gates["read"].reached(2)
        queued = asyncio.create_task(tier.load(slots.load_job(keys[2:12], 2)))
        storing = asyncio.create_task(tier.store(slots.store_job(keys[12:], 12)))
        assert set(statuses((await queued).outcomes)) == {Status.TIMED_OUT}
        assert set(statuses((await storing).outcomes)) == {Status.SHED}
        disk.recover()
        await asyncio.wait(hanging)


@pytest.mark.virtual_time
async def test_other_threads_do_the_work_of_those_that_hang(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 64), some_keys(LAYOUT, 12), disk_in_virtual_time()
    async with opened(tmp_path, slots, disk, threads=1) as tier:
        await tier.store(slots.store_job(keys))
        disk.add("read", Delayed(1000 * TIMEOUT), keys=keys[:2])
        hanging = [asyncio.create_task(tier.load(slots.load_job([key], at))) for at, key in enumerate(keys[:2])]
        await eventually(lambda: tier.stats()["hung_calls"] == 2)
        await eventually(lambda: tier.stats()["paused"] == 0)
        assert not any(task.done() for task in hanging)
        assert (await tier.load(slots.load_job(keys[2:], 2))).success
        assert set(await tier.lookup(keys[:2])) == {LookupResult.MISS}
        assert set(statuses((await tier.load(slots.load_job(keys[:2], 20))).outcomes)) == {Status.TIMED_OUT}
        await asyncio.wait(hanging)
        assert all(task.result().success for task in hanging)
        assert slots.have(keys)


@pytest.mark.virtual_time
async def test_a_block_of_which_two_calls_hang_is_refused_until_both_return(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 8), some_keys(LAYOUT, 1), disk_in_virtual_time()
    async with opened(tmp_path, slots, disk) as tier:
        await tier.store(slots.store_job(keys))
        gate = disk.gates["open"].shut()
        loads = [asyncio.create_task(tier.load(slots.load_job(keys, at))) for at in (1, 2)]
        await eventually(lambda: tier.stats()["hung_calls"] == 2)
        assert tier.stats()["hanging_calls"] == 2
        gate.let_pass()
        await asyncio.wait(loads, return_when=asyncio.FIRST_COMPLETED)
        await eventually(lambda: tier.stats()["paused"] == 0)
        assert tier.stats()["hanging_calls"] == 1
        assert statuses((await tier.load(slots.load_job(keys, 3))).outcomes) == [Status.TIMED_OUT]
        gate.open()
        await asyncio.wait(loads)
        assert tier.stats()["hanging_calls"] == 0
        assert (await tier.load(slots.load_job(keys, 3))).success


@pytest.mark.virtual_time
async def test_a_second_store_of_a_block_does_not_wait_for_one_that_hangs(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 32), some_keys(LAYOUT, 3), disk_in_virtual_time()
    async with opened(tmp_path, slots, disk) as tier:
        disk.gates["write"].shut()
        first = asyncio.create_task(tier.store(slots.store_job(keys[:1])))
        await disk.gates["write"].reached()
        second = await tier.store(slots.store_job(keys[:1], 8))
        assert statuses(second.outcomes) == [Status.SHED]
        disk.recover()
        assert (await first).success


@pytest.mark.virtual_time
async def test_closing_ends_and_says_what_it_left(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 32), some_keys(LAYOUT, 3), disk_in_virtual_time()
    async with opened(tmp_path, slots, disk) as tier:
        disk.gates["write"].shut()
        job = slots.store_job(keys)
        storing = asyncio.create_task(tier.store(job))
        await disk.gates["write"].reached()
        with pytest.raises(TierUnavailable, match=f"jobs {job.job_id}, whose slots must not be used"):
            await tier.aclose(drain_timeout=1, timeout=5)
        disk.recover()
        await tier.aclose()
        await storing


class Stack:
    """A manager over a file tier on a disk that may hang."""

    def __init__(self, tier: FileSystemTierManager, region: HostRegion, disk: FaultyDisk) -> None:
        self.tier, self.region, self.disk = tier, region, disk
        self.manager = TieringOffloadingManager(region, [tier], clock=VirtualTimeLoop.running().time)

    async def store(self, keys: Sequence[OffloadKey]) -> None:
        async with self.manager.storing(keys) as lease:
            for key, slot in zip(lease.keys, lease.spec.block_ids.tolist(), strict=True):
                self.region.slot(slot)[:] = content_of(key)

    async def load(self, keys: Sequence[OffloadKey], ctx: RequestContext | None = None) -> int:
        async with self.manager.loading(keys, ctx or RequestContext()) as lease:
            for key, slot in zip(lease.keys, lease.spec.block_ids.tolist(), strict=True):
                assert bytes(self.region.slot(slot)) == content_of(key)
            return len(lease.keys)


def content_of(key: OffloadKey) -> bytes:
    return (key * LAYOUT.block_bytes)[: LAYOUT.block_bytes]


@asynccontextmanager
async def stacked(root: Path, n_slots: int) -> AsyncIterator[Stack]:
    region, disk = HostRegion(n_slots, LAYOUT.block_bytes), disk_in_virtual_time()
    tier = FileSystemTierManager(
        LAYOUT, region.view, "fs", root, 2, 2, io_timeout=TIMEOUT, clock=VirtualTimeLoop.running().time,
        make_files=disk.make_files,
    )  # fmt: skip
    stack = Stack(tier, region, disk)
    try:
        yield stack
    finally:
        disk.recover()
        await stack.manager.aclose()
        await tier.aclose()
        region.close()


@pytest.mark.virtual_time
async def test_who_waits_for_a_promotion_goes_on_and_its_slots_are_quarantined(tmp_path: Path) -> None:
    keys = [key for key in some_keys(LAYOUT, 24) if key[-1] == 0][:8]
    async with stacked(tmp_path, 8) as stack:
        await stack.store(keys[:4])
        await stack.manager.settle()
        await stack.manager.reset()
        gate = stack.disk.gates["read"].shut()
        async with asyncio.timeout(2 * NOTICED):
            assert await stack.load(keys[:4]) == 0
        assert stack.manager.stats().quarantined == 4
        await stack.store(keys[4:])
        assert stack.manager.stats().free == 0, "nothing else is written into slots that a thread may write into"
        gate.open()
        await eventually(lambda: stack.manager.stats().free == 4)
        await asyncio.sleep(TIMEOUT + PROBED)
        assert await stack.load(keys[:4]) == 4


@pytest.mark.virtual_time
async def test_nobody_waits_for_room_that_a_call_that_hangs_will_not_give_back(tmp_path: Path) -> None:
    keys = [key for key in some_keys(LAYOUT, 60) if key[-1] == 0][:16]
    async with stacked(tmp_path, 4) as stack:
        for first in (0, 4):
            await stack.store(keys[first : first + 4])
            await stack.manager.settle()
        stack.disk.add("read", Delayed(1000 * TIMEOUT), keys=keys[:1])
        async with asyncio.timeout(4 * NOTICED):
            assert await stack.load(keys[:4]) == 0
            assert stack.manager.stats().quarantined == 4
            await asyncio.sleep(PROBED)
            assert await stack.manager.lookup(keys[4:8]) == 4
            assert await stack.load(keys[4:8]) == 0
        await eventually(lambda: stack.manager.stats().free == 4)
        assert await stack.load(keys[4:8]) == 4


@pytest.mark.virtual_time
async def test_a_cascade_that_hangs_holds_up_nobody_and_its_blocks_stay_readable(tmp_path: Path) -> None:
    keys = [key for key in some_keys(LAYOUT, 24) if key[-1] == 0][:6]
    async with stacked(tmp_path, 8) as stack:
        gate = stack.disk.gates["write"].shut()
        await stack.store(keys[:4])
        async with asyncio.timeout(2 * NOTICED):
            await stack.manager.settle()
        assert await stack.load(keys[:4]) == 4
        assert await stack.manager.prepare_store(keys[4:6]) is not None
        await stack.manager.complete_store(keys[4:6], success=False)
        gate.open()
        await asyncio.sleep(TIMEOUT + PROBED)
        assert stack.tier.stats()["paused"] == 0


async def test_a_loop_that_stood_still_does_not_take_its_threads_for_hanging(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 8), some_keys(LAYOUT, 4), FaultyDisk()
    async with FileSystemTierManager(
        LAYOUT, slots.view, "fs", tmp_path, 2, 2, io_timeout=1.0, make_files=disk.make_files
    ) as tier:
        await tier.store(slots.store_job(keys))
        disk.gates["read"].shut()
        loading = asyncio.create_task(tier.load(slots.load_job(keys)))
        await disk.gates["read"].reached()
        time.sleep(2.0)  # noqa: ASYNC251 (the loop stands still)
        await asyncio.sleep(0)
        disk.recover()
        assert (await loading).success
        assert tier.stats()["hung_calls"] == 0
