"""JobState: counting from any thread, and two kinds of waiting."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.aio.job_state import JobState
from asyncoffload.errors import InvalidArgument
from asyncoffload.types.vocabulary import Status


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_finishes_once_and_success_is_lost_for_good(outcomes: list[bool]) -> None:
    job: JobState[None] = JobState(1, len(outcomes))
    answers = [job.task_done(success) for success in outcomes]
    assert [finished for finished, _ in answers] == [False] * (len(outcomes) - 1) + [True]
    assert [success for _, success in answers] == [all(outcomes[: n + 1]) for n in range(len(outcomes))]
    assert job.finished
    assert job.success is all(outcomes)


def test_counts_from_many_threads() -> None:
    job: JobState[None] = JobState(1, 4000)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(job.task_done, [True] * 4000))
    assert sum(finished for finished, _ in answers) == 1


def test_refuses_to_count_more_than_there_are() -> None:
    job: JobState[None] = JobState(1, 1)
    job.task_done(True)
    with pytest.raises(InvalidArgument, match="0 are left"):
        job.task_done(True)
    with pytest.raises(InvalidArgument, match="-1"):
        JobState(1, -1)


async def test_a_job_of_no_tasks_is_finished() -> None:
    job: JobState[None] = JobState(1, 0)
    assert job.finished
    assert job.success
    assert await job == []
    assert await job.wait() == []


async def test_tasks_that_never_ran_are_cancelled() -> None:
    job: JobState[None] = JobState(1, 2)
    job.task_done(False, 2)
    job.announce()
    assert await job == [Status.CANCELLED] * 2


async def test_a_bystander_leaves_and_the_job_goes_on() -> None:
    job: JobState[None] = JobState(1, 1)
    bystander = asyncio.create_task(job.wait())
    owner = asyncio.ensure_future(job)
    await asyncio.sleep(0)
    bystander.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bystander
    assert not job.stopped
    assert "under way" in repr(job)
    job.task_done(True)
    job.announce()
    await owner


async def test_a_cancelled_owner_stops_the_job_and_waits_for_its_end() -> None:
    stopped: list[JobState[None]] = []
    job: JobState[None] = JobState(1, 1, stop=stopped.append)
    owner = asyncio.ensure_future(job)
    await asyncio.sleep(0)
    owner.cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert stopped == [job]
    assert not owner.done()
    job.cancel()
    assert stopped == [job]
    job.task_done(True)
    job.announce()
    with pytest.raises(asyncio.CancelledError):
        await owner


def test_cancelling_a_finished_job_does_nothing() -> None:
    job: JobState[None] = JobState(1, 1, stop=lambda _: pytest.fail("it has finished"))
    job.task_done(True)
    job.cancel()
    assert not job.stopped
