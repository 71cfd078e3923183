"""What the pool tells about itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from asyncoffload.aio.durations import DurationCounts, Durations
from asyncoffload.aio.slices import Slice
from asyncoffload.types.vocabulary import Priority


@dataclass(frozen=True, slots=True)
class QueueStats:
    """The work of one priority.

    Attributes:
        tasks: how many are queued.
        age: seconds that the oldest of them has been queued; 0 where there is none.
        waits: how long the slices that have left the queue to run had been in it.
    """

    tasks: int
    age: float
    waits: DurationCounts


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A snapshot of a pool. Queued and running work is counted in slices, shed work in tasks since the start.

    Attributes:
        unfinished_jobs: jobs of which a task is queued or running.
        threads: threads alive, those given up included.
        given_up_threads: threads that hang and have been replaced.
        queues: what is queued by priority, loads and stores together.
    """

    queued_loads: int
    queued_stores: int
    queued_load_bytes: int
    queued_store_bytes: int
    running_loads: int
    running_stores: int
    shed_loads: int
    shed_stores: int
    unfinished_jobs: int
    threads: int
    given_up_threads: int
    queues: Mapping[Priority, QueueStats] = field(default_factory=dict)


def queues_of(slices: Iterable[Slice], waits: Mapping[Priority, Durations], now: float) -> dict[Priority, QueueStats]:
    """Sort what is queued by priority; slices that are not queued are passed over."""
    tasks = dict.fromkeys(waits, 0)
    since = dict.fromkeys(waits, now)
    for piece in slices:
        if piece.queued:
            tasks[piece.priority] += len(piece.tasks)
            since[piece.priority] = min(since[piece.priority], piece.queued_at)
    return {
        priority: QueueStats(tasks[priority], now - since[priority], durations.snapshot())
        for priority, durations in waits.items()
    }
