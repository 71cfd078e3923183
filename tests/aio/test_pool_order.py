"""Who is served first, and who may be queued at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.aio.dual_queue import DualQueueThreadPool
from asyncoffload.errors import ClosedError
from asyncoffload.testing import ManualClock
from asyncoffload.types.vocabulary import Priority, Status
from tests.aio.gate import Gate


class OneThread:
    """A pool of which one worker is busy for good, so that the other one serves everything, and in order."""

    def __init__(self, *, max_queued_bytes: int | None = None) -> None:
        self.clock = ManualClock(1000.0)
        self.pool = DualQueueThreadPool(1, 1, clock=self.clock, max_queued_bytes=max_queued_bytes)
        self.served: list[str] = []
        self._blocker, self._plug = Gate(), Gate()

    async def __aenter__(self) -> Self:
        self.pool.enqueue_load(-1, 1, [self._blocker])
        self.pool.enqueue_load(-2, 1, [self._plug])
        await self._blocker.reached.wait()
        await self._plug.reached.wait()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._blocker.opened.set()
        self._plug.opened.set()
        await self.pool.aclose()

    def task(self, name: str) -> Callable[[], None]:
        return partial(self.served.append, name)

    async def go(self) -> None:
        """Unplug one worker and wait until it has served what is queued."""
        done = self.pool.enqueue_load(-3, 1, [lambda: None], priority=Priority.HOUSEKEEPING)
        store = self.pool.enqueue_store(-4, 1, [lambda: None], priority=Priority.HOUSEKEEPING)
        self._plug.opened.set()
        await done.wait()
        await store.wait()


async def test_priorities_are_served_in_order() -> None:
    async with OneThread() as one:
        for priority in (Priority.CASCADE, Priority.PREFETCH, Priority.DEMAND):
            one.pool.enqueue_load(1, 1, [one.task(priority.name)], priority=priority)
        await one.go()
        assert one.served == ["DEMAND", "PREFETCH", "CASCADE"]


async def test_equals_are_served_in_order_of_arrival() -> None:
    async with OneThread() as one:
        for n in range(20):
            one.pool.enqueue_load(n, 1, [one.task(str(n))])
        await one.go()
        assert one.served == [str(n) for n in range(20)]


async def test_a_near_deadline_comes_first() -> None:
    async with OneThread() as one:
        one.pool.enqueue_load(1, 1, [one.task("demand")])
        one.pool.enqueue_load(2, 1, [one.task("far")], priority=Priority.CASCADE, deadline=one.clock.now + 100)
        one.pool.enqueue_load(3, 1, [one.task("near")], priority=Priority.CASCADE, deadline=one.clock.now + 0.5)
        one.pool.enqueue_load(4, 1, [one.task("late")], priority=Priority.CASCADE, deadline=one.clock.now - 1)
        await one.go()
        assert one.served == ["demand", "late", "near", "far"]


async def test_the_patient_are_served_under_a_stream_of_urgent_ones() -> None:
    async with OneThread() as one:
        one.pool.enqueue_load(0, 1, [one.task("patient")], priority=Priority.CASCADE)
        for n in range(30):  # one urgent job every 0.1 s
            one.pool.enqueue_load(n, 1, [one.task("urgent")])
            one.clock.now += 0.1
        await one.go()
        assert 9 <= one.served.index("patient") <= 11  # after its patience of one second


async def test_hurry_brings_a_queued_job_forward_once() -> None:
    async with OneThread() as one:
        one.pool.enqueue_load(1, 20, [one.task("hurried")] * 20, priority=Priority.CASCADE)
        one.pool.enqueue_load(2, 1, [one.task("prefetch")], priority=Priority.PREFETCH)
        one.pool.hurry(1, Priority.HOUSEKEEPING)  # never later than it was
        one.pool.hurry(1, Priority.DEMAND)
        one.pool.hurry(1, Priority.DEMAND)
        one.pool.hurry(12345, Priority.DEMAND)
        await one.go()
        assert one.served == ["hurried"] * 20 + ["prefetch"]


async def test_hurrying_a_dropped_job_does_not_revive_it() -> None:
    async with OneThread() as one:
        job = one.pool.enqueue_load(1, 1, [one.task("cancelled")], priority=Priority.CASCADE)
        other = one.pool.enqueue_load(1, 1, [one.task("other")], priority=Priority.CASCADE)
        job.cancel()
        one.pool.hurry(1, Priority.DEMAND)
        await one.go()
        assert one.served == ["other"]
        assert await other == [None]


@pytest.mark.parametrize("side", ["load", "store"])
async def test_read_workers_take_loads_first_and_write_workers_stores(side: str) -> None:
    pool = DualQueueThreadPool(2, 1)
    gates = {"load": Gate(), "other load": Gate(), "store": Gate()}
    pool.enqueue_load(0, 2, [gates["load"], gates["other load"]])
    pool.enqueue_store(0, 1, [gates["store"]])
    for gate in gates.values():
        await gate.reached.wait()
    served: list[str] = []
    jobs = [
        enqueue(n, 1, [partial(served.append, name)])
        for n in range(3)
        for name, enqueue in (("store", pool.enqueue_store), ("load", pool.enqueue_load))
    ]
    gates[side].opened.set()
    for job in jobs:
        await job
    assert served == [side] * 3 + [{"load": "store", "store": "load"}[side]] * 3
    for gate in gates.values():
        gate.opened.set()
    await pool.aclose()


async def test_stores_leave_read_workers_for_loads() -> None:
    pool = DualQueueThreadPool(4, 2)
    gates = [Gate() for _ in range(10)]
    stores = [pool.enqueue_store(n, 1, [gate]) for n, gate in enumerate(gates)]
    for gate in gates[:4]:
        await gate.reached.wait()
    assert await pool.enqueue_load(1, 2, [lambda: 7] * 2) == [7, 7]
    assert pool.stats().running_stores == 4  # both write workers, and half of the four read workers
    for gate in gates:
        gate.opened.set()
    for store in stores:
        await store
    await pool.aclose()


async def test_bytes_being_stored_are_capped_and_more_so_beside_loads() -> None:
    clock = ManualClock(1000.0)
    pool = DualQueueThreadPool(4, 4, max_storing_bytes=100, clock=clock)
    gates = [Gate() for _ in range(6)]
    sizes = [1000, 60, 60, 60, 1, 1]
    stores = [pool.enqueue_store(n, 1, [gate], nbytes=sizes[n]) for n, gate in enumerate(gates)]

    async def load() -> None:
        assert await pool.enqueue_load(9, 8, [lambda: 7] * 8, nbytes=10_000) == [7] * 8

    await gates[0].reached.wait()
    await load()
    assert pool.stats().running_stores == 1  # larger than the cap, so it is alone
    clock.now += 10
    gates[0].opened.set()
    await gates[1].reached.wait()
    await gates[2].reached.wait()
    assert pool.stats().running_stores == 2
    await load()
    gates[1].opened.set()
    await stores[1]
    await load()
    assert pool.stats().running_stores == 1
    clock.now += 10
    for gate in gates:
        gate.opened.set()
    for store in stores:
        await store
    await pool.aclose()


async def test_what_does_not_fit_is_shed_with_a_result() -> None:
    async with OneThread(max_queued_bytes=100) as one:
        accepted = one.pool.enqueue_store(1, 2, [one.task("fits")] * 2, nbytes=100)
        shed = one.pool.enqueue_store(2, 2, [one.task("does not")] * 2, nbytes=1)
        assert shed.finished
        assert not shed.success
        assert await shed == await shed.wait() == [Status.SHED] * 2
        load = one.pool.enqueue_load(3, 1, [one.task("load")], nbytes=100)  # each direction has its own budget
        assert one.pool.stats().shed_stores == 2
        assert one.pool.stats().shed_loads == 0
        await one.go()
        assert await accepted == [None, None]
        assert await load == [None]
        assert "does not" not in one.served
        assert one.pool.stats().queued_store_bytes == 0


async def test_an_oversized_job_is_accepted_when_nothing_else_is_queued() -> None:
    async with OneThread(max_queued_bytes=100) as one:
        oversized = one.pool.enqueue_store(1, 1, [one.task("oversized")], nbytes=1000)
        assert await one.pool.enqueue_store(2, 1, [one.task("shed")], nbytes=1) == [Status.SHED]
        await one.go()
        assert await oversized == [None]


async def test_room_is_given_in_order_of_arrival() -> None:
    async with OneThread(max_queued_bytes=100) as one:

        async def store(name: str, nbytes: int) -> None:
            await one.pool.room(nbytes)
            job = one.pool.enqueue_store(1, 1, [one.task(name)], nbytes=nbytes)
            assert await job == [None]

        first = one.pool.enqueue_store(0, 1, [one.task("first")], nbytes=100)
        tasks = [
            asyncio.create_task(store(name, nbytes)) for name, nbytes in [("large", 90), ("small", 10), ("next", 50)]
        ]
        await asyncio.sleep(0)
        assert await one.pool.enqueue_store(5, 1, [one.task("shed")], nbytes=1) == [Status.SHED]
        await one.go()
        await asyncio.gather(first, *tasks)
        assert one.served == ["first", "large", "small", "next"]


async def test_a_dropped_job_makes_room() -> None:
    async with OneThread(max_queued_bytes=100) as one:
        job = one.pool.enqueue_load(1, 1, [one.task("dropped")], nbytes=100)
        waiting = asyncio.create_task(one.pool.room(100, load=True))
        await asyncio.sleep(0)
        assert not waiting.done()
        job.cancel()
        await waiting


async def test_closing_turns_away_who_waits_for_room() -> None:
    async with OneThread(max_queued_bytes=100) as one:
        one.pool.enqueue_store(1, 1, [one.task("first")], nbytes=100)
        waiting = asyncio.create_task(one.pool.room(1))
        await asyncio.sleep(0)
        closing = asyncio.create_task(one.pool.aclose(drain=False))
        with pytest.raises(ClosedError):
            await waiting
        await one.__aexit__()
        await closing


actions = st.tuples(
    st.sampled_from(["load", "store", "cancel", "hurry", "turn"]),
    st.integers(0, 40),
    st.sampled_from(Priority),
    st.integers(0, 300),
)


@given(st.lists(actions, max_size=40))
def test_every_job_ends_whatever_happens(steps: list[tuple[str, int, Priority, int]]) -> None:
    async def run() -> None:
        pool = DualQueueThreadPool(2, 1, max_queued_bytes=500, max_storing_bytes=50)
        jobs = []
        for action, number, priority, nbytes in steps:
            match action:
                case "load" | "store":
                    enqueue = pool.enqueue_load if action == "load" else pool.enqueue_store
                    jobs.append(
                        enqueue(number % 5, number, [partial(int, number)] * number, nbytes=nbytes, priority=priority)
                    )
                case "cancel" if jobs:
                    jobs[number % len(jobs)].cancel()
                case "hurry":
                    pool.hurry(number % 5, priority)
                case _:
                    await asyncio.sleep(0)
        async with asyncio.timeout(30):
            for job in jobs:
                for result in await job:
                    assert result in (job.n_tasks, Status.SHED, Status.CANCELLED)
                    assert result is not Status.CANCELLED or job.stopped
            await pool.wait_idle()
        stats = pool.stats()
        assert (stats.queued_loads, stats.queued_stores, stats.running_loads, stats.running_stores) == (0, 0, 0, 0)
        assert (stats.queued_load_bytes, stats.queued_store_bytes, stats.unfinished_jobs) == (0, 0, 0)
        await pool.aclose()

    asyncio.run(run())
