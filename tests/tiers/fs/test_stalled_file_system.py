"""A tier on a file system that really stalls: every sort of call hangs, and nobody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from pydantic import ByteSize

from asyncoffload.config import FileSystemTierSettings, OffloaderSettings
from asyncoffload.errors import TierUnavailable
from asyncoffload.keys import make_key
from asyncoffload.offloader import Offloader
from asyncoffload.testing import Slots, small_layout, some_keys
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import LookupResult, Status
from tests.tiers.fs.stalling_file_system import StallingFileSystem, mounted, needs_mounting

pytestmark = [needs_mounting, pytest.mark.timeout(120)]

LAYOUT = small_layout()
TIMEOUT = 1.0


@pytest.fixture
def file_system(tmp_path: Path) -> Iterator[StallingFileSystem]:
    with mounted(tmp_path) as file_system:
        yield file_system


def tier_on(file_system: StallingFileSystem, slots: Slots, quota: int | None = None) -> FileSystemTierManager:
    return FileSystemTierManager(LAYOUT, slots.view, "fs", file_system.directory, 2, 2, io_timeout=TIMEOUT, quota=quota)


def settings_on(file_system: StallingFileSystem, host_bytes: int) -> OffloaderSettings:
    tier = FileSystemTierSettings(root_dir=file_system.directory, io_timeout=TIMEOUT)
    return OffloaderSettings(host_bytes=ByteSize(host_bytes), tiers=(tier,))


@asynccontextmanager
async def opened(
    file_system: StallingFileSystem, slots: Slots, quota: int | None = None
) -> AsyncIterator[FileSystemTierManager]:
    tier = tier_on(file_system, slots, quota)
    try:
        await tier.scanned()
        yield tier
    finally:
        file_system.go_on()
        await tier.aclose()


async def eventually(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 (what a real file system does tells nobody)
        await asyncio.sleep(0.01)


async def test_blocks_in_flight_are_missed_and_come_back(file_system: StallingFileSystem) -> None:
    slots, keys = Slots(LAYOUT, 32), some_keys(LAYOUT, 12)
    async with opened(file_system, slots) as tier:
        assert (await tier.store(slots.store_job(keys[:8]))).success
        file_system.stall()
        job, told = slots.load_job(keys[:8]), asyncio.get_running_loop().create_future()
        job.report = told.set_result
        loading = asyncio.create_task(tier.load(job))
        storing = asyncio.create_task(tier.store(slots.store_job(keys[8:], 16)))
        assert {outcome.status for outcome in await told} <= {Status.TIMED_OUT, Status.DONE}
        assert set(await tier.lookup(keys)) == {LookupResult.MISS}
        refused = await tier.load(slots.load_job(keys[:8], 24))
        assert {outcome.status for outcome in refused.outcomes} == {Status.TIMED_OUT}
        assert not loading.done()
        file_system.go_on()
        await asyncio.wait([loading, storing])
        await eventually(lambda: tier.stats()["paused"] == 0)
        assert (await tier.load(slots.load_job(keys[:8]))).success
        assert slots.have(keys[:8])


async def test_looking_for_names_answers_misses(file_system: StallingFileSystem) -> None:
    slots, keys = Slots(LAYOUT, 8), some_keys(LAYOUT, 4)
    async with opened(file_system, slots) as tier, opened(file_system, slots) as neighbour:
        await neighbour.store(slots.store_job(keys))
        file_system.stall()
        assert set(await tier.lookup(keys)) == {LookupResult.MISS}
        assert tier.stats()["paused"] == 1
        file_system.go_on()
        await eventually(lambda: tier.stats()["paused"] == 0)
        assert set(await tier.lookup(keys)) == {LookupResult.HIT}


async def test_opening_says_that_nothing_answers_and_is_finished_later(file_system: StallingFileSystem) -> None:
    slots, keys = Slots(LAYOUT, 8), some_keys(LAYOUT, 4)
    file_system.stall()
    tier = tier_on(file_system, slots)
    with pytest.raises(TierUnavailable, match="see whether its file system answers"):
        await tier.start()
    assert tier.stats()["paused"] == 1, "who asks now need not wait as long again"
    assert set(await tier.lookup(keys)) == {LookupResult.MISS}
    with pytest.raises(TierUnavailable, match="opens"):
        await tier.aclose(timeout=TIMEOUT)
    file_system.go_on()
    await tier.aclose()
    async with opened(file_system, slots) as another:
        assert (await another.store(slots.store_job(keys))).success


async def test_entering_a_stack_or_a_tier_says_so_too(file_system: StallingFileSystem) -> None:
    slots = Slots(LAYOUT, 8)
    file_system.stall()
    with pytest.raises(TierUnavailable, match="then start again"):
        async with tier_on(file_system, slots):
            pytest.fail("it was opened")
    settings = settings_on(file_system, 1 << 20)
    with pytest.raises(TierUnavailable, match="then start again"):
        async with Offloader(settings, kv_caches=[torch.zeros(4, 64)]):
            pytest.fail("it was opened")
    file_system.go_on()


async def test_housekeeping_that_hangs_does_not_keep_a_tier_from_closing(file_system: StallingFileSystem) -> None:
    slots, keys = Slots(LAYOUT, 32), some_keys(LAYOUT, 32)
    tier = tier_on(file_system, slots, quota=1 << 20)
    await tier.scanned()
    await tier.store(slots.store_job(keys))
    file_system.stall()
    storing = asyncio.create_task(tier.store(slots.store_job(some_keys(LAYOUT, 4, "late"))))
    await eventually(lambda: tier.stats()["paused"] == 1)
    with pytest.raises(TierUnavailable, match="after closing, still"):
        await tier.aclose(drain_timeout=0.1, timeout=TIMEOUT)
    file_system.go_on()
    await tier.aclose()
    await storing


async def test_a_stack_serves_on_without_its_disk(file_system: StallingFileSystem) -> None:
    caches = [torch.zeros(64, 2, 16, 4, 64, dtype=torch.bfloat16) for _ in range(2)]
    block = sum(cache[0].nbytes for cache in caches)
    settings = settings_on(file_system, 8 * block)
    keys = [make_key(bytes([n]) * 32) for n in range(16)]
    offloader = Offloader(settings, kv_caches=caches)
    async with offloader:
        for first in range(0, 16, 4):
            await offloader.store(keys[first : first + 4], range(first, first + 4))
            await offloader.settle()
        assert (await offloader.load(keys[:4], range(4))).blocks == 4
        file_system.stall()
        assert (await offloader.load(keys[4:8], range(4))).blocks == 0
        assert (await offloader.load(keys[:4], range(4))).blocks == 4, "what lies in host memory is served"
        assert await offloader.lookup(keys[4:8]) == 0
        await offloader.settle()
        file_system.go_on()
        await eventually(lambda: offloader.stats().tiers["fs"]["paused"] == 0)
        assert (await offloader.load(keys[4:8], range(4))).blocks == 4
