"""The cancellation contract of the pool, moment by moment.

The canary of these tests is the memory of a job: once the owner's await has returned, by whatever way, no task of the
job may touch it any more.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest

from asyncoffload.aio.dual_queue import DualQueueThreadPool
from asyncoffload.aio.job_state import JobState
from asyncoffload.aio.slices import SliceBounds
from asyncoffload.types.vocabulary import Status
from tests.aio.gate import Gate


class Canary:
    """Memory of a job: notices who touches it after it was given back."""

    def __init__(self) -> None:
        self.given_back = False
        self.late = 0
        self.touched = 0

    def touch(self) -> None:
        self.touched += 1
        self.late += self.given_back

    async def watch(self, job: JobState[Any]) -> list[Any]:
        """Own a job on this memory."""
        try:
            return await job
        finally:
            self.given_back = True


def unreachable() -> None:
    raise AssertionError("a cancelled task ran")


Interruption = Callable[[Coroutine[Any, Any, Any], asyncio.Event], Coroutine[Any, Any, None]]


async def by_task_cancel(work: Coroutine[Any, Any, Any], now: asyncio.Event) -> None:
    task = asyncio.create_task(work)
    await asyncio.sleep(0)  # a task that is cancelled before its first step never comes to own anything
    await now.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_timeout(work: Coroutine[Any, Any, Any], now: asyncio.Event) -> None:
    async def within() -> None:
        async with asyncio.timeout(None) as timeout:
            expiring.set_result(timeout)
            await work

    expiring: asyncio.Future[asyncio.Timeout] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(within())
    timeout = await expiring
    await now.wait()
    timeout.reschedule(asyncio.get_running_loop().time())
    with pytest.raises(TimeoutError):
        await task


async def by_anyio_scope(work: Coroutine[Any, Any, Any], now: asyncio.Event) -> None:
    async with anyio.create_task_group() as group:

        async def cancel() -> None:
            await now.wait()
            group.cancel_scope.cancel()

        group.start_soon(cancel)
        await work
    assert group.cancel_scope.cancelled_caught


interruptions = pytest.mark.parametrize("interrupt", [by_task_cancel, by_timeout, by_anyio_scope])


@asynccontextmanager
async def pool_of(n_read: int, n_write: int) -> AsyncIterator[DualQueueThreadPool]:
    slices = SliceBounds(max_tasks=4, max_bytes=1 << 20, min_bytes=4)  # four tasks of one byte are one slice
    pool = DualQueueThreadPool(n_read, n_write, load_slices=slices, store_slices=slices)
    try:
        yield pool
    finally:
        await pool.aclose(drain=False)


@asynccontextmanager
async def blocked(pool: DualQueueThreadPool, workers: int) -> AsyncIterator[None]:
    """Keep all workers busy with somebody else's job."""
    gates = [Gate() for _ in range(workers)]
    for gate in gates:
        pool.enqueue_load(0, 1, [gate])
    for gate in gates:
        await gate.reached.wait()
    try:
        yield
    finally:
        for gate in gates:
            gate.opened.set()


@interruptions
async def test_queued_removed_and_raises_at_once(interrupt: Interruption) -> None:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(pool_of(1, 1))
        await stack.enter_async_context(blocked(pool, 2))
        now = asyncio.Event()
        now.set()
        job = pool.enqueue_load(1, 3, [unreachable] * 3, nbytes=300)
        await interrupt(Canary().watch(job), now)  # while the workers are blocked
        assert job.results == [Status.CANCELLED] * 3
        assert pool.stats().queued_load_bytes == 0
        assert pool.stats().queued_loads == 0


@interruptions
async def test_running_stops_between_tasks_and_raises_when_nothing_runs(interrupt: Interruption) -> None:
    async with pool_of(1, 1) as pool:
        gate, canary = Gate(), Canary()

        def touch_through_the_gate() -> None:
            canary.touch()
            gate()
            canary.touch()

        job: JobState[None] = pool.enqueue_load(1, 2, [touch_through_the_gate, unreachable], nbytes=2)
        interrupted = asyncio.create_task(interrupt(canary.watch(job), gate.reached))
        await gate.reached.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not interrupted.done()
        assert not canary.given_back
        gate.opened.set()
        await interrupted
        assert canary.given_back
        assert (canary.touched, canary.late) == (2, 0)
        assert job.results == [None, Status.CANCELLED]


@interruptions
async def test_a_bystander_leaves_at_once_and_the_work_goes_on(interrupt: Interruption) -> None:
    async with pool_of(1, 1) as pool:
        gate = Gate()
        job: JobState[str] = pool.enqueue_load(1, 3, [gate, lambda: "two", lambda: "three"])
        await gate.reached.wait()
        await interrupt(job.wait(), gate.reached)
        assert not job.finished
        gate.opened.set()
        assert await job == ["through", "two", "three"]


async def test_finished_but_not_delivered_raises_and_the_result_counts() -> None:
    async with pool_of(1, 1) as pool:
        gate = Gate()
        job = pool.enqueue_load(1, 1, [gate])
        owner = asyncio.ensure_future(job)
        await gate.reached.wait()
        gate.opened.set()
        await pool.wait_idle()
        owner.cancel()
        with pytest.raises(asyncio.CancelledError):
            await owner
        assert job.results == ["through"]
        assert job.success


async def test_a_timeout_that_has_passed_before_the_await_stops_the_job() -> None:
    async with pool_of(1, 1) as pool, blocked(pool, 2):
        job = pool.enqueue_store(1, 1, [unreachable])
        with anyio.CancelScope() as scope:
            scope.cancel()
            await job
        assert scope.cancelled_caught
        assert job.results == [Status.CANCELLED]


async def test_cancelled_again_and_again_while_it_stops() -> None:
    async with pool_of(1, 1) as pool:
        gate, canary = Gate(), Canary()
        owner = asyncio.create_task(canary.watch(pool.enqueue_load(1, 1, [gate])))
        await gate.reached.wait()
        for _ in range(10):
            owner.cancel()
            await asyncio.sleep(0)
        assert not owner.done()
        gate.opened.set()
        with pytest.raises(asyncio.CancelledError):
            await owner


async def test_one_of_several_jobs_is_cancelled_and_the_others_finish() -> None:
    async with pool_of(2, 2) as pool:
        owners = [asyncio.ensure_future(pool.enqueue_load(n, 20, [partial(int, n)] * 20)) for n in range(20)]
        await asyncio.sleep(0)
        for owner in owners[::2]:
            owner.cancel()
        ends = await asyncio.gather(*owners, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends[::2])
        assert ends[1::2] == [[n] * 20 for n in range(1, 20, 2)]


async def test_ten_thousand_cancels_at_random_moments() -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    before = set(threading.enumerate())
    canaries: list[Canary] = []
    async with pool_of(3, 2) as pool:

        async def submit_and_cancel(rounds: int) -> None:
            for _ in range(rounds):
                canary = Canary()
                canaries.append(canary)
                n = chance.randrange(1, 7)
                enqueue = pool.enqueue_load if chance.random() < 0.5 else pool.enqueue_store
                owner = asyncio.create_task(canary.watch(enqueue(1, n, [canary.touch] * n, nbytes=n)))
                for _ in range(chance.randrange(8)):
                    await asyncio.sleep(0)
                owner.cancel()
                await asyncio.wait([owner])

        await asyncio.gather(*(submit_and_cancel(250) for _ in range(40)))
        await pool.wait_idle()
        stats = pool.stats()
        assert stats.threads <= 5
        assert (stats.running_loads, stats.running_stores, stats.unfinished_jobs) == (0, 0, 0)
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert sum(canary.late for canary in canaries) == 0, f"seed {seed}"
    assert len(canaries) == 10_000
    assert any(canary.touched for canary in canaries)
