"""Running a tier's jobs in the pool, and knowing which of them are under way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from asyncoffload.aio.dual_queue import DualQueueThreadPool
from asyncoffload.aio.job_state import JobState
from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.fs.outcomes import outcome_of
from asyncoffload.tiers.fs.recency import used_at
from asyncoffload.types import DONE, KeyOutcome, Priority, TransferJob

MoveBlock = Callable[[TransferJob, OffloadKey, int, int], KeyOutcome]
Settle = Callable[[Sequence[OffloadKey], Sequence[KeyOutcome]], None]


class Enqueue(Protocol):
    """``enqueue_load`` or ``enqueue_store`` of a pool."""

    def __call__(
        self,
        job_id: int,
        n_tasks: int,
        tasks: Iterable[Callable[[], KeyOutcome]],
        *,
        nbytes: int,
        priority: Priority,
        deadline: float | None,
    ) -> JobState[KeyOutcome]: ...


class RunningJobs:
    """The jobs that a tier has in its pool.

    Args:
        pool: runs them.
        payload_bytes: bytes of a block.
        now: nanoseconds since the epoch.
    """

    def __init__(
        self, pool: DualQueueThreadPool, payload_bytes: Callable[[OffloadKey], int], now: Callable[[], int]
    ) -> None:
        self._pool = pool
        self._payload_bytes = payload_bytes
        self._now = now
        self._jobs: dict[asyncio.Future[None], tuple[JobState[KeyOutcome], bool]] = {}  # and whether it is a store

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def names(self) -> str:
        """The ids of the jobs under way, for a message."""
        return ", ".join(str(state.job_id) for state, _ in self._jobs.values())

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
        for state, is_store in list(self._jobs.values()):
            if not (keep_stores and is_store):
                state.cancel()

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
        state = enqueue(
            job.job_id,
            len(keys),
            [partial(move, job, job.keys[index], job.slots[index], used_at(now, index)) for index in todo],
            nbytes=sum(map(self._payload_bytes, keys)),
            priority=job.priority,
            deadline=job.deadline,
        )
        ended = asyncio.get_running_loop().create_future()
        self._jobs[ended] = state, is_store
        try:
            await state
        finally:
            moved = [outcome_of(result) for result in state.results]
            settle(keys, moved)
            del self._jobs[ended]
            ended.set_result(None)
        outcomes = [DONE] * len(job.keys)
        for index, outcome in zip(todo, moved, strict=True):
            outcomes[index] = outcome
        return outcomes
