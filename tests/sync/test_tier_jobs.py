"""Jobs at the sync facade: at once, exactly once, in order of completion, and never touched after drain."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncoffload.errors import ClosedError, InvalidArgument, TierUnavailable
from asyncoffload.sync.tier import MAX_KEYS_PER_COLLECTION
from asyncoffload.types import JobResult, Status, TransferJob
from tests.sync.held_tier import TIMEOUT, some_keys
from tests.sync.tier_rig import N_SLOTS, rigged


def test_submitting_returns_at_once_while_the_tier_is_busy() -> None:
    with rigged() as rig:
        rig.tier.jobs.shut()
        for job_id in range(100):
            rig.store(some_keys(4), job_id)
        rig.tier.jobs.wait_reached()
        assert rig.facade.get_finished() == []
        assert rig.facade.has_pending_work()
        rig.tier.jobs.open()
        assert sorted(rig.finished()) == list(range(100))
        assert not rig.facade.has_pending_work()


def test_each_result_is_handed_out_exactly_once_and_stays_until_then() -> None:
    with rigged() as rig:
        rig.store(some_keys(4), 1)
        rig.facade.drain_jobs()
        rig.facade.drain_jobs()
        assert rig.facade.has_pending_work()
        (result,) = rig.facade.get_finished_jobs()
        assert result.success
        assert result.tier == "held"
        assert list(result.keys) == some_keys(4)
        assert rig.facade.get_finished() == []
        assert not rig.facade.has_pending_work()


def test_results_come_in_the_order_in_which_the_jobs_end() -> None:
    with rigged() as rig:
        rig.store(some_keys(9), 1)
        rig.store(some_keys(1), 2)
        rig.store(some_keys(4), 3)
        rig.settled()
        rig.tier.jobs.shut()
        rig.store(some_keys(1), 4)
        rig.tier.jobs.wait_reached()
        rig.store([], 5)
        rig.settled()
        assert [result.job_id for result in rig.facade.get_finished()][-1:] == [5]
        rig.tier.jobs.open()
        assert rig.finished() == [4]


def test_after_drain_nothing_touches_the_slots() -> None:
    with rigged() as rig:
        rig.tier.jobs.shut()
        rig.store(some_keys(4), 1)
        rig.tier.jobs.wait_reached()
        seen: list[set[int]] = []

        def wait() -> None:
            rig.facade.drain_jobs()
            seen.append(set(rig.tier.touching))

        waiting = threading.Thread(target=wait)
        waiting.start()
        rig.settled()
        assert rig.tier.touching
        assert not seen
        rig.tier.jobs.open()
        waiting.join()
        assert seen == [set()]


def test_drain_waits_for_earlier_jobs_only() -> None:
    with rigged() as rig:
        rig.store(some_keys(1), 1)
        rig.facade.drain_jobs()
        rig.tier.jobs.shut()
        rig.store(some_keys(1), 2)
        rig.tier.jobs.wait_reached()
        with pytest.raises(TierUnavailable, match="jobs 2 after"):
            rig.facade.drain_jobs(0.01)
        assert [result.job_id for result in rig.facade.get_finished()] == [1]


def test_past_its_timeout_drain_raises_and_may_be_called_again() -> None:
    with rigged() as rig:
        rig.tier.jobs.shut()
        rig.load(some_keys(1), 7)
        rig.load(some_keys(1), 8)
        with pytest.raises(TierUnavailable, match="jobs 7, 8 after"):
            rig.facade.drain_jobs(0.01)
        rig.tier.jobs.open()
        assert sorted(rig.finished()) == [7, 8]


def test_an_id_may_be_used_again_only_when_its_result_was_collected() -> None:
    with rigged() as rig:
        job = rig.store(some_keys(1), 1)
        for again in (job, TransferJob([], [], job_id=1)):
            with pytest.raises(InvalidArgument, match="job 1 is in flight"):
                rig.facade.submit_load(again)
        rig.facade.drain_jobs()
        with pytest.raises(InvalidArgument, match="job 1 is in flight"):
            rig.facade.submit_load(job)
        assert rig.finished() == [1]
        rig.store(some_keys(1), 1)
        assert rig.finished() == [1]


def test_one_collection_settles_a_bounded_number_of_keys() -> None:
    many = MAX_KEYS_PER_COLLECTION
    with rigged() as rig:
        for job_id in range(10):
            rig.facade.submit_store(TransferJob(some_keys(many // 4), [0] * (many // 4), job_id=job_id))
        rig.facade.submit_store(TransferJob(some_keys(2 * many), [0] * 2 * many, job_id=10))
        rig.facade.drain_jobs()
        sizes = []
        while rig.facade.has_pending_work():
            sizes.append([len(result.keys) for result in rig.facade.get_finished()])
        assert sizes == [[many // 4] * 4, [many // 4] * 4, [many // 4] * 2, [2 * many]]


def test_cancelled_jobs_skip_what_has_not_begun_and_have_their_result() -> None:
    with rigged() as rig:
        rig.tier.jobs.shut()
        rig.store(some_keys(3), 1)
        rig.store(some_keys(3, first=3), 2)
        rig.tier.jobs.wait_reached()
        rig.facade.cancel([1, 999])
        rig.tier.jobs.open()
        rig.facade.drain_jobs()
        outcomes = {r.job_id: [o.status for o in r.outcomes] for r in rig.facade.get_finished()}
        assert outcomes == {1: [Status.CANCELLED] * 3, 2: [Status.DONE] * 3}
        rig.facade.cancel([1, 2])


@pytest.mark.parametrize("error", [OSError(28, "full"), ClosedError("closed"), ValueError("a bug")])
def test_a_tier_that_raises_has_failed_every_key(error: Exception) -> None:
    def fault(call: str) -> None:
        if call == "store":
            raise error

    with rigged() as rig:
        rig.tier.fault = fault
        rig.store(some_keys(2), 1)
        rig.facade.drain_jobs()
        (result,) = rig.facade.get_finished()
        assert [(outcome.status, outcome.error) for outcome in result.outcomes] == [(Status.FAILED, error)] * 2


def test_a_tier_that_miscounts_has_failed_every_key() -> None:
    with rigged() as rig:
        rig.tier.miscount = 1
        rig.store(some_keys(2), 1)
        rig.facade.drain_jobs()
        (result,) = rig.facade.get_finished()
        assert [outcome.status for outcome in result.outcomes] == [Status.FAILED] * 2
        assert "answered for 1 of 2 keys" in str(result.outcomes[0].error)


@pytest.mark.parametrize("answer", [None, JobResult(1, [], [None, None])])  # type: ignore[list-item]
def test_a_tier_that_answers_nonsense_has_failed_every_key(answer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    async def load(_: object) -> object:
        return answer

    with rigged() as rig, monkeypatch.context() as patched:
        patched.setattr(rig.tier, "load", load)
        assert rig.outcome_of_load(some_keys(2), 1) == [Status.FAILED] * 2


def test_many_threads_submit_and_collect() -> None:
    with rigged() as rig:
        collected: Counter[int] = Counter()
        lock = threading.Lock()

        def work(thread: int) -> None:
            for number in range(100):
                rig.store(some_keys(2), 1000 * thread + number)
                with lock:
                    collected.update(result.job_id for result in rig.facade.get_finished())

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while rig.facade.has_pending_work():
            collected.update(rig.finished())
        assert collected == Counter(1000 * thread + number for thread in range(4) for number in range(100))


def test_events_reach_whoever_asks_for_them() -> None:
    with rigged() as rig:
        assert rig.facade.take_events() == []
        rig.store(some_keys(2), 1)
        rig.facade.drain_jobs(TIMEOUT)
        assert [key for event in rig.facade.take_events() for key in event.keys] == some_keys(2)
        assert rig.facade.take_events() == []


def test_events_from_before_the_first_question_are_not_lost() -> None:
    with rigged() as rig:
        rig.store(some_keys(1), 1)
        rig.facade.drain_jobs(TIMEOUT)
        rig.facade.take_events()
        rig.settled()
        assert [event.medium for event in rig.facade.take_events()] == ["held"]


def test_touches_and_numbers_are_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    def fault(call: str) -> None:
        if call == "touch":
            raise ValueError("cannot touch")

    with rigged() as rig:
        assert rig.facade.stats() == {}
        assert rig.facade.tier_type == "held"
        rig.facade.start(TIMEOUT)
        rig.facade.touch(some_keys(2))
        rig.settled()
        assert [list(keys) for keys in rig.tier.touched] == [some_keys(2)]
        rig.tier.fault = fault
        rig.facade.touch(some_keys(2))
        rig.settled()
        assert "cannot touch" in caplog.text


step = st.one_of(
    st.tuples(st.sampled_from(["store", "load"]), st.integers(0, 20), st.integers(0, 8)),
    st.tuples(st.sampled_from(["shut", "open", "collect", "drain", "cancel"]), st.integers(0, 20), st.just(0)),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(step, max_size=40))
def test_in_any_order_of_calls_each_job_has_its_one_result(steps: list[tuple[str, int, int]]) -> None:
    with rigged() as rig:
        submitted: Counter[int] = Counter()
        collected: Counter[int] = Counter()
        is_open = True
        for what, job_id, n in steps:
            match what:
                case "store" | "load":
                    try:
                        (rig.store if what == "store" else rig.load)(some_keys(n), job_id)
                        assert submitted[job_id] == collected[job_id]
                        submitted[job_id] += 1
                    except InvalidArgument:
                        assert submitted[job_id] == collected[job_id] + 1
                case "shut":
                    rig.tier.jobs.shut()
                    is_open = False
                case "open":
                    rig.tier.jobs.open()
                    is_open = True
                case "collect":
                    collected.update(result.job_id for result in rig.facade.get_finished())
                case "cancel":
                    rig.facade.cancel([job_id])
                case "drain" if is_open:
                    rig.facade.drain_jobs(TIMEOUT)
                    assert not rig.tier.touching
        rig.tier.jobs.open()
        collected.update(rig.finished())
        assert collected == submitted
        assert not rig.facade.has_pending_work()
        assert len(rig.tier.slots) == N_SLOTS
