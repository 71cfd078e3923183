"""What the pool says of its queues, class by class."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from asyncoffload.aio.dual_queue import DualQueueThreadPool
from asyncoffload.aio.pool_stats import PoolStats
from asyncoffload.types.vocabulary import Priority
from tests.aio.gate import Gate


class Clock:
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _queued(stats: PoolStats) -> dict[str, tuple[int, float]]:
    """Tasks and age of the classes that have something queued."""
    return {p.name: (queue.tasks, queue.age) for p, queue in stats.queues.items() if queue.tasks}


async def test_tasks_and_ages_of_each_class_and_how_long_they_waited() -> None:
    clock = Clock()
    pool = DualQueueThreadPool(1, 1, clock=clock)
    gates = [Gate(), Gate()]
    for number, gate in enumerate(gates):
        pool.enqueue_load(number, 1, [gate])
        await gate.reached.wait()
    assert _queued(pool.stats()) == {}
    demand = pool.enqueue_load(10, 100, [int] * 100)
    clock.now += 2
    pool.enqueue_store(11, 7, [int] * 7)
    cascade = pool.enqueue_store(12, 5, [int] * 5, deadline=clock.now + 1000)
    clock.now += 1
    assert _queued(pool.stats()) == {"DEMAND": (100, 3.0), "CASCADE": (12, 1.0)}
    demand.cancel()
    assert _queued(pool.stats()) == {"CASCADE": (12, 1.0)}
    pool.hurry(11, Priority.DEMAND)
    assert _queued(pool.stats()) == {"DEMAND": (7, 1.0), "CASCADE": (5, 1.0)}
    for gate in gates:
        gate.opened.set()
    await cascade
    await pool.wait_idle()
    queues = pool.stats().queues
    assert _queued(pool.stats()) == {}
    assert queues[Priority.DEMAND].waits.seconds == queues[Priority.DEMAND].waits.count - 2  # the gates never waited
    assert queues[Priority.CASCADE].waits.seconds == queues[Priority.CASCADE].waits.count > 0
    assert queues[Priority.PREFETCH].waits.count == queues[Priority.HOUSEKEEPING].waits.count == 0
    await pool.aclose()


async def test_another_thread_may_look_while_the_pool_works() -> None:
    pool = DualQueueThreadPool(2, 2)
    enough = Event()

    def look() -> int:
        looks = 0
        while not enough.is_set():
            stats = pool.stats()
            assert all(queue.tasks >= 0 and queue.age >= 0 for queue in stats.queues.values())
            looks += 1
        return looks

    with ThreadPoolExecutor(1) as watcher:
        looking = watcher.submit(look)
        try:
            for number in range(200):
                jobs = [pool.enqueue_load(number, 20, [int] * 20), pool.enqueue_store(number, 20, [int] * 20)]
                jobs[number % 2].cancel()
                await asyncio.gather(*(job.wait() for job in jobs))
        finally:
            enough.set()
        assert looking.result() > 0
    await pool.aclose()
