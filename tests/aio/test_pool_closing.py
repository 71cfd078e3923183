"""Closing: nothing new, nothing lost without a result, nothing left running unsaid."""

from __future__ import annotations

import asyncio
import threading

import pytest

from asyncoffload.aio import dual_queue
from asyncoffload.aio.dual_queue import DualQueueThreadPool
from asyncoffload.aio.job_state import JobState
from asyncoffload.errors import TierUnavailable
from asyncoffload.types.vocabulary import Status
from tests.aio.gate import Gate


async def busy_pool() -> tuple[DualQueueThreadPool, list[Gate], list[JobState[str]]]:
    """A pool of two workers, both of them in a gate."""
    pool = DualQueueThreadPool(1, 1)
    gates = [Gate(), Gate()]
    jobs = [pool.enqueue_load(100 + n, 1, [gate]) for n, gate in enumerate(gates)]
    for gate in gates:
        await gate.reached.wait()
    return pool, gates, jobs


def unreachable() -> str:
    raise AssertionError("dropped tasks do not run")


async def test_queued_stores_finish_and_queued_loads_are_dropped() -> None:
    pool, gates, running = await busy_pool()
    stores = [pool.enqueue_store(n, 3, [lambda: "stored"] * 3) for n in range(5)]
    loads = [pool.enqueue_load(n, 3, [unreachable] * 3) for n in range(5)]
    closing = asyncio.create_task(pool.aclose())
    for load in loads:
        assert await load == [Status.CANCELLED] * 3
    for gate in gates:
        gate.opened.set()
    await closing
    assert [await job for job in running] == [["through"]] * 2
    assert [await store for store in stores] == [["stored"] * 3] * 5


async def test_stores_still_queued_after_the_drain_time_are_dropped() -> None:
    pool, gates, running = await busy_pool()
    store = pool.enqueue_store(1, 2, [unreachable] * 2)
    closing = asyncio.create_task(pool.aclose(drain_timeout=0))
    assert await store == [Status.CANCELLED] * 2
    assert not closing.done()
    for gate in gates:
        gate.opened.set()
    await closing
    assert [await job for job in running] == [["through"]] * 2


async def test_without_draining_everything_queued_is_dropped_and_running_work_awaited() -> None:
    pool, gates, running = await busy_pool()
    store = pool.enqueue_store(1, 2, [unreachable] * 2)
    closing = asyncio.create_task(pool.aclose(drain=False))
    assert await store == [Status.CANCELLED] * 2
    assert not closing.done()
    for gate in gates:
        gate.opened.set()
    await closing
    assert [await job for job in running] == [["through"]] * 2


async def test_past_its_timeout_closing_names_what_still_runs_and_may_be_tried_again() -> None:
    pool, gates, running = await busy_pool()
    gates[0].opened.set()
    await running[0]
    with pytest.raises(TierUnavailable, match="JobState 101") as caught:
        await pool.aclose(timeout=0)
    assert "100" not in str(caught.value)
    assert not running[1].finished
    gates[1].opened.set()
    await pool.aclose(timeout=30)
    assert await running[1] == ["through"]


async def test_a_long_close_is_worth_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr(dual_queue, "_LONG_CLOSE", 0.0)
    monkeypatch.setattr(dual_queue.logger, "warning", lambda text, *args: said.put_nowait(text % args))
    pool, gates, _ = await busy_pool()
    closing = asyncio.create_task(pool.aclose())
    assert "JobState 100" in await said.get()
    for gate in gates:
        gate.opened.set()
    await closing


async def test_closing_is_idempotent_also_at_the_same_time() -> None:
    pool, gates, _ = await busy_pool()
    store = pool.enqueue_store(1, 1, [unreachable])
    patient = asyncio.create_task(pool.aclose())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not store.finished
    impatient = asyncio.create_task(pool.aclose(drain=False))
    assert await store == [Status.CANCELLED]
    for gate in gates:
        gate.opened.set()
    await asyncio.gather(patient, impatient)
    await pool.aclose()
    await pool.wait_idle()


async def test_a_cancelled_close_drops_what_is_queued_and_still_awaits_what_runs() -> None:
    pool, gates, running = await busy_pool()
    store = pool.enqueue_store(1, 1, [unreachable])
    closing = asyncio.create_task(pool.aclose())
    for _ in range(5):
        await asyncio.sleep(0)
    closing.cancel()
    assert await store == [Status.CANCELLED]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not closing.done()
    for gate in gates:
        gate.opened.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert all(job.finished for job in running)
    assert pool.stats().unfinished_jobs == 0


async def test_closing_inside_a_timeout_drops_what_is_queued() -> None:
    pool, gates, _ = await busy_pool()
    store = pool.enqueue_store(1, 1, [unreachable])

    async def close() -> None:
        async with asyncio.timeout(0):
            await pool.aclose()

    closing = asyncio.create_task(close())
    assert await store == [Status.CANCELLED]
    for gate in gates:
        gate.opened.set()
    with pytest.raises(TimeoutError):
        await closing


async def test_all_threads_and_tasks_are_gone_after_closing() -> None:
    before = set(threading.enumerate()), asyncio.all_tasks()
    pool = DualQueueThreadPool(4, 4)
    await pool.enqueue_load(1, 64, [lambda: None] * 64)
    await pool.aclose()
    for thread in set(threading.enumerate()) - before[0]:
        thread.join()
    assert asyncio.all_tasks() == before[1]
    assert pool.stats().threads == 0


async def test_a_pool_that_was_never_used_closes() -> None:
    pool = DualQueueThreadPool()
    await pool.aclose()
    await pool.aclose(drain=False, timeout=0)
