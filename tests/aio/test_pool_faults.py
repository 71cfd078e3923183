"""The faults that kill thread pools for coroutines, one test each."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from asyncoffload.aio.dual_queue import DualQueueThreadPool
from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.aio.job_state import JobState
from asyncoffload.errors import ClosedError, InvalidArgument, WrongLoopError
from asyncoffload.types.vocabulary import Status
from tests.aio.gate import Gate


async def test_every_task_runs_once_and_results_keep_their_order() -> None:
    pool = DualQueueThreadPool(3, 2)
    ran: list[int] = []

    def task(n: int) -> int:
        ran.append(n)
        return n * n

    job = pool.enqueue_load(1, 100, [partial(task, n) for n in range(100)], nbytes=100 << 16)
    assert await job == [n * n for n in range(100)]
    assert sorted(ran) == list(range(100))
    assert job.success
    await pool.aclose()


async def test_one_job_is_shared_by_all_workers() -> None:
    pool = DualQueueThreadPool(4, 4)
    together = threading.Barrier(8, timeout=30)
    assert len(set(await pool.enqueue_load(1, 8, [together.wait] * 8))) == 8
    await pool.aclose()


async def test_many_jobs_at_once() -> None:
    pool = DualQueueThreadPool(4, 4)
    jobs = [(pool.enqueue_load, pool.enqueue_store)[n % 2](n, 3, [partial(int, n)] * 3) for n in range(300)]
    assert [await job for job in jobs] == [[n] * 3 for n in range(300)]
    assert pool.stats().unfinished_jobs == 0
    await pool.aclose()


async def test_a_cancelled_submitter_does_not_kill_a_worker() -> None:
    pool = DualQueueThreadPool(1, 1)
    for _ in range(10):
        gates = [Gate(), Gate()]
        owners = [asyncio.ensure_future(pool.enqueue_load(1, 1, [gate])) for gate in gates]
        for gate, owner in zip(gates, owners, strict=True):
            await gate.reached.wait()
            owner.cancel()
            gate.opened.set()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*owners, return_exceptions=True)
        )
    assert await pool.enqueue_load(1, 2, [lambda: 7] * 2) == [7, 7]
    await pool.aclose()


async def test_a_job_cancelled_while_queued_does_not_run() -> None:
    pool = DualQueueThreadPool(1, 1)
    gates = [Gate(), Gate()]
    busy = [pool.enqueue_load(n, 1, [gate]) for n, gate in enumerate(gates)]
    for gate in gates:
        await gate.reached.wait()
    ran: list[int] = []
    queued = pool.enqueue_load(9, 1, [lambda: ran.append(1)])
    queued.cancel()
    assert await queued == [Status.CANCELLED]  # at once: both threads are still busy
    for gate in gates:
        gate.opened.set()
    for job in busy:
        assert await job == ["through"]
    await pool.enqueue_load(10, 4, [lambda: None] * 4)
    assert ran == []
    await pool.aclose()


async def test_closing_with_busy_workers_does_not_hang() -> None:
    pool = DualQueueThreadPool(2, 2)
    gates = [Gate() for _ in range(4)]
    jobs = [pool.enqueue_store(n, 1, [gate]) for n, gate in enumerate(gates)]
    for gate in gates[:3]:
        await gate.reached.wait()
    closing = asyncio.create_task(pool.aclose())
    for gate in gates:
        gate.opened.set()
    await closing
    assert [await job for job in jobs] == [["through"]] * 4


async def test_threads_are_bounded_by_workers() -> None:
    pool = DualQueueThreadPool(2, 1)
    gates = [Gate() for _ in range(20)]
    jobs = [pool.enqueue_load(n, 1, [gate]) for n, gate in enumerate(gates)]
    for gate in gates[:3]:
        await gate.reached.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert pool.stats().threads == 3
    assert [gate.reached.is_set() for gate in gates] == [True] * 3 + [False] * 17
    for gate in gates:
        gate.opened.set()
    for job in jobs:
        await job
    assert pool.stats().threads == 3
    await pool.aclose()


async def test_wait_idle_returns_when_the_last_task_has_ended_and_after_closing() -> None:
    pool = DualQueueThreadPool(1, 1)
    await pool.wait_idle()
    gate = Gate()
    pool.enqueue_store(1, 1, [gate])
    waiting = asyncio.create_task(pool.wait_idle())
    await gate.reached.wait()
    assert not waiting.done()
    gate.opened.set()
    await waiting
    await pool.aclose()
    await pool.wait_idle()


async def test_a_cancelled_wait_idle_leaves_the_jobs_alone() -> None:
    pool = DualQueueThreadPool(1, 1)
    gate = Gate()
    job = pool.enqueue_store(1, 1, [gate])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await pool.wait_idle()
    gate.opened.set()
    assert await job == ["through"]
    await pool.aclose()


async def test_a_job_of_zero_tasks_completes() -> None:
    pool = DualQueueThreadPool()
    job: JobState[None] = pool.enqueue_load(1, 0, [])
    assert job.finished
    assert await job == []
    await pool.wait_idle()
    await pool.aclose()


@pytest.mark.parametrize("drain", [True, False])
async def test_queued_loads_dropped_by_closing_have_a_result(drain: bool) -> None:
    pool = DualQueueThreadPool(1, 1)
    gates = [Gate(), Gate()]
    running = [pool.enqueue_load(n, 1, [gate]) for n, gate in enumerate(gates)]
    for gate in gates:
        await gate.reached.wait()
    queued = pool.enqueue_load(9, 2, [lambda: pytest.fail("dropped")] * 2)
    closing = asyncio.create_task(pool.aclose(drain=drain))
    assert await queued == [Status.CANCELLED] * 2
    assert not queued.success
    for gate in gates:
        gate.opened.set()
    await closing
    assert [await job for job in running] == [["through"]] * 2


async def test_what_a_task_raises_is_its_result() -> None:
    pool = DualQueueThreadPool(1, 1)

    def bad() -> int:
        raise BaseException("no ordinary error")

    job: JobState[int] = pool.enqueue_load(1, 3, [lambda: 1, bad, lambda: 3])
    first, error, last = await job
    assert (first, last) == (1, 3)
    assert isinstance(error, BaseException)
    assert not job.success
    assert await pool.enqueue_load(2, 1, [lambda: 7]) == [7]
    await pool.aclose()


async def test_tasks_that_raise_while_they_are_listed_queue_nothing() -> None:
    pool = DualQueueThreadPool(1, 1)

    def lazy() -> Iterator[Any]:
        yield lambda: pytest.fail("nothing was queued")
        raise KeyError("no such block")

    with pytest.raises(KeyError):
        pool.enqueue_load(1, 2, lazy())
    await pool.wait_idle()
    assert pool.stats().queued_loads == 0
    assert await pool.enqueue_load(1, 1, [lambda: 7]) == [7]
    await pool.aclose()


async def test_payloads_are_never_compared() -> None:
    class Incomparable:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise AssertionError("compared")

        __lt__ = __gt__ = __le__ = __ge__ = __eq__

        def __call__(self) -> Incomparable:
            return self

    pool = DualQueueThreadPool(1, 1, clock=lambda: 1.0)
    tasks = [Incomparable() for _ in range(50)]
    jobs = [pool.enqueue_load(1, 1, [task]) for task in tasks]
    for job, task in zip(jobs, tasks, strict=True):
        (result,) = await job
        assert result is task
    await pool.aclose()


@pytest.mark.parametrize(("n_tasks", "nbytes"), [(2, 0), (0, 0), (1, -1)])
async def test_refuses_a_wrong_count_of_tasks_or_bytes(n_tasks: int, nbytes: int) -> None:
    pool = DualQueueThreadPool(1, 1)
    with pytest.raises(InvalidArgument, match="job 5"):
        pool.enqueue_load(5, n_tasks, [lambda: None], nbytes=nbytes)
    await pool.wait_idle()
    await pool.aclose()


async def test_a_closed_pool_takes_no_jobs() -> None:
    pool = DualQueueThreadPool(1, 1)
    await pool.aclose()
    with pytest.raises(ClosedError, match="job 3"):
        pool.enqueue_store(3, 1, [lambda: None])
    with pytest.raises(ClosedError):
        await pool.room(1)
    assert "closed" in repr(pool)


def test_refuses_to_work_without_threads_or_patience() -> None:
    with pytest.raises(InvalidArgument, match="got 0 and 1"):
        DualQueueThreadPool(0, 1)
    with pytest.raises(InvalidArgument, match="DEMAND"):
        DualQueueThreadPool(1, 1, patience={})


def test_belongs_to_one_loop() -> None:
    pool = DualQueueThreadPool(1, 1)

    async def use() -> None:
        await pool.enqueue_load(1, 1, [lambda: None])

    asyncio.run(use())
    with pytest.raises(WrongLoopError, match="one pool for each loop"):
        asyncio.run(use())


async def test_a_job_fails_where_the_system_has_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = DualQueueThreadPool(1, 1)

    def refuse(_: IOThreads) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(IOThreads, "_spawn", refuse)
        results = await pool.enqueue_load(1, 2, [lambda: pytest.fail("no thread")] * 2)
    assert [str(error) for error in results] == ["can't start new thread"] * 2
    assert await pool.enqueue_load(2, 1, [lambda: 7]) == [7]
    await pool.aclose()


async def test_a_hanging_thread_is_given_up_and_its_worker_goes_on() -> None:
    before, now = set(threading.enumerate()), 0.0
    pool = DualQueueThreadPool(1, 1, clock=lambda: now, max_given_up=2)
    gates = [Gate(), Gate()]
    tasks: list[list[Callable[[], object]]] = [[lambda: 7, gate, lambda: 7] for gate in gates]
    hanging = [pool.enqueue_store(n, 3, calls) for n, calls in enumerate(tasks)]
    await gates[0].reached.wait()
    assert pool.give_up(older_than=5) == {}
    now = 10.0
    assert pool.give_up(older_than=5)[hanging[0]] == [1]
    assert pool.give_up(older_than=5)[hanging[0]] == [1], "it hangs all the same, and is replaced once"
    assert await pool.enqueue_load(8, 2, [lambda: 7] * 2) == [7, 7]
    assert not hanging[0].finished
    assert pool.stats().given_up_threads >= 1
    for gate in gates:
        gate.opened.set()
    assert [await job for job in hanging] == [[7, "through", 7]] * 2
    await pool.aclose()
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert pool.stats().threads == 0


async def test_it_says_whether_more_threads_hang_than_can_be_replaced() -> None:
    now = 0.0
    pool = DualQueueThreadPool(1, 1, clock=lambda: now, max_given_up=1)
    gates = [Gate(), Gate()]
    hanging = [pool.enqueue_load(n, 1, [gate]) for n, gate in enumerate(gates)]
    for gate in gates:
        await gate.reached.wait()
    now = 3.0
    assert not pool.lacks_threads(older_than=5)
    now = 10.0
    stuck = pool.give_up(older_than=5)
    assert set(stuck) == set(hanging)
    assert pool.lacks_threads(older_than=5)
    gates[1].opened.set()
    await hanging[1]
    assert not pool.lacks_threads(older_than=5), "the other one was replaced"
    gates[0].opened.set()
    await hanging[0]
    await pool.aclose()


def test_the_interpreter_exits_with_an_io_thread_blocked() -> None:
    code = """
import asyncio, os, threading
from asyncoffload.aio.dual_queue import DualQueueThreadPool

async def main():
    pool = DualQueueThreadPool(1, 1)
    reader, _ = os.pipe()
    running = threading.Event()
    pool.enqueue_load(1, 1, [lambda: (running.set(), os.read(reader, 1))])
    while not running.is_set():
        await asyncio.sleep(0)
    print("leaving", flush=True)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("leaving\n", "")
