"""Jobs are cut into slices: so many tasks that a thread runs them in one go."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from asyncoffload.aio.io_threads import Work
from asyncoffload.aio.job_state import JobState
from asyncoffload.errors import InvalidArgument
from asyncoffload.types.vocabulary import Priority


@dataclass(frozen=True, slots=True)
class SliceBounds:
    """How long a slice may be.

    Handing a slice to a thread and back costs some 50 us, as much as reading a few hundred KiB from the page cache:
    shorter slices waste it, longer ones keep a job from spreading over the workers and others waiting.

    Attributes:
        max_tasks: tasks of one slice at most.
        max_bytes: bytes of one slice at most, unless a single task has more.
        min_bytes: bytes below which a job is not cut further, however many workers are there.
    """

    max_tasks: int
    max_bytes: int
    min_bytes: int

    def __post_init__(self) -> None:
        if self.max_tasks < 1 or self.max_bytes < 1 or self.min_bytes < 0:
            raise InvalidArgument(f"a slice has at least one task and one byte, got {self}")

    def length(self, n_tasks: int, nbytes: int, workers: int) -> int:
        """How many tasks go into each slice of a job of ``nbytes``; 0 bytes means that its size is not known."""
        share = -(-n_tasks // workers)
        if not nbytes:
            return min(share, self.max_tasks)
        most = min(self.max_tasks, max(1, self.max_bytes * n_tasks // nbytes))
        return min(max(share, self.min_bytes * n_tasks // nbytes), most)


class Slice:
    """Neighbouring tasks of one job, in a queue or in a thread.

    Attributes:
        job: whose tasks they are.
        siblings: the slices of that job, this one among them.
        first: index of the first one within the job.
        tasks: the calls; emptied when they have run or never will.
        nbytes: bytes of all of them.
        task_bytes: bytes of one, rounded up: what the slice has in the device's queue while it runs.
        due: seconds on the pool's clock, by which it is ordered. A queue entry with another time is stale.
        priority: the class that it counts as.
        queued_at: seconds on the pool's clock.
        queued: no worker has taken it, and it has not been dropped.
        started: seconds on the pool's clock, when a worker took it.
        call_began: when the task that runs now was called; infinite while none runs.
        position: its place among the job's tasks. Both are written by the thread that runs it.
        released: set while it runs; settled when its worker may take other work.
    """

    __slots__ = (
        "call_began",
        "due",
        "first",
        "job",
        "nbytes",
        "position",
        "priority",
        "queued",
        "queued_at",
        "released",
        "siblings",
        "started",
        "task_bytes",
        "tasks",
        "work",
    )

    def __init__(
        self,
        job: JobState[Any],
        siblings: list[Slice],
        first: int,
        tasks: Sequence[Callable[[], object]],
        nbytes: int,
    ) -> None:
        self.job = job
        self.siblings = siblings
        self.first = first
        self.tasks = tasks
        self.nbytes = nbytes
        self.task_bytes = -(-nbytes // len(tasks))
        self.due = 0.0
        self.priority = Priority.DEMAND
        self.queued_at = 0.0
        self.queued = False
        self.started = 0.0
        self.call_began = math.inf
        self.position = first
        self.work: Work | None = None
        self.released: asyncio.Future[None] | None = None

    def split(self, length: int) -> Slice:
        """Keep the first ``length`` tasks, and return the others as a slice of their own."""
        n_rest = len(self.tasks) - length
        rest_bytes = self.nbytes * n_rest // len(self.tasks)
        rest = Slice(self.job, self.siblings, self.first + length, self.tasks[length:], rest_bytes)
        self.tasks = self.tasks[:length]
        self.nbytes -= rest_bytes
        rest.priority, rest.queued_at = self.priority, self.queued_at
        self.siblings.append(rest)
        return rest

    def run(self, clock: Callable[[], float]) -> None:
        """Run the tasks one after the other, until the job is stopped; in an I/O thread. Never raises."""
        job, first, n, success = self.job, self.first, len(self.tasks), True
        for offset in range(n):
            if job.stopped:
                success = False
                break
            self.position = first + offset
            self.call_began = clock()
            try:
                job.results[first + offset] = self.tasks[offset]()
            except BaseException as error:
                job.results[first + offset] = error
                success = False
        self.call_began = math.inf
        self.tasks = ()
        job.task_done(success, n)

    def fail(self, error: BaseException) -> None:
        """End the tasks with ``error`` instead of running them."""
        n = len(self.tasks)
        self.job.results[self.first : self.first + n] = [error] * n
        self.job.task_done(False, self.drop())

    def drop(self) -> int:
        """Give the tasks up before they have run; the number of them."""
        n, self.tasks, self.queued = len(self.tasks), (), False
        return n


def cut(job: JobState[Any], tasks: Sequence[Callable[[], object]], nbytes: int, length: int) -> list[Slice]:
    """The slices of a job, of ``length`` tasks each but for the last; their bytes add up to ``nbytes``."""
    n = len(tasks)
    slices: list[Slice] = []
    for first in range(0, n, length):
        share = nbytes * min(first + length, n) // n - nbytes * first // n
        slices.append(Slice(job, slices, first, tasks[first : first + length], share))
    return slices
