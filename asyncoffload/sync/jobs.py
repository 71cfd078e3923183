"""Jobs that run on the loop's thread for callers on others."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.aio.mailbox import Mailbox
from asyncoffload.errors import InvalidArgument

W = TypeVar("W")
R = TypeVar("R")


class _Job(Generic[W]):
    """A job from its submission until its result has been handed out."""

    __slots__ = ("end", "ended", "job_id", "started", "work")

    def __init__(self, job_id: int, work: W) -> None:
        self.job_id = job_id
        self.work = work
        self.started = self.ended = False
        self.end: asyncio.Future[None] | None = None


class LoopJobs(Generic[W, R]):
    """Jobs by id: submitted at once, run on the loop, each with one result that is handed out once.

    Any thread may call. A submission costs no wake-up of the loop where one is under way; a collection none at all.

    Args:
        run: runs one job and returns its result; must not raise, whatever happens to the job.
        weigh: how much a result counts against the limit of one collection.
    """

    def __init__(self, loop: LoopThread, run: Callable[[W], Coroutine[Any, Any, R]], weigh: Callable[[R], int]) -> None:
        self._loop = loop
        self._run = run
        self._weigh = weigh
        self._jobs: dict[int, _Job[W]] = {}
        self._finished: deque[tuple[int, R]] = deque()
        self._collecting = threading.Lock()
        self._inbox: Mailbox[_Job[W]] = Mailbox(self._start, loop.loop)

    def __len__(self) -> int:
        """Jobs that run, or have a result that was not handed out."""
        return len(self._jobs)

    @property
    def uncollected(self) -> int:
        """Results that were not handed out."""
        return len(self._finished)

    def submit(self, job_id: int, work: W) -> None:
        """Have a job run; returns at once. When this thread is interrupted meanwhile, it may run or not, never half.

        Raises:
            InvalidArgument: a job of that id is running, or its result was not handed out.
        """
        job = _Job(job_id, work)
        try:
            if self._jobs.setdefault(job_id, job) is job:
                self._inbox.post(job)
                return
        except BaseException:  # KeyboardInterrupt: a job that is known but not started would be waited for in vain
            self._loop.post(lambda: self._start([job]))
            raise
        raise InvalidArgument(f"job {job_id} is in flight: its id may be used again once its result was collected")

    def collect(self, limit: int) -> list[R]:
        """Results, oldest end of a job first: as many as weigh ``limit`` together, or one that is heavier alone.

        Raises:
            WrongLoopError: the process was forked.
            InternalError: the loop's thread has ended, and all that ended before it has been handed out.
        """
        self._loop.check_process()
        finished = self._finished
        if not finished:
            if self._jobs:
                self._loop.check()
            return []
        results: list[R] = []
        weight = 0
        with self._collecting:
            while finished:
                weight += self._weigh(finished[0][1])
                if weight > limit and results:
                    break
                job_id, result = finished.popleft()
                del self._jobs[job_id]
                results.append(result)
        return results

    def running(self, job_ids: Iterable[int] | None = None) -> dict[int, W]:
        """The jobs that have not ended; all of them, or those of these ids. Unknown ids are ignored."""
        return {job.job_id: job.work for job in self._not_ended(job_ids)}

    def wait(self, job_ids: Iterable[int] | None = None, timeout: float | None = None) -> list[int]:
        """Block until jobs have ended, all of them or those of these ids; returns those that have not in time.

        Raises:
            WrongLoopError, InternalError: the process was forked; the loop's thread has ended.
        """
        self._loop.check_process()
        jobs = self._not_ended(job_ids)
        if jobs:
            try:
                self._loop.run(lambda: self._all_ended(jobs), timeout)
            except TimeoutError:
                return [job.job_id for job in jobs if not job.ended]
        return []

    def _not_ended(self, job_ids: Iterable[int] | None) -> list[_Job[W]]:
        jobs = list(self._jobs.values()) if job_ids is None else map(self._jobs.get, job_ids)
        return [job for job in jobs if job is not None and not job.ended]

    # ---- on the loop's thread

    async def ended(self) -> None:
        """Wait until every job that was submitted before has ended."""
        await self._all_ended(list(self._jobs.values()))

    def _start(self, jobs: list[_Job[W]]) -> None:
        for job in jobs:
            if not job.started and self._jobs.get(job.job_id) is job:
                job.started = True
                self._loop.spawn(self._see_through(job))

    async def _see_through(self, job: _Job[W]) -> None:
        result = await self._run(job.work)
        job.ended = True
        self._finished.append((job.job_id, result))
        if job.end is not None:
            job.end.set_result(None)

    async def _all_ended(self, jobs: Iterable[_Job[W]]) -> None:
        for job in jobs:
            if not job.ended:
                if job.end is None:
                    job.end = self._loop.loop.create_future()
                await asyncio.wait([job.end])
