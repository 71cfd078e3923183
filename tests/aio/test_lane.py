"""What is queued in one direction, and how much of it a worker takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.aio.job_state import JobState
from asyncoffload.aio.lane import Lane
from asyncoffload.aio.slices import Slice, SliceBounds, cut

MIB = 1 << 20


def filled(n_jobs: int, n_tasks: int, task_bytes: int, bounds: SliceBounds) -> Lane:
    """A lane with some jobs that came while every worker was busy."""
    lane = Lane(None, bounds)
    for job_id in range(n_jobs):
        nbytes = n_tasks * task_bytes
        length = bounds.length(n_tasks, nbytes, workers=1)
        for piece in cut(JobState[None](job_id, n_tasks), [lambda: None] * n_tasks, nbytes, length):
            lane.put(piece, due=float(job_id))
    return lane


def take_all(lane: Lane, n_workers: int) -> list[Slice]:
    taken = []
    while not lane.entries.empty():
        piece, _ = lane.take(n_workers)
        assert piece is not None
        taken.append(piece)
    return taken


@given(st.integers(1, 5), st.integers(1, 60), st.sampled_from([0, 1, 65_536, MIB, 9 * MIB]), st.integers(1, 32))
def test_everything_is_taken_once_and_in_order(n_jobs: int, n_tasks: int, task_bytes: int, n_workers: int) -> None:
    lane = filled(n_jobs, n_tasks, task_bytes, SliceBounds(max_tasks=16, max_bytes=4 * MIB, min_bytes=MIB // 4))
    taken = take_all(lane, n_workers)
    at = [(piece.job.job_id, piece.first + offset) for piece in taken for offset in range(len(piece.tasks))]
    assert at == [(job_id, index) for job_id in range(n_jobs) for index in range(n_tasks)]
    assert sum(piece.nbytes for piece in taken) == n_jobs * n_tasks * task_bytes
    assert all(piece in piece.siblings for piece in taken)
    assert (lane.queued, lane.budget.used, lane.empty.is_set()) == (0, 0, True)


def test_slices_get_shorter_as_the_queue_does() -> None:
    lane = filled(4, 16, MIB, SliceBounds(max_tasks=16, max_bytes=4 * MIB, min_bytes=MIB // 4))
    lengths = [len(piece.tasks) for piece in take_all(lane, n_workers=4)]
    assert lengths[0] == 4
    assert lengths[-8:] == [1] * 8
    assert lengths == sorted(lengths, reverse=True)


def test_a_slice_is_not_cut_below_what_is_worth_a_hop() -> None:
    lane = filled(1, 16, 64 << 10, SliceBounds(max_tasks=16, max_bytes=4 * MIB, min_bytes=MIB // 4))
    assert [len(piece.tasks) for piece in take_all(lane, n_workers=16)] == [4, 4, 4, 4]


def test_what_is_cut_off_can_still_be_dropped() -> None:
    lane = filled(1, 4, MIB, SliceBounds(max_tasks=16, max_bytes=4 * MIB, min_bytes=MIB // 4))
    piece, was_cut = lane.take(4)
    assert piece is not None
    assert was_cut
    assert sum(lane.drop(other) for other in piece.siblings if other.queued) == 3
    assert (lane.queued, lane.budget.used) == (0, 0)
    assert lane.take(4) == (None, False)
