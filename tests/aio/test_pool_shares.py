"""Who waits for whom: every class of work, and each direction, keeps a share of the pool however much others want."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import pytest

from asyncoffload.aio.dual_queue import PATIENCE, DualQueueThreadPool
from asyncoffload.testing import Gate, ManualClock
from asyncoffload.types.vocabulary import Priority

STEP = 0.01
"""Seconds that pass whenever one of the calls ends."""

BACKLOG = 6
MIB = 1 << 20


@dataclass(frozen=True)
class Kind:
    """Jobs of one call each.

    Attributes:
        lane: ``"load"`` or ``"store"``.
        nbytes: of each.
        late_by: seconds since their deadline when they come; None: they have none.
    """

    lane: str
    priority: Priority
    nbytes: int = 0
    late_by: float | None = None


class BusyPool:
    """A pool whose calls all wait at one gate, and jobs that never end: for each that starts another one comes.

    Calls end one at a time, those first that have run longest, and take one step of a clock that stands still
    otherwise. So what is served when is decided by the pool alone.
    """

    def __init__(self, n_read: int, n_write: int, *, max_storing_bytes: int = 1 << 40) -> None:
        self.clock = ManualClock(1000.0)
        self.gate: Gate[Kind] = Gate()
        self.pool = DualQueueThreadPool(
            n_read, n_write, max_queued_bytes=None, max_storing_bytes=max_storing_bytes, clock=self.clock
        )
        self.served: list[Kind] = []
        self._endless: set[Kind] = set()
        self._running = 0

    async def __aenter__(self) -> Self:
        self.gate.shut()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._endless.clear()
        closing = asyncio.create_task(self.pool.aclose(drain=False))
        while not closing.done():
            self.gate.open()
            await asyncio.sleep(0)
        await closing

    async def endless(self, kinds: Iterable[Kind], *, running: int, backlog: int = BACKLOG) -> None:
        """From now on so many jobs of each kind are always queued, and so many calls always run."""
        for kind in kinds:
            self._endless.add(kind)
            for _ in range(backlog):
                self.enqueue(kind)
        self._running = running
        await self._settle()

    def enqueue(self, kind: Kind) -> None:
        enqueue = self.pool.enqueue_load if kind.lane == "load" else self.pool.enqueue_store
        deadline = None if kind.late_by is None else self.clock.now - kind.late_by
        call = [lambda: self.gate.pass_in_thread(kind)]
        enqueue(0, 1, call, nbytes=kind.nbytes, priority=kind.priority, deadline=deadline)

    async def step(self) -> None:
        """Let one call end."""
        self.clock.advance(STEP)
        self.gate.let_pass()
        await self._settle()

    async def steps_until(self, kind: Kind, limit: int = 2000) -> float:
        """The time at which the first of a kind starts."""
        for _ in range(limit):
            if kind in self.served:
                return self.clock.now
            await self.step()
        raise AssertionError(f"{kind} was not served while {limit} others were")

    async def _settle(self) -> None:
        await self.gate.reached(self._running)
        while self.gate.unseen:
            kind = await self.gate.arrival()
            self.served.append(kind)
            if kind in self._endless:
                self.enqueue(kind)


def running(n_read: int, n_write: int, lane: str) -> int:
    """How many calls of one direction run when it has the pool for itself."""
    return n_read + n_write if lane == "load" else n_write + n_read // 2


PAIRS = [(urgent, patient) for urgent in Priority for patient in Priority if PATIENCE[urgent] < PATIENCE[patient]]


@pytest.mark.parametrize("lane", ["load", "store"])
@pytest.mark.parametrize(("urgent", "patient"), PAIRS, ids=lambda priority: str(priority.name))
async def test_the_patient_wait_for_no_longer_than_their_patience(
    lane: str, urgent: Priority, patient: Priority
) -> None:
    async with BusyPool(2, 2) as busy:
        await busy.endless([Kind(lane, urgent)], running=running(2, 2, lane))
        late, queued_at = Kind(lane, patient), busy.clock.now
        busy.enqueue(late)
        waited = await busy.steps_until(late) - queued_at
        assert waited >= PATIENCE[patient] - PATIENCE[urgent]  # or they would not be patient
        assert waited <= PATIENCE[patient] + (BACKLOG + 1) * STEP


@pytest.mark.parametrize("lane", ["load", "store"])
async def test_the_urgent_wait_for_no_more_than_has_run_out_of_patience(lane: str) -> None:
    async with BusyPool(2, 2) as busy:
        patient = [Kind(lane, priority) for priority in Priority if priority is not Priority.DEMAND]
        await busy.endless(patient, running=running(2, 2, lane))
        # What is queued is as old as it gets, since nothing else wants to be served.
        for _ in range(100):
            await busy.step()
        urgent, queued_at = Kind(lane, Priority.DEMAND), busy.clock.now
        busy.enqueue(urgent)
        assert await busy.steps_until(urgent) - queued_at <= STEP


@pytest.mark.parametrize("late_by", [0.0, 3600.0])
async def test_deadlines_that_have_passed_starve_nobody(late_by: float) -> None:
    async with BusyPool(2, 2) as busy:
        await busy.endless([Kind("load", Priority.DEMAND, late_by=late_by)], running=4)
        prefetch, queued_at = Kind("load", Priority.PREFETCH), busy.clock.now
        busy.enqueue(prefetch)
        assert await busy.steps_until(prefetch) - queued_at <= PATIENCE[Priority.PREFETCH] + (BACKLOG + 1) * STEP


async def test_every_class_of_both_directions_keeps_a_share_while_all_want_everything() -> None:
    kinds = [Kind(lane, priority) for lane in ("load", "store") for priority in Priority]
    seconds = 30.0
    async with BusyPool(2, 2) as busy:
        await busy.endless(kinds, running=4)
        for _ in range(int(seconds / STEP)):
            await busy.step()
        served = Counter(busy.served)
        # Each direction has half of the workers, so all that is queued of one takes so long:
        backlog = len(Priority) * BACKLOG * 2 * STEP
        for kind in kinds:
            turns = int(seconds / (PATIENCE[kind.priority] + backlog))
            assert served[kind] >= turns * BACKLOG, f"{kind} was served {served[kind]} times"
        for lane in ("load", "store"):
            by_class = [served[Kind(lane, priority)] for priority in sorted(Priority)]
            assert by_class == sorted(by_class, reverse=True)


async def test_stores_beside_unbounded_loads_have_the_write_workers() -> None:
    loads, stores = Kind("load", Priority.DEMAND), Kind("store", Priority.CASCADE)
    async with BusyPool(3, 2) as busy:
        await busy.endless([loads, stores], running=5)
        for _ in range(50):
            stats = busy.pool.stats()
            assert (stats.running_loads, stats.running_stores) == (3, 2)
            await busy.step()


async def test_a_store_beside_unbounded_loads_runs_however_large_it_is() -> None:
    loads, stores = Kind("load", Priority.DEMAND, 16 * MIB), Kind("store", Priority.HOUSEKEEPING, 16 * MIB)
    async with BusyPool(3, 2, max_storing_bytes=32 * MIB) as busy:
        await busy.endless([loads, stores], running=5)
        for _ in range(50):
            stats = busy.pool.stats()
            assert (stats.running_loads, stats.running_stores) == (4, 1)
            await busy.step()


async def test_stores_that_had_the_pool_for_themselves_keep_one_turn_when_loads_come() -> None:
    loads, stores = Kind("load", Priority.DEMAND, 16 * MIB), Kind("store", Priority.CASCADE, 16 * MIB)
    async with BusyPool(4, 2, max_storing_bytes=64 * MIB) as busy:
        await busy.endless([stores], running=4)
        assert busy.pool.stats().running_stores == 4
        await busy.endless([loads], running=6)
        for _ in range(10):  # each of the stores that run has ended then, and each worker has served another one
            await busy.step()
        before = Counter(busy.served)
        for _ in range(60):
            await busy.step()
            assert busy.pool.stats().running_stores == 1
        assert (Counter(busy.served) - before)[stores] == 10  # as often as each of the six workers


@pytest.mark.parametrize(("n_read", "n_write"), [(1, 1), (4, 2), (5, 1)])
async def test_loads_beside_unbounded_stores_find_workers_that_stores_may_not_take(n_read: int, n_write: int) -> None:
    loads, stores = Kind("load", Priority.HOUSEKEEPING), Kind("store", Priority.DEMAND)
    kept = n_read - n_read // 2
    async with BusyPool(n_read, n_write) as busy:
        await busy.endless([stores], running=running(n_read, n_write, "store"))
        await busy.endless([loads], running=n_read + n_write)  # none of the stores that run has ended
        assert busy.pool.stats().running_loads == kept
        for _ in range(n_read + n_write):
            await busy.step()
        for _ in range(50):
            stats = busy.pool.stats()
            assert (stats.running_loads, stats.running_stores) == (n_read, n_write)
            await busy.step()
