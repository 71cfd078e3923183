"""Who waits for which block, and for how long: the book that a tier keeps for vLLM."""

from __future__ import annotations

import pytest

from asyncoffload.types import CANCELLED, DONE, JobResult
from tests.integrations.vllm.tier_rig import request, some_keys, transfer

pytest.importorskip("vllm.v1.kv_offload.tiering.spec", reason="vLLM is not installed")

from asyncoffload.integrations.vllm.jobs import GIVEN_UP_SECONDS, JobBook

pytestmark = pytest.mark.vllm


class Book(JobBook):
    """A book with a clock of its own; jobs enter at what the clock shows."""

    def __init__(self, load_seconds: float | None = 10.0) -> None:
        self.now = 100.0
        super().__init__(load_seconds, lambda: self.now)

    def load(self, job_id: int, n_keys: int = 2) -> None:
        job = transfer(job_id, some_keys(n_keys, first=10 * job_id), range(n_keys), request("a"), load=True)
        job.submit_time = self.now
        self.enter(job)

    def skipped(self, job_id: int) -> bool:
        job = self._entries[job_id].job
        return job.unwanted == set(job.keys)


def test_only_loads_that_have_waited_too_long_are_given_up() -> None:
    book = Book()
    book.load(1)
    book.now += 6
    book.load(2)
    book.now += 5
    book.give_up_late_loads()
    assert book.skipped(1)
    assert not book.skipped(2)


def test_without_a_limit_no_load_is_late() -> None:
    book = Book(None)
    book.load(1)
    book.now += 1e9
    book.give_up_late_loads()
    assert not book.skipped(1)


def test_what_was_given_up_is_a_miss_for_a_while_and_what_arrived_is_none() -> None:
    book = Book()
    book.load(1)
    arrived, late = some_keys(2, first=10)
    book.now += 11
    book.give_up_late_loads()
    book.leave(JobResult(1, [arrived, late], [DONE, CANCELLED]))
    assert (book.was_given_up(arrived), book.was_given_up(late)) == (False, True)
    book.now += GIVEN_UP_SECONDS
    assert not book.was_given_up(late)


def test_loads_of_ended_requests_are_not_late() -> None:
    book = Book()
    book.load(1)
    book.ended("a")
    book.leave(JobResult(1, some_keys(2, first=10), [CANCELLED, CANCELLED]))
    assert not any(map(book.was_given_up, some_keys(2, first=10)))


def test_it_does_not_grow_with_what_was_given_up() -> None:
    book = Book()
    for job_id in range(1, 50):
        book.load(job_id)
        book.now += 11
        book.give_up_late_loads()
        book.leave(JobResult(job_id, some_keys(2, first=10 * job_id), [CANCELLED, CANCELLED]))
    assert len(book._given_up) <= 4


def test_what_others_share_is_found_among_many_requests() -> None:
    book = Book()
    prompt = some_keys(8)
    for i in range(200):
        book.arrived(request(f"other {i}", some_keys(8, first=1000 * (i + 1))))
    book.arrived(request("half", prompt[:4] + some_keys(4, first=500)))
    job = transfer(1, prompt, range(8), request("a"), load=True)
    book.enter(job)
    book.ended("a")
    assert book._entries[1].job.unwanted == set(prompt[4:])
