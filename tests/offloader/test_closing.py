"""Closing: under load, cancelled, twice, with and without draining; and what is left afterwards."""

from __future__ import annotations

import asyncio
import weakref
from itertools import count
from pathlib import Path

import pytest

from asyncoffload import ClosedError, ConfigError, LoadResult, Offloader, StoreResult, TierUnavailable
from asyncoffload.types import Status
from tests.offloader.rig import (
    CopyGate,
    Device,
    Kept,
    Leaks,
    idle,
    keys_of,
    only_in_tiers,
    settings,
    turns,
)
from tests.offloader.strikes import STRIKES, Strike
from tests.offloader.turn_handler import TurnHandler


async def test_after_closing_every_call_is_refused() -> None:
    device = Device(8)
    keys = keys_of("closed", 4)
    offloader = Offloader(settings(device, 8), kv_caches=device.kv_caches)
    async with offloader:
        await offloader.store(keys, range(4))
    device.poison()
    for call in (
        offloader.start(),
        offloader.lookup(keys),
        offloader.load(keys, range(4)),
        offloader.store(keys, range(4)),
        offloader.settle(),
    ):
        with pytest.raises(ClosedError, match=r"closed|no new work"):
            await call
    assert device.untouched(range(8))
    assert "closed" in repr(offloader)
    await offloader.aclose()


async def test_threads_descriptors_and_memory_are_given_back(tmp_path: Path) -> None:
    leaks, device = Leaks(), Device(16)
    keys = keys_of("leaks", 16)
    tiers = [{"type": "fs", "root_dir": tmp_path}, {"type": "memory"}]
    for _ in range(3):
        async with Offloader(settings(device, 16, tiers=tiers), kv_caches=device.kv_caches) as offloader:
            device.fill(keys, range(16))
            await offloader.store(keys, range(16))
            await offloader.load(keys, range(16))
        assert leaks.none()
    region = weakref.ref(offloader._region)
    assert "closed" in repr(region())


async def test_an_offloader_that_was_never_started_closes() -> None:
    leaks, device = Leaks(), Device(4)
    offloader = Offloader(settings(device, 4, tiers=[{"type": "memory"}]), kv_caches=device.kv_caches)
    await offloader.aclose()
    await offloader.aclose()
    assert leaks.none()


@pytest.mark.parametrize("drain", [True, False])
async def test_what_was_stored_is_cascaded_before_the_end_only_when_draining(drain: bool) -> None:
    device, kept = Device(8), Kept()
    keys = keys_of("drain", 8)
    offloader = Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept])
    with kept.tier.before.store.shut():
        await offloader.store(keys, range(8))
        closing = asyncio.create_task(offloader.aclose(drain=drain))
        job = await kept.tier.before.store.arrival()
        await turns()
        assert not closing.done(), "the tier still works on the slots"
        assert job.unwanted == (set() if drain else set(keys))
    await closing
    assert offloader.stats().tiers["gated"]["stored"] == (8 if drain else 0)


async def test_a_store_under_way_is_finished_and_cascaded_while_draining() -> None:
    device, kept, gate = Device(8), Kept(), CopyGate()
    keys = keys_of("under way", 8)
    offloader = Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept], handler=gate.handler)
    with gate.shut():
        storing = asyncio.create_task(offloader.store(keys, range(8)))
        await gate.arrived.acquire()
        closing = asyncio.create_task(offloader.aclose())
        await turns()
        assert not closing.done()
    await closing
    assert offloader.stats().tiers["gated"]["stored"] == 8
    with pytest.raises(ClosedError):
        await storing  # its bytes are safe, but it comes too late to be counted as used
    assert idle(offloader)


@pytest.mark.parametrize("n", range(0, 40, 3))
async def test_whatever_is_stored_while_draining_is_cascaded(n: int) -> None:
    device, kept = Device(16), Kept()
    plan = settings(device, 16, slice_blocks=2)
    offloader = Offloader(plan, kv_caches=device.kv_caches, tiers=[kept], handler=TurnHandler)
    storing = asyncio.create_task(offloader.store(keys_of("whatever", 16), range(16)))
    await turns(n)
    await offloader.aclose()
    await asyncio.wait([storing])
    assert storing.exception() is None or isinstance(storing.exception(), ClosedError)
    assert offloader.stats().tiers["gated"]["stored"] == offloader.stats().primary.stored
    assert idle(offloader)


async def test_loads_that_wait_for_a_tier_end_with_what_they_have() -> None:
    device, kept = Device(8), Kept()
    keys = keys_of("waiting", 4)
    offloader = Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept])
    await only_in_tiers(offloader, device, keys)
    with kept.tier.before.load.shut():
        loading = asyncio.create_task(offloader.load(keys, range(4)))
        await kept.tier.before.load.arrival()
        closing = asyncio.create_task(offloader.aclose())
        assert await loading == LoadResult(0, {}, Status.CANCELLED)
        assert not closing.done()
    await closing
    assert device.untouched(range(8))
    assert idle(offloader)


async def test_stores_that_wait_for_room_are_refused() -> None:
    device, gate = Device(16), CopyGate()
    offloader = Offloader(settings(device, 4), kv_caches=device.kv_caches, handler=gate.handler)
    with gate.shut():
        first = asyncio.create_task(offloader.store(keys_of("first", 4), range(4)))
        await gate.arrived.acquire()
        second = asyncio.create_task(offloader.store(keys_of("second", 4), range(4)))
        await turns()
        closing = asyncio.create_task(offloader.aclose())
        await turns()
    await closing
    for store in (first, second):
        with pytest.raises(ClosedError):
            await store
    assert idle(offloader)


async def test_past_its_timeout_closing_says_what_runs_and_can_be_repeated(caplog: pytest.LogCaptureFixture) -> None:
    device, kept = Device(8), Kept()
    keys = keys_of("stuck", 4)
    offloader = Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept])
    with kept.tier.after.store.shut():
        await offloader.store(keys, range(4))
        await kept.tier.after.store.reached()
        with pytest.raises(TierUnavailable, match="gated"):
            await offloader.aclose(drain=False, timeout=0.001)
        assert "still in use" in caplog.text, "the memory of a running transfer stays mapped"
    await offloader.aclose()
    assert idle(offloader)


@pytest.mark.parametrize("strike", STRIKES)
async def test_closing_under_load_is_cancelled_at_every_turn(strike: Strike[bool]) -> None:
    for n in count(1):  # in turn 0 closing has not begun
        device, kept, leaks = Device(32), Kept(), Leaks()
        offloader = Offloader(
            settings(device, 8, slice_blocks=2), kv_caches=device.kv_caches, tiers=[kept], handler=TurnHandler
        )
        old = keys_of("old", 4)
        await only_in_tiers(offloader, device, old)
        calls: list[asyncio.Task[LoadResult | StoreResult]] = [
            asyncio.create_task(offloader.load(old, range(4))),
            asyncio.create_task(offloader.store(keys_of("new", 8), range(8, 16))),
            asyncio.create_task(offloader.store(keys_of("newer", 8), range(16, 24))),
        ]
        await turns(n % 7)

        async def close(offloader: Offloader = offloader) -> bool:
            await offloader.aclose(drain=True)
            return True

        closed = await strike(n, close())
        device.poison()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, (LoadResult, StoreResult, ClosedError)) for result in results), results
        assert device.untouched(range(32)), "no copy runs once closing has raised"
        assert "closed" in repr(offloader._region)
        await offloader.aclose()
        assert idle(offloader)
        assert leaks.none()
        if closed:
            break
    assert n > 5


async def test_closing_from_two_tasks_at_the_same_time() -> None:
    device, kept = Device(8), Kept()
    offloader = Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept])
    await offloader.store(keys_of("two", 8), range(8))
    await asyncio.gather(offloader.aclose(), offloader.aclose(drain=False), offloader.aclose())
    assert idle(offloader)


async def test_a_cancelled_block_closes_without_draining() -> None:
    device, kept = Device(8), Kept()
    entered = asyncio.Event()

    async def serve() -> None:
        async with Offloader(settings(device, 8), kv_caches=device.kv_caches, tiers=[kept]) as offloader:
            await offloader.store(keys_of("cancelled", 8), range(8))
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(serve())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("others", [[], [{"type": "memory"}]], ids=["alone", "behind another tier"])
async def test_a_start_that_fails_names_the_path_and_leaves_nothing(
    tmp_path: Path, others: list[dict[str, object]]
) -> None:
    leaks, device = Leaks(), Device(4)
    (tmp_path / "file").write_text("no directory")
    root = tmp_path / "file" / "root"
    offloader = Offloader(
        settings(device, 4, tiers=[*others, {"type": "fs", "root_dir": root}]), kv_caches=device.kv_caches
    )
    with pytest.raises((ConfigError, TierUnavailable), match=str(root)):
        await offloader.__aenter__()
    assert leaks.none()
    with pytest.raises(ClosedError):
        await offloader.lookup([])
