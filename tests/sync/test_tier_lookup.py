"""Lookups at the sync facade: at once, in batches, and never RETRY for ever."""

from __future__ import annotations

import pytest

from asyncoffload.sync.answers import FRESH_SECONDS, STALE_SECONDS
from asyncoffload.sync.probing import PROBE_SECONDS
from asyncoffload.types import LookupResult, RequestContext, Status
from tests.sync.held_tier import some_keys
from tests.sync.tier_rig import rigged

HIT, MISS, RETRY = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY


def test_what_only_the_tier_can_tell_is_asked_for_behind_the_callers_back() -> None:
    with rigged() as rig:
        known, unknown = some_keys(2)
        rig.tier.blocks[known] = 1
        rig.tier.lookups.shut()
        assert [rig.facade.lookup(known), rig.facade.lookup(unknown)] == [RETRY, RETRY]
        rig.tier.lookups.wait_reached()
        assert [rig.facade.lookup(known), rig.facade.lookup(unknown)] == [RETRY, RETRY]
        rig.tier.lookups.open()
        rig.settled()
        assert [rig.facade.lookup(known), rig.facade.lookup(unknown)] == [HIT, MISS]
        assert sum(map(len, rig.tier.asked)) == 2


def test_keys_of_one_turn_are_one_call_of_the_tier() -> None:
    with rigged() as rig:

        async def ask_all() -> None:  # on the loop's thread, where no turn can come in between
            for key in some_keys(50):
                rig.facade.lookup(key)

        rig.loop.run(ask_all)
        rig.settled()
        assert [list(keys) for keys in rig.tier.asked] == [some_keys(50)]


def test_what_the_tier_knows_by_itself_needs_no_question() -> None:
    with rigged() as rig:
        (key,) = some_keys(1)
        rig.tier.knows = True
        rig.tier.blocks[key] = 1
        assert rig.facade.lookup(key) is HIT
        assert not rig.tier.asked


def test_who_asks_every_step_hears_retry_once() -> None:
    with rigged() as rig:
        (key,) = some_keys(1)
        assert rig.lookup(key) is MISS
        for _ in range(100):
            rig.now += FRESH_SECONDS / 4
            assert rig.facade.lookup(key) is MISS
            rig.settled()
        assert 10 < len(rig.tier.asked) < 50


def test_a_neighbours_write_is_seen() -> None:
    with rigged() as rig:
        (key,) = some_keys(1)
        assert rig.lookup(key) is MISS
        rig.tier.blocks[key] = 1
        assert rig.facade.lookup(key) is MISS
        rig.now += FRESH_SECONDS
        assert rig.facade.lookup(key) is MISS
        rig.settled()
        assert rig.facade.lookup(key) is HIT


@pytest.mark.parametrize("present", [True, False])
def test_an_old_answer_is_not_given(present: bool) -> None:
    with rigged() as rig:
        (key,) = some_keys(1)
        rig.tier.blocks.update(dict.fromkeys([key] * present, 1))
        assert rig.lookup(key) is (HIT if present else MISS)
        rig.now += STALE_SECONDS
        assert rig.facade.lookup(key) is RETRY


@pytest.mark.parametrize("status", [Status.CORRUPT, Status.FAILED, Status.MISSING])
def test_a_failed_load_is_a_miss_until_the_block_is_stored(status: Status) -> None:
    with rigged() as rig:
        bad, good = some_keys(2)
        rig.tier.blocks = {bad: 1, good: 1}
        rig.tier.knows = True
        rig.tier.outcomes[bad] = status
        assert rig.facade.lookup(bad) is HIT
        assert rig.outcome_of_load([bad, good], 1) == [status, Status.DONE]
        rig.now += 1000
        assert [rig.facade.lookup(bad), rig.facade.lookup(good)] == [MISS, HIT]
        del rig.tier.outcomes[bad]
        rig.store([bad], 2)
        assert rig.finished() == [2]
        assert rig.facade.lookup(bad) is HIT


@pytest.mark.parametrize("status", [Status.SHED, Status.TIMED_OUT])
def test_a_load_that_was_refused_or_late_is_a_miss_for_a_moment(status: Status) -> None:
    with rigged() as rig:
        (key,) = some_keys(1)
        rig.tier.blocks = {key: 1}
        rig.tier.knows = True
        rig.tier.outcomes[key] = status
        assert rig.outcome_of_load([key], 1) == [status]
        assert rig.facade.lookup(key) is MISS
        rig.now += FRESH_SECONDS
        assert rig.facade.lookup(key) is HIT


def test_a_cancelled_load_says_nothing_of_the_block() -> None:
    with rigged() as rig:
        (key,) = some_keys(1)
        rig.tier.blocks = {key: 1}
        assert rig.lookup(key) is HIT
        rig.tier.outcomes[key] = Status.CANCELLED
        rig.outcome_of_load([key], 1)
        assert rig.facade.lookup(key) is HIT


def test_a_store_makes_a_hit_of_a_miss() -> None:
    with rigged() as rig:
        stored, shed = some_keys(2)
        assert [rig.lookup(stored), rig.lookup(shed)] == [MISS, MISS]
        rig.tier.outcomes[shed] = Status.SHED
        rig.store([stored, shed], 1)
        rig.facade.drain_jobs()
        assert [rig.facade.lookup(stored), rig.facade.lookup(shed)] == [HIT, MISS]


def test_a_tier_that_does_not_answer_does_not_have_it() -> None:
    with rigged() as rig:
        (key,) = some_keys(1)
        rig.tier.blocks[key] = 1
        rig.tier.lookups.shut()
        assert rig.facade.lookup(key) is RETRY
        rig.tier.lookups.wait_reached()
        rig.now += PROBE_SECONDS
        assert rig.facade.lookup(key) is MISS
        rig.tier.lookups.open()
        rig.settled()
        assert rig.facade.lookup(key) is HIT
        assert len(rig.tier.asked) == 1


@pytest.mark.parametrize("call", ["lookup", "hint"])
def test_a_tier_whose_lookup_fails_does_not_have_it(call: str, caplog: pytest.LogCaptureFixture) -> None:
    def fault(name: str) -> None:
        if name == call:
            raise OSError(5, "broken")

    with rigged() as rig:
        rig.tier.fault = fault
        for key in some_keys(3):
            assert rig.lookup(key) is MISS
        assert caplog.text.count("broken") == 1


def test_a_tier_that_answers_for_the_wrong_number_of_keys_has_none(caplog: pytest.LogCaptureFixture) -> None:
    with rigged() as rig:
        rig.tier.blocks = dict.fromkeys(some_keys(2), 1)
        rig.tier.miscount = 1
        assert [rig.lookup(key) for key in some_keys(2)] == [MISS, MISS]
        assert "answered for" in caplog.text


def test_a_request_that_may_not_use_the_tier_sees_nothing_of_it() -> None:
    with rigged() as rig:
        (key,) = some_keys(1)
        assert rig.facade.lookup(key, RequestContext(tiers=frozenset({"other"}))) is MISS
        assert rig.facade.lookup(key, RequestContext(tiers=frozenset({"held"}))) is RETRY
        assert rig.facade.lookup(key, RequestContext(tiers=frozenset())) is MISS


def test_answers_of_finished_requests_are_forgotten_when_nobody_asks_any_more() -> None:
    with rigged() as rig:
        for key in some_keys(10):
            rig.lookup(key)
        rig.facade.forget_request("r1")
        rig.settled()
        assert len(rig.facade._probes._answers) == 10
        rig.now += STALE_SECONDS
        rig.facade.forget_request("r1")
        rig.settled()
        assert len(rig.facade._probes._answers) == 0
