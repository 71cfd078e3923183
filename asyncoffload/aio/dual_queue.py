"""The I/O pool: two priority queues on the loop, workers that each keep one thread busy."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

from asyncoffload.aio.dispatcher import Dispatcher
from asyncoffload.aio.io_threads import MAX_GIVEN_UP
from asyncoffload.aio.job_state import JobState
from asyncoffload.aio.lane import Lane
from asyncoffload.aio.pool_stats import PoolStats, queues_of
from asyncoffload.aio.slices import Slice, SliceBounds, cut
from asyncoffload.aio.waiting import outlive
from asyncoffload.errors import ClosedError, InvalidArgument, TierUnavailable, WrongLoopError
from asyncoffload.types.vocabulary import Priority, Status

T = TypeVar("T")

logger = logging.getLogger(__name__)

PATIENCE: Mapping[Priority, float] = MappingProxyType(
    {Priority.DEMAND: 0.0, Priority.PREFETCH: 0.25, Priority.CASCADE: 1.0, Priority.HOUSEKEEPING: 5.0}
)
"""Seconds that an entry of each priority lets later ones of higher priority go first."""

LOAD_SLICES = SliceBounds(max_tasks=64, max_bytes=4 << 20, min_bytes=256 << 10)
STORE_SLICES = SliceBounds(max_tasks=64, max_bytes=4 << 20, min_bytes=512 << 10)

_LONG_CLOSE = 10.0  # seconds after which closing is worth a warning


@dataclass(frozen=True, slots=True)
class _Job:
    """What the pool remembers of an unfinished job."""

    lane: Lane
    slices: list[Slice]
    queued_at: float


class DualQueueThreadPool:
    """Runs blocking I/O in threads: loads first in some of them, stores first in the others.

    A job is a batch of tasks, each a call that moves one block. It is cut into slices, and a slice is what a worker
    takes, runs in its thread and brings back. Within each direction the slice that is due first goes first: that is
    its deadline, or the time it was queued plus the patience of its priority, whichever comes first. So the urgent
    overtake the patient, and everybody's turn comes in the end. Stores may use every write worker and half of the
    read workers, and the bytes of blocks being written at the same time are capped, so that a load that arrives finds
    a worker that stores may not take, and a device whose queue is short.

    All methods belong on the thread of the event loop that makes the first call.

    Args:
        n_read_threads: workers that take loads first and stores otherwise.
        n_write_threads: workers that take stores first and loads otherwise.
        max_queued_bytes: bound on the bytes queued in each direction; None for no bound.
        bound_loads: whether the bound holds for loads as well as for stores.
        max_storing_bytes: bytes of blocks that are being written at the same time, a quarter of that while loads come;
            one block always may.
        patience: seconds per priority.
        load_slices, store_slices: how jobs are cut.
        max_given_up: how many hanging threads may be replaced, see :meth:`give_up`.
        clock: seconds; where deadlines are measured.
    """

    def __init__(
        self,
        n_read_threads: int = 16,
        n_write_threads: int = 16,
        *,
        max_queued_bytes: int | None = 1 << 30,
        bound_loads: bool = True,
        max_storing_bytes: int = 32 << 20,
        patience: Mapping[Priority, float] = PATIENCE,
        load_slices: SliceBounds = LOAD_SLICES,
        store_slices: SliceBounds = STORE_SLICES,
        max_given_up: int = MAX_GIVEN_UP,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if n_read_threads < 1 or n_write_threads < 1:
            raise InvalidArgument(
                f"a pool needs a read thread and a write thread or more, got {n_read_threads} and {n_write_threads}"
            )
        if missing := [priority.name for priority in Priority if priority not in patience]:
            raise InvalidArgument(f"patience needs seconds for every priority, {', '.join(missing)} is missing")
        self._n_workers = n_read_threads + n_write_threads
        self._patience = dict(patience)
        self._clock = clock
        self._loads = Lane(max_queued_bytes if bound_loads else None, load_slices)
        self._stores = Lane(max_queued_bytes, store_slices)
        self._dispatcher = Dispatcher(
            self._loads,
            self._stores,
            n_read=n_read_threads,
            n_write=n_write_threads,
            max_storing=n_write_threads + n_read_threads // 2,
            max_storing_bytes=max_storing_bytes,
            max_given_up=max_given_up,
            ended=self._settle_ended,
            clock=clock,
        )
        self._jobs: dict[JobState[Any], _Job] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False

    def __repr__(self) -> str:
        state = "closing" if self._closing and self._jobs else "closed" if self._closing else "open"
        s = self.stats()
        return (
            f"<DualQueueThreadPool {state}, {s.unfinished_jobs} jobs, queued {s.queued_loads} + {s.queued_stores}, "
            f"running {s.running_loads} + {s.running_stores} (loads + stores), {s.threads} threads>"
        )

    def stats(self) -> PoolStats:
        """A snapshot; any thread, and then without a promise that its numbers are of the very same moment."""
        loads, stores, dispatcher = self._loads, self._stores, self._dispatcher
        # Copies, made in one step each: the loop goes on while another thread looks.
        slices = (piece for job in list(self._jobs.values()) for piece in list(job.slices))
        return PoolStats(
            queued_loads=loads.queued,
            queued_stores=stores.queued,
            queued_load_bytes=loads.budget.used,
            queued_store_bytes=stores.budget.used,
            running_loads=loads.running,
            running_stores=stores.running,
            shed_loads=loads.shed,
            shed_stores=stores.shed,
            unfinished_jobs=len(self._jobs),
            threads=dispatcher.threads.threads,
            given_up_threads=dispatcher.threads.given_up,
            queues=queues_of(slices, dispatcher.waits, self._clock()),
        )

    def enqueue_load(
        self,
        job_id: int,
        n_tasks: int,
        tasks: Iterable[Callable[[], T]],
        *,
        nbytes: int = 0,
        priority: Priority = Priority.DEMAND,
        deadline: float | None = None,
    ) -> JobState[T]:
        """Queue a job of loads; a plain call that never blocks.

        Args:
            job_id: a name for :meth:`hurry` and for messages; jobs that share one are hurried together.
            n_tasks: how many tasks there are.
            tasks: the calls, each run once in an I/O thread. What one raises is its result and harms no other.
            nbytes: bytes that all of them move together; 0 where that is not known.
            priority: who goes first.
            deadline: seconds of the pool's clock; brings the job forward, at most to the moment at which it comes,
                and does nothing when it passes.

        Returns:
            The job, to be awaited by its owner. Where ``nbytes`` do not fit into the budget it has ended already,
            with SHED for each task.

        Raises:
            ClosedError: the pool is closed or closing.
            InvalidArgument: ``tasks`` has not ``n_tasks`` elements, or ``nbytes`` is negative.
            WrongLoopError: the pool belongs to another loop.
            Whatever iterating ``tasks`` raises; then nothing was queued.
        """
        return self._enqueue(self._loads, job_id, n_tasks, tasks, nbytes, priority, deadline)

    def enqueue_store(
        self,
        job_id: int,
        n_tasks: int,
        tasks: Iterable[Callable[[], T]],
        *,
        nbytes: int = 0,
        priority: Priority = Priority.CASCADE,
        deadline: float | None = None,
    ) -> JobState[T]:
        """Queue a job of stores; otherwise as :meth:`enqueue_load`."""
        return self._enqueue(self._stores, job_id, n_tasks, tasks, nbytes, priority, deadline)

    def hurry(self, job_id: int, priority: Priority) -> None:
        """Treat what is still queued of a job as if it had come with ``priority``; never makes it later.

        Unknown ids are ignored.
        """
        for state, job in self._jobs.items():
            if state.job_id == job_id:
                due = job.queued_at + self._patience[priority]
                for piece in job.slices:
                    if piece.queued and due < piece.due:
                        piece.priority = priority
                        job.lane.requeue(piece, due)
                        self._dispatcher.entry_added()

    async def room(self, nbytes: int, *, load: bool = False) -> None:
        """Wait, in order of arrival, until a store (or a load) of ``nbytes`` would not be shed.

        The room is the caller's until its next await: enqueue right after.

        Raises:
            ClosedError: the pool is closed or closing, or closes meanwhile.

        Cancellation: leaves the line at once.
        """
        if self._closing:
            raise ClosedError(f"there is no more room to wait for: {self!r} takes no new jobs")
        self._enter_loop()
        await (self._loads if load else self._stores).budget.room(nbytes)

    async def wait_idle(self) -> None:
        """Wait until every submitted job has had its last task end, whether or not anybody awaited its results.

        Cancellation: leaves at once; the jobs go on.
        """
        await self._idle.wait()

    def give_up(self, older_than: float) -> dict[JobState[Any], list[int]]:
        """Count no longer on the threads that have been in one call for more than ``older_than`` seconds.

        Their jobs remain unfinished until the calls return: a hanging write may still touch its memory. But their
        workers take other work, each with a new thread, up to ``max_given_up`` of them at a time.

        Returns:
            The jobs with such calls, and the positions of these among the job's tasks; also of those that were given
            up before.
        """
        stuck: dict[JobState[Any], list[int]] = {}
        for piece in self._dispatcher.give_up(older_than):
            stuck.setdefault(piece.job, []).append(piece.position)
        return stuck

    def lacks_threads(self, older_than: float) -> bool:
        """Whether a thread that has been in one call for so many seconds could not be replaced.

        What is queued may then wait for as long as that call takes.
        """
        return self._dispatcher.lacks_threads(older_than)

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        """Take no new jobs and come to rest; idempotent.

        Queued loads are dropped: their results are CANCELLED. Queued stores get ``drain_timeout`` seconds to start
        and are then dropped as well. What runs is awaited.

        Args:
            drain: False drops queued stores at once.
            drain_timeout: seconds.
            timeout: seconds to wait for what runs, once nothing is queued; None for as long as it takes.

        Raises:
            TierUnavailable: jobs still run after ``timeout``; the message names them. Their memory must not be
                reused. Closing may be tried again.

        Cancellation: drops everything that is queued and still awaits what runs, then raises.
        """
        self._closing = True
        self._loads.budget.close()
        self._stores.budget.close()
        if self._loop is not None:
            self._enter_loop()
            await outlive(self._loop.create_task(self._close(drain, drain_timeout, timeout)), self._drop_queued)

    def _enqueue(
        self,
        lane: Lane,
        job_id: int,
        n_tasks: int,
        tasks: Iterable[Callable[[], T]],
        nbytes: int,
        priority: Priority,
        deadline: float | None,
    ) -> JobState[T]:
        if self._closing:
            raise ClosedError(f"job {job_id} came too late: {self!r} takes no new jobs")
        calls = list(tasks)
        if len(calls) != n_tasks or nbytes < 0:
            raise InvalidArgument(f"job {job_id} promises {n_tasks} tasks, {nbytes} bytes, and has {len(calls)} tasks")
        self._enter_loop()
        state: JobState[T] = JobState(job_id, n_tasks, stop=self._drop, loop=self._loop)
        if not calls:
            return state
        if not lane.budget.fits(nbytes):
            lane.shed += n_tasks
            state.results[:] = [Status.SHED] * n_tasks
            state.task_done(False, n_tasks)
            state.announce()
            return state
        now = self._clock()
        due = now + self._patience[priority]
        if deadline is not None:
            due = min(due, max(now, deadline))  # deadlines long past would starve whoever has none
        # Where all workers have work already, spreading a job over them only costs hops.
        idle = max(1, self._n_workers - lane.queued - lane.running)
        slices = cut(state, calls, nbytes, lane.bounds.length(n_tasks, nbytes, idle))
        self._jobs[state] = _Job(lane, slices, now)
        self._idle.clear()
        for piece in slices:
            piece.priority, piece.queued_at = priority, now
            lane.put(piece, due)
            self._dispatcher.entry_added()
        return state

    def _enter_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            self._dispatcher.start(loop)
        elif loop is not self._loop:
            raise WrongLoopError(f"{self!r} belongs to another event loop: make one pool for each loop")

    def _settle_ended(self, slices: list[Slice]) -> None:
        for piece in slices:
            if piece.job.finished:
                self._settle(piece.job)

    def _settle(self, state: JobState[Any]) -> None:
        if self._jobs.pop(state, None) is not None:
            state.announce()
            if not self._jobs:
                self._idle.set()

    def _drop(self, state: JobState[Any]) -> None:
        """Take what is queued of a job out of the queue; the results of these tasks stay CANCELLED."""
        job = self._jobs[state]
        if n_tasks := sum(job.lane.drop(piece) for piece in job.slices if piece.queued):
            state.task_done(False, n_tasks)
        if state.finished:
            self._settle(state)

    def _drop_queued(self, lane: Lane | None = None) -> None:
        for state, job in list(self._jobs.items()):
            if lane is None or job.lane is lane:
                self._drop(state)

    async def _close(self, drain: bool, drain_timeout: float, timeout: float | None) -> None:
        self._drop_queued(self._loads)
        if drain:
            await _within(drain_timeout, self._stores.empty)
        self._drop_queued()
        await self._dispatcher.stop()
        first = _LONG_CLOSE if timeout is None else min(timeout, _LONG_CLOSE)
        if await _within(first, self._idle):
            return
        names = ", ".join(sorted(repr(state) for state in self._jobs))
        if timeout is None or timeout > first:
            logger.warning("closing takes more than %g s: %s", first, names)
            if await _within(None if timeout is None else timeout - first, self._idle):
                return
        raise TierUnavailable(
            f"jobs still run {timeout} s after closing, leave their memory alone and close again: {names}"
        )


async def _within(seconds: float | None, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
