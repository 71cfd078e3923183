"""A batch of calls on its way through the pool: what became of each, and who may wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeAlias, TypeVar

from asyncoffload.aio.waiting import outlive
from asyncoffload.errors import InvalidArgument, WrongLoopError
from asyncoffload.types.vocabulary import Status

T = TypeVar("T")

Results: TypeAlias = list[T | BaseException | Status]
"""In task order: what the task returned, what it raised, or why it never ran (SHED or CANCELLED)."""


class JobState(Generic[T]):
    """One job of the pool.

    A job has one owner, who awaits it: ``results = await job``. Everybody else uses ``await job.wait()``.

    Attributes:
        job_id: the id the job was submitted under.
        n_tasks: how many tasks it has.
        results: one entry per task, in task order; CANCELLED stands where a task has not run.
        stopped: the job was cancelled: tasks that have not started never will.

    Cancellation: a cancelled **owner** stops the job. What is queued is dropped at once, what runs stops between two
    tasks, and the await raises only when no task runs any more, so that the owner may then do with the tasks' memory
    what it likes. A cancelled **bystander** leaves at once and leaves the job alone. (A task that is cancelled before
    its first step never gets as far as owning anything: submit a job in the task that awaits it.)
    """

    def __init__(
        self,
        job_id: int,
        n_tasks: int,
        *,
        stop: Callable[[JobState[Any]], None] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if n_tasks < 0:
            raise InvalidArgument(f"a job has 0 tasks or more, got {n_tasks}")
        self.job_id = job_id
        self.n_tasks = n_tasks
        self.results: Results[T] = [Status.CANCELLED] * n_tasks
        self.stopped = False
        self._stop = stop
        self._loop = loop
        self._lock = threading.Lock()
        self._left = n_tasks
        self._success = True
        self._announced = not n_tasks
        self._end: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "finished" if self.finished else "stopping" if self.stopped else "under way"
        return f"<JobState {self.job_id} {state}, {self.n_tasks - self._left} of {self.n_tasks} tasks done>"

    @property
    def finished(self) -> bool:
        """Whether every task has ended or will never start."""
        return not self._left

    @property
    def success(self) -> bool:
        """Whether every task that has ended returned normally; a task that never ran counts against it."""
        return self._success

    def task_done(self, success: bool, n: int = 1) -> tuple[bool, bool]:
        """Count ``n`` tasks as ended; any thread.

        Returns:
            ``(finished, success)``: finished is True in exactly one call, that of the last task; success is False
            from the first failure on.
        """
        with self._lock:
            if not 0 < n <= self._left:
                raise InvalidArgument(f"{n} tasks cannot end where {self._left} are left in {self!r}")
            self._left -= n
            self._success = self._success and success
            return not self._left, self._success

    def __await__(self) -> Generator[Any, None, Results[T]]:
        """The owner's await; see the class for its cancellation."""
        return self._own().__await__()

    async def wait(self) -> Results[T]:
        """A bystander's await: its cancellation leaves the job alone."""
        if not self._announced:
            await asyncio.wait([self._ending()])
        return self.results

    def cancel(self) -> None:
        """Stop the job: none of its tasks starts any more, one may still run. Returns at once; the loop's thread."""
        if not self.finished and not self.stopped:
            self.stopped = True
            if self._stop is not None:
                self._stop(self)

    def announce(self) -> None:
        """Let those go who wait; called once, on the loop's thread, by whoever runs the job and saw it finish."""
        self._announced = True
        if self._end is not None and not self._end.done():
            self._end.set_result(None)

    async def _own(self) -> Results[T]:
        if not self._announced:
            await outlive(self._ending(), self.cancel)
        return self.results

    def _ending(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        if self._loop is not None and loop is not self._loop:
            raise WrongLoopError(f"{self!r} belongs to another event loop: await it where it was submitted")
        if self._end is None:
            self._end = loop.create_future()
        return self._end
