"""Cancellation at every stage, order, hazards and closing, with copies that the tests hold up."""

from __future__ import annotations

import asyncio
import random
import threading

import anyio
import numpy as np
import pytest
import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.batch_copy import MAX_COPIES_PER_CALL, copy_one_by_one
from asyncoffload.device.cpu import CPUDevice
from asyncoffload.errors import TierUnavailable
from asyncoffload.memory.region import HostRegion
from asyncoffload.types import CPULoadStoreSpec, GPULoadStoreSpec, KVGroup, KVLayout
from asyncoffload.workers.device_host import DeviceHostHandler

PAGE = 16
CANARY = 0xC5


class Gate:
    """A batch copy that holds up each piece that writes into the region until the test lets pieces through."""

    def __init__(self, region: HostRegion) -> None:
        self._first = region.tensor.data_ptr()
        self._end = self._first + region.nbytes
        self._loop = asyncio.get_running_loop()
        self._permits = threading.Semaphore(0)
        self.arrived = asyncio.Semaphore(0)

    def __call__(self, batch: CopyBatch) -> None:
        if self._first <= batch.dst[0] < self._end:
            self._loop.call_soon_threadsafe(self.arrived.release)
            assert self._permits.acquire(timeout=30)
        copy_one_by_one(batch)

    def let_through(self, pieces: int = 10_000) -> None:
        self._permits.release(pieces)


class Rig:
    """A handler over one layer whose block ``n`` is filled with the byte ``n % 251``, and a region of canaries."""

    def __init__(self, n_blocks: int, *, gated: bool = True) -> None:
        pages = (torch.arange(n_blocks) % 251).to(torch.uint8)
        self.cache = pages[:, None].repeat(1, PAGE)
        self.region = HostRegion(n_blocks, PAGE)
        self.slots = self.region.tensor.numpy()
        self.slots[:] = CANARY
        self.gate = Gate(self.region)
        layout = KVLayout("m", "uint8", 16, (KVGroup((PAGE,)),))
        self.handler = DeviceHostHandler(
            [[self.cache]], self.region, layout, device=CPUDevice(batch_copy=self.gate if gated else None)
        )

    def store(self, block: int, slot: int) -> tuple[GPULoadStoreSpec, CPULoadStoreSpec]:
        return GPULoadStoreSpec([block]), CPULoadStoreSpec([slot])

    def load(self, slot: int, block: int) -> tuple[CPULoadStoreSpec, GPULoadStoreSpec]:
        return CPULoadStoreSpec([slot]), GPULoadStoreSpec([block])

    def holds(self) -> int:
        return sum(map(self.region.is_held, range(self.region.n_slots)))

    async def close(self) -> None:
        self.gate.let_through()
        await self.handler.aclose()


async def turns(n: int = 20) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_cancelled_while_queued_it_leaves_at_once_and_never_starts() -> None:
    rig = Rig(4)
    try:
        running = asyncio.ensure_future(rig.handler.transfer(1, rig.store(1, 1)))
        queued = asyncio.ensure_future(rig.handler.transfer(2, rig.store(2, 2)))
        await rig.gate.arrived.acquire()
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        assert not running.done()
        assert [rig.region.is_held(slot) for slot in range(4)] == [False, True, False, False]
        rig.gate.let_through()
        await running
        assert (rig.slots[2] == CANARY).all()
        assert rig.handler.get_finished() == []
    finally:
        await rig.close()


async def test_cancelled_while_running_it_leaves_when_nothing_touches_the_memory_and_stops_between_pieces() -> None:
    rig = Rig(3 * MAX_COPIES_PER_CALL)
    backwards = GPULoadStoreSpec(range(len(rig.cache))), CPULoadStoreSpec(range(len(rig.cache) - 1, -1, -1))
    try:
        running = asyncio.ensure_future(rig.handler.transfer(1, backwards))
        await rig.gate.arrived.acquire()
        await rig.gate.arrived.acquire()
        running.cancel()
        await turns()
        running.cancel()
        await turns()
        assert not running.done()
        assert rig.holds() == len(rig.cache)
        rig.gate.let_through()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert rig.holds() == 0
        written = rig.slots[::-1]
        assert np.array_equal(written[: 2 * MAX_COPIES_PER_CALL], rig.cache[: 2 * MAX_COPIES_PER_CALL].numpy())
        assert (written[2 * MAX_COPIES_PER_CALL :] == CANARY).all()
    finally:
        await rig.close()


async def test_stopping_ends_a_transfer_early_and_its_owner_is_told() -> None:
    rig = Rig(3 * MAX_COPIES_PER_CALL)
    everything = range(len(rig.cache))
    try:
        running = rig.handler.submit(1, (GPULoadStoreSpec(everything), CPULoadStoreSpec(everything[::-1])))
        queued = rig.handler.submit(2, rig.store(0, 0))
        owner = asyncio.ensure_future(queued)
        await rig.gate.arrived.acquire()
        await rig.gate.arrived.acquire()
        queued.stop()
        assert not (await owner).success
        running.stop()
        assert not running.done()
        rig.gate.let_through()
        await rig.handler.wait([1])
        result = running.result()
        assert (result.success, result.transfer_size) == (False, 0)
        assert "stopped before its end" in str(result.error)
        running.stop()
        assert rig.holds() == 0
        assert (rig.slots[:MAX_COPIES_PER_CALL] == CANARY).all()
    finally:
        await rig.close()


async def test_cancelled_when_finished_but_not_delivered_the_result_counts() -> None:
    rig = Rig(4)
    try:
        task = asyncio.ensure_future(rig.handler.transfer(1, rig.store(3, 0)))
        await rig.gate.arrived.acquire()
        rig.gate.let_through()
        rig.handler.synchronize([1])
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (rig.slots[0] == 3).all()
        assert rig.holds() == 0
    finally:
        await rig.close()


async def test_a_cancelled_anyio_scope_waits_for_the_memory_too() -> None:
    rig = Rig(4)
    ended = False

    async def inside(scope: anyio.CancelScope) -> None:
        nonlocal ended
        with scope:
            await rig.handler.transfer(1, rig.store(1, 1))
        ended = True

    try:
        scope = anyio.CancelScope()
        async with asyncio.TaskGroup() as group:
            group.create_task(inside(scope))
            await rig.gate.arrived.acquire()
            scope.cancel()
            await turns()
            assert not ended
            assert rig.region.is_held(1)
            rig.gate.let_through()
        assert scope.cancelled_caught
        assert rig.holds() == 0
    finally:
        await rig.close()


async def test_a_cancelled_bystander_leaves_the_transfer_alone() -> None:
    rig = Rig(4)
    try:
        transfer = rig.handler.submit(1, rig.store(2, 2))
        bystander = asyncio.ensure_future(rig.handler.wait([1]))
        await rig.gate.arrived.acquire()
        bystander.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bystander
        rig.gate.let_through()
        assert (await transfer).success
        assert (rig.slots[2] == 2).all()
    finally:
        await rig.close()


async def test_a_thousand_in_flight_with_cancels_at_random() -> None:
    threads = threading.active_count()
    rig, rng = Rig(1000), random.Random(3)
    try:
        tasks = [asyncio.ensure_future(rig.handler.transfer(n, rig.store(n, n))) for n in range(1000)]
        await rig.gate.arrived.acquire()
        cancelled = set(rng.sample(range(1, 1000), 400))
        for n in cancelled:
            tasks[n].cancel()
        await turns()
        rig.gate.let_through()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {n for n, outcome in enumerate(outcomes) if isinstance(outcome, asyncio.CancelledError)} == cancelled
        for n in range(1000):
            assert (rig.slots[n] == (CANARY if n in cancelled else n % 251)).all()
        assert rig.holds() == 0
        assert sorted(rig.region.take_released()) == list(range(1000))
    finally:
        await rig.close()
    assert threading.active_count() == threads


async def test_results_come_in_the_order_of_submission_within_a_direction() -> None:
    rig = Rig(64, gated=False)
    try:
        for n in range(64):
            rig.handler.submit(n, rig.store(n, 63 - n))
        await rig.handler.wait(range(64))
        assert [result.job_id for result in rig.handler.get_finished()] == list(range(64))
    finally:
        await rig.close()


async def test_directions_are_independent_of_each_other() -> None:
    rig = Rig(4)
    try:
        store = rig.handler.submit(1, rig.store(1, 1))
        await rig.gate.arrived.acquire()
        await rig.handler.transfer(2, rig.load(0, 0))
        assert not store.done()
        assert (rig.cache[0] == CANARY).all()
        rig.gate.let_through()
        await store
    finally:
        await rig.close()


@pytest.mark.parametrize(("slot", "block"), [(1, 3), (2, 1)], ids=["same slot", "same device block"])
async def test_a_load_waits_for_stores_that_touch_its_slots_or_blocks(slot: int, block: int) -> None:
    rig = Rig(4)
    try:
        store = rig.handler.submit(1, rig.store(1, 1))
        load = rig.handler.submit(2, rig.load(slot, block))
        await rig.gate.arrived.acquire()
        await turns()
        assert not load.done()
        assert (rig.cache[block] == block).all()
        rig.gate.let_through()
        await load
        assert store.done()
        assert (rig.slots[1] == 1).all()
        assert (rig.cache[block] == (1 if slot == 1 else CANARY)).all()
    finally:
        await rig.close()


async def test_a_store_of_a_block_waits_for_the_load_that_fills_it() -> None:
    rig = Rig(4)
    try:
        rig.handler.submit(1, rig.store(1, 1))
        rig.handler.submit(2, rig.load(1, 2))
        onward = rig.handler.submit(3, rig.store(2, 3))
        rig.gate.let_through()
        await onward
        assert (rig.slots[3] == 1).all()
    finally:
        await rig.close()


async def test_a_store_waits_for_the_load_it_would_overwrite_and_withdrawn_copies_order_nothing() -> None:
    rig = Rig(4)
    try:
        first = rig.handler.submit(1, rig.store(1, 1))
        load = asyncio.ensure_future(rig.handler.transfer(2, rig.load(1, 2)))
        second = rig.handler.submit(3, rig.store(2, 1))
        await rig.gate.arrived.acquire()
        await turns()
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        assert not first.done()
        rig.gate.let_through()
        await second
        assert (rig.slots[1] == 2).all()
        assert (rig.cache[2] == 2).all()
    finally:
        await rig.close()


async def test_closing_finishes_stores_and_drops_queued_loads() -> None:
    rig = Rig(6)
    for n in range(3):
        rig.handler.submit(n, rig.store(n, n))
    load = rig.handler.submit(9, rig.load(1, 5))
    await rig.gate.arrived.acquire()
    closing = asyncio.ensure_future(rig.handler.aclose())
    await turns()
    assert not closing.done()
    assert load.done()
    rig.gate.let_through()
    await closing
    await rig.handler.aclose()
    finished = [(result.job_id, result.success) for result in rig.handler.get_finished()]
    assert finished == [(9, False), (0, True), (1, True), (2, True)]
    assert rig.holds() == 0


@pytest.mark.parametrize("how", ["drain=False", "cancelled"])
async def test_closing_without_draining_drops_what_is_queued_and_awaits_what_runs(how: str) -> None:
    rig = Rig(6)
    stores = [rig.handler.submit(n, rig.store(n, n)) for n in range(3)]
    waiters = [asyncio.ensure_future(rig.handler.wait([n])) for n in range(3)]
    await rig.gate.arrived.acquire()
    closing = asyncio.ensure_future(rig.handler.aclose(drain=how != "drain=False"))
    await turns()
    if how == "cancelled":
        closing.cancel()
        await turns()
    assert [store.done() for store in stores] == [False, True, True]
    assert not closing.done()
    rig.gate.let_through()
    await asyncio.wait([closing])
    assert closing.cancelled() == (how == "cancelled")
    assert [store.result().success for store in stores] == [True, False, False]
    assert (rig.slots[1:] == CANARY).all()
    await asyncio.gather(*waiters)
    await rig.close()


async def test_closing_past_its_timeout_names_what_still_runs() -> None:
    threads = threading.active_count()
    rig = Rig(4)
    store = rig.handler.submit(7, rig.store(1, 1))
    await rig.gate.arrived.acquire()
    with pytest.raises(TierUnavailable, match=r"\[7\] still run"):
        await rig.handler.aclose(drain=False, timeout=0)
    assert rig.region.is_held(1)
    rig.gate.let_through()
    rig.handler.synchronize([7])
    await rig.handler.aclose()
    assert store.result().success
    assert rig.holds() == 0
    assert threading.active_count() == threads


async def test_a_drain_past_its_timeout_drops_what_is_queued_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(4)
    running, queued = (rig.handler.submit(n, rig.store(n, n)) for n in (1, 2))
    await rig.gate.arrived.acquire()
    closing = asyncio.ensure_future(rig.handler.aclose(drain_timeout=0))
    await turns()
    assert (running.done(), queued.done()) == (False, True)
    rig.gate.let_through()
    await closing
    assert (running.result().success, queued.result().success) == (True, False)
    assert "did not drain within 0 s" in caplog.text
