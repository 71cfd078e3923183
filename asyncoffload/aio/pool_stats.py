"""What the pool tells about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A snapshot of a pool. Queued and running work is counted in slices, shed work in tasks since the start.

    Attributes:
        unfinished_jobs: jobs of which a task is queued or running.
        threads: threads alive, those given up included.
        given_up_threads: threads that hang and have been replaced.
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
