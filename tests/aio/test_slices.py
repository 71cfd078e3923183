"""Cutting jobs into slices, and running one."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.aio.job_state import JobState
from asyncoffload.aio.slices import SliceBounds, cut
from asyncoffload.errors import InvalidArgument
from asyncoffload.types.vocabulary import Status

MIB = 1 << 20


@given(st.integers(1, 500), st.integers(0, 1 << 30), st.integers(1, 40), st.integers(1, 32), st.integers(1, 4 * MIB))
def test_slices_cover_the_job_and_keep_the_bounds(
    n_tasks: int, nbytes: int, workers: int, max_tasks: int, max_bytes: int
) -> None:
    bounds = SliceBounds(max_tasks, max_bytes, min_bytes=max_bytes // 4)
    length = bounds.length(n_tasks, nbytes, workers)
    slices = cut(JobState[None](1, n_tasks), [lambda: None] * n_tasks, nbytes, length)
    assert [piece.first for piece in slices] == list(range(0, n_tasks, length))
    assert sum(len(piece.tasks) for piece in slices) == n_tasks
    assert sum(piece.nbytes for piece in slices) == nbytes
    assert all(len(piece.tasks) <= max_tasks for piece in slices)
    assert all(len(piece.tasks) == 1 or piece.nbytes <= max_bytes + n_tasks for piece in slices)


@pytest.mark.parametrize(
    ("n_tasks", "task_bytes", "length"),
    [
        (16, MIB, 1),
        (16, 64 << 10, 4),
        (4096, 64 << 10, 16),
        (2, 64 << 10, 4),
        (100, 0, 7),
        (4096, 0, 16),
        (1, 64 * MIB, 1),
    ],
)
def test_all_workers_share_a_job_unless_it_is_small(n_tasks: int, task_bytes: int, length: int) -> None:
    bounds = SliceBounds(max_tasks=16, max_bytes=MIB, min_bytes=256 << 10)
    assert bounds.length(n_tasks, n_tasks * task_bytes, workers=16) == length


def test_refuses_empty_slices() -> None:
    with pytest.raises(InvalidArgument, match="at least one task"):
        SliceBounds(0, 1, 0)


def test_a_task_that_raises_harms_no_other() -> None:
    def bad() -> int:
        raise SystemExit(3)

    job: JobState[int] = JobState(1, 3)
    (piece,) = cut(job, [lambda: 1, bad, lambda: 3], 0, 3)
    piece.run(time.monotonic)
    assert job.results[0::2] == [1, 3]
    assert isinstance(job.results[1], SystemExit)
    assert job.finished
    assert not job.success


def test_a_stopped_job_ends_between_two_tasks() -> None:
    job: JobState[None] = JobState(1, 3)
    (piece,) = cut(job, [job.cancel, lambda: pytest.fail("stopped"), lambda: pytest.fail("stopped")], 0, 3)
    piece.run(time.monotonic)
    assert job.results == [None, Status.CANCELLED, Status.CANCELLED]
    assert job.finished
