"""Running a tier's jobs in the pool, and knowing which of them are under way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from asyncoffload.aio.dual_queue import DualQueueThreadPool
from asyncoffload.aio.job_state import JobState
from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.fs.outcomes import SHED_BY, Moved, outcome_of
from asyncoffload.tiers.fs.recency import used_at
from asyncoffload.tiers.fs.syncing import SyncGroups
from asyncoffload.types import DONE, KeyOutcome, Priority, Status, TransferJob

MoveBlock = Callable[[TransferJob, OffloadKey, int, int], Moved]
Settle = Callable[[Sequence[OffloadKey], Sequence[KeyOutcome]], None]


class Enqueue(Protocol):
    """``enqueue_load`` or ``enqueue_store`` of a pool."""

    def __call__(
        self,
        job_id: int,
        n_tasks: int,
        tasks: Iterable[Callable[[], Moved]],
        *,
        nbytes: int,
        priority: Priority,
        deadline: float | None,
    ) -> JobState[Moved]: ...


Refusal = Callable[[OffloadKey], KeyOutcome]


class _Running:
    """A job that the pool has.

    Attributes:
        job: what was asked.
        todo: the positions of the keys that the pool moves.
        state: the pool's side of it.
        is_store: its direction.
        refusal: what becomes of the blocks that were not moved, once the job was broken off.
        hanging: the keys of calls that hang.
    """

    __slots__ = ("hanging", "is_store", "job", "refusal", "state", "todo")

    def __init__(self, job: TransferJob, todo: Sequence[int], state: JobState[Moved], *, is_store: bool) -> None:
        self.job = job
        self.todo = todo
        self.state = state
        self.is_store = is_store
        self.refusal: Refusal | None = None
        self.hanging: set[OffloadKey] = set()

    @property
    def moved(self) -> list[KeyOutcome]:
        """What became of the blocks to do."""
        results = self.state.results
        if self.refusal is None:
            return [outcome_of(result) for result in results]
        return [
            self._refused(self.job.keys[index]) if result is Status.CANCELLED else outcome_of(result)
            for index, result in zip(self.todo, results, strict=True)
        ]

    def outcomes(self, moved: Sequence[KeyOutcome]) -> list[KeyOutcome]:
        """For all keys of the job; what was not to do is DONE."""
        outcomes = [DONE] * len(self.job.keys)
        for index, outcome in zip(self.todo, moved, strict=True):
            outcomes[index] = outcome
        return outcomes

    def _refused(self, key: OffloadKey) -> KeyOutcome:
        assert self.refusal is not None
        return SHED_BY["pause"] if self.is_store and key not in self.hanging else self.refusal(key)


class RunningJobs:
    """The jobs that a tier has in its pool.

    Args:
        pool: runs them.
        payload_bytes: bytes of a block.
        now: nanoseconds since the epoch.
        syncs: makes stored blocks durable; None where nobody does.

    Attributes:
        hanging: the keys of calls that hang, and how many do; nobody should make another one for them.
    """

    def __init__(
        self,
        pool: DualQueueThreadPool,
        payload_bytes: Callable[[OffloadKey], int],
        now: Callable[[], int],
        syncs: SyncGroups | None = None,
    ) -> None:
        self.hanging: Counter[OffloadKey] = Counter()
        self._pool = pool
        self._payload_bytes = payload_bytes
        self._now = now
        self._syncs = syncs
        self._jobs: dict[asyncio.Future[None], _Running] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def names(self) -> str:
        """The ids of the jobs under way, for a message."""
        return ", ".join(str(running.job.job_id) for running in self._jobs.values())

    async def store(self, job: TransferJob, todo: Sequence[int], move: MoveBlock, settle: Settle) -> list[KeyOutcome]:
        """Store the blocks ``todo`` of a job, see :meth:`load`."""
        return await self._run(self._pool.enqueue_store, job, todo, move, settle, is_store=True)

    async def load(self, job: TransferJob, todo: Sequence[int], move: MoveBlock, settle: Settle) -> list[KeyOutcome]:
        """Load the blocks ``todo`` of a job, enter what became of them, and answer for all of its keys.

        What is not to do counts as DONE. If cancelled, what was moved until then is entered all the same.

        Args:
            job: the job.
            todo: positions in its keys.
            move: moves one block, in a thread; it is given the job, the key, the slot, and when the block was used.
            settle: enters what became of the blocks.
        """
        return await self._run(self._pool.enqueue_load, job, todo, move, settle, is_store=False)

    async def ended(self, timeout: float | None = None) -> None:
        """Wait until those that are under way now have ended, or for ``timeout`` seconds."""
        if self._jobs:
            await asyncio.wait(set(self._jobs), timeout=timeout)

    def stop(self, *, keep_stores: bool = False) -> None:
        """Start nothing more of any job, or of any load."""
        for running in list(self._jobs.values()):
            if not (keep_stores and running.is_store):
                running.state.cancel()

    def break_off(self, refusal: Refusal) -> None:
        """Start nothing more of any job: what is left of stores is SHED, what is left of loads is refused."""
        for running in list(self._jobs.values()):
            running.refusal = refusal
            running.state.cancel()

    def abandon_hanging(self, older_than: float, refusal: Refusal) -> list[OffloadKey]:
        """Abandon the jobs of which a call has run for longer than ``older_than`` seconds; others do its thread's work.

        Returns:
            The keys of such calls that were not known to hang.
        """
        calls = self._pool.give_up(older_than)
        found: list[OffloadKey] = []
        for running in list(self._jobs.values()):
            keys = {running.job.keys[running.todo[at]] for at in calls.get(running.state, ())} - running.hanging
            if keys:
                found += keys
                self.hanging.update(keys)
                running.hanging |= keys
                running.refusal = refusal
                running.state.cancel()
                running.job.abandon(running.outcomes(running.moved))
        return found

    def lacks_threads(self, older_than: float) -> bool:
        """Whether a call has run for longer than ``older_than`` seconds whose thread's work nobody else can do."""
        return self._pool.lacks_threads(older_than)

    async def _end_of(self, state: JobState[Moved], *, is_store: bool) -> None:
        try:
            await state
        finally:
            if is_store and self._syncs is not None:
                await self._syncs.settled(state.results)

    async def _run(
        self,
        enqueue: Enqueue,
        job: TransferJob,
        todo: Sequence[int],
        move: MoveBlock,
        settle: Settle,
        *,
        is_store: bool,
    ) -> list[KeyOutcome]:
        keys, now = [job.keys[index] for index in todo], self._now()
        depths = range(len(job.keys)) if job.depths is None else job.depths
        state = enqueue(
            job.job_id,
            len(keys),
            [partial(move, job, job.keys[index], job.slots[index], used_at(now, depths[index])) for index in todo],
            nbytes=sum(map(self._payload_bytes, keys)),
            priority=job.priority,
            deadline=job.deadline,
        )
        running = _Running(job, todo, state, is_store=is_store)
        ended = asyncio.get_running_loop().create_future()
        self._jobs[ended] = running
        try:
            await self._end_of(state, is_store=is_store)
        finally:
            moved = running.moved
            settle(keys, moved)
            self.hanging -= Counter(running.hanging)
            del self._jobs[ended]
            ended.set_result(None)
        return running.outcomes(moved)
