"""Looking up and loading, step by step."""

from __future__ import annotations

import pytest

from asyncoffload.errors import BlocksUnavailable, InvalidArgument
from asyncoffload.keys import OffloadKey
from asyncoffload.types import RequestContext, Status
from tests.sync.manager_stack import HIT, MISS, PENDING, RETRY, keys_of, named, stepping

A, B = named("a"), named("b")


def test_a_block_of_a_tier_is_a_hit_in_a_later_step() -> None:
    keys = keys_of(3)
    with stepping(8) as stack:
        stack.tier.keep(keys[:2])
        with stack.manager.step():
            assert stack.ask(keys, A) == [RETRY] * 3
        stack.manager.drain_jobs()
        with stack.manager.step():
            assert stack.ask(keys, A) == [HIT, HIT, MISS]
            stack.load(keys[:2], A)
        assert [stack.manager.source_of(key) for key in keys] == ["t0", "t0", None]


def test_a_hit_and_a_promotion_in_the_same_step_and_then_both_are_loaded() -> None:
    first, second, filler = keys_of(3)
    with stepping(2) as stack:
        stack.store([first])
        stack.store([filler])
        stack.manager.drain_jobs()
        stack.tier.keep([second])
        with stack.manager.step():
            assert stack.manager.lookup_block(first, A) is HIT
            assert stack.manager.lookup_block(second, A) is RETRY
            stack.manager.drain_jobs()
            assert stack.ask([first, second], A) == [HIT, HIT]
            stack.load([first, second], A)


def test_a_hit_outlives_a_promotion_between_two_steps() -> None:
    first, second, filler = keys_of(3)
    with stepping(2) as stack:
        stack.store([first])
        stack.store([filler])
        stack.manager.drain_jobs()
        stack.tier.keep([second])
        with stack.manager.step():
            assert stack.ask([first, second], A) == [HIT, RETRY]
        stack.manager.drain_jobs()
        with stack.manager.step():
            assert stack.ask([first, second], A) == [HIT, HIT]
            stack.load([first, second], A)


def test_the_loop_probes_and_promotes_between_two_steps_by_itself() -> None:
    keys = keys_of(8)
    with stepping(16, promoting=2) as stack:
        stack.tier.keep(keys)
        with stack.manager.step():
            stack.ask(keys, A)
        stack.until(lambda: stack.tier.calls["load"] >= 4)
        stack.until(lambda: len(stack.manager._primary.table.ready) == 8)
        with stack.manager.step():
            assert stack.ask(keys, A) == [HIT] * 8


def test_within_a_step_results_wait_for_its_end() -> None:
    keys = keys_of(4)
    with stepping(8) as stack:
        stack.tier.keep(keys)
        with stack.manager.step():
            stack.ask(keys, A)
        stack.on_loop(stack.tier.loads.shut)
        stack.until(lambda: stack.tier.calls["load"] or stack.manager._primary.table.ready)
        with stack.manager.step():
            before = stack.ask(keys, A)
            stack.open_all()
            stack.until(lambda: not stack.manager._conductor.running)
            assert stack.ask(keys, A) == before
        stack.manager.drain_jobs()
        with stack.manager.step():
            assert stack.ask(keys, A) == [HIT] * 4


def test_a_pause_ends_with_news() -> None:
    (key,) = keys_of(1)
    for_ever = 3600.0
    with stepping(4) as stack:
        stack.manager.await_news(for_ever)  # nothing is in flight
        stack.tier.keep([key])
        stack.tier.loads.shut()
        assert stack.manager.lookup_block(key, A) is RETRY
        stack.reached(stack.tier.loads)
        stack.manager.await_news(0.0)
        stack.loop.post(stack.tier.loads.open)
        stack.manager.await_news(for_ever)
        assert stack.manager.lookup_block(key, A) is HIT
        stack.manager.end_request("a")


def test_a_key_under_promotion_is_pending() -> None:
    (key,) = keys_of(1)
    with stepping(4) as stack:
        stack.tier.keep([key])
        stack.tier.loads.shut()
        assert stack.manager.lookup_block(key, A) is RETRY
        stack.reached(stack.tier.loads)
        assert stack.manager.lookup_block(key, A) is PENDING
        assert stack.manager.lookup_block(key, B) is PENDING
        assert stack.tier.calls["load"] == 1


def test_a_key_being_stored_is_pending() -> None:
    (key,) = keys_of(1)
    for n_tiers in (0, 1):
        with stepping(4, n_tiers) as stack:
            output = stack.manager.prepare_store([key])
            assert output is not None
            assert stack.manager.lookup_block(key, A) is PENDING
            stack.fill([key], output.store_spec)
            stack.manager.complete_store([key])
            assert stack.manager.lookup_block(key, A) is HIT
            stack.manager.end_request("a")


def test_without_tiers_what_is_absent_is_a_miss() -> None:
    (key,) = keys_of(1)
    with stepping(4, 0) as stack:
        assert stack.manager.lookup_block(key, A) is MISS
        assert stack.manager.lookup([key], A) == 0
        assert not stack.manager.has_pending_work()


def test_a_batch_is_a_ready_prefix_and_what_follows_is_sought() -> None:
    keys = keys_of(6)
    with stepping(8) as stack:
        stack.store(keys[:2])
        stack.tier.keep(keys[2:5])
        for in_step in (True, False):
            if in_step:
                with stack.manager.step():
                    assert stack.manager.lookup(keys, A) == 2
            else:
                assert stack.manager.lookup(keys, A) == 5
            stack.manager.drain_jobs()
        stack.manager.end_request("a")


def test_a_batch_is_sought_up_to_the_first_miss() -> None:
    keys = keys_of(4)
    with stepping(8) as stack:
        assert stack.manager.lookup(keys[:1], A) == 0
        stack.manager.drain_jobs()
        assert stack.manager.lookup(keys, A) == 0
        stack.manager.drain_jobs()
        assert stack.tier.asked == [keys[:1]]


def test_a_miss_is_remembered_for_the_request_only() -> None:
    (key,) = keys_of(1)
    with stepping(4) as stack:
        assert stack.manager.lookup_block(key, A) is RETRY
        stack.manager.drain_jobs()
        stack.tier.keep([key])
        for _ in range(3):
            assert stack.manager.lookup_block(key, A) is MISS
        stack.manager.end_request("a")
        assert stack.manager.lookup_block(key, B) is RETRY
        stack.manager.drain_jobs()
        assert stack.manager.lookup_block(key, B) is HIT


def test_a_completed_store_upgrades_a_miss() -> None:
    (key,) = keys_of(1)
    with stepping(4) as stack:
        stack.ask([key], A)
        stack.manager.drain_jobs()
        assert stack.manager.lookup_block(key, A) is MISS
        stack.store([key])
        assert stack.manager.lookup_block(key, A) is HIT
        stack.load([key], A)
        stack.manager.drain_jobs()
        stack.manager.reset()
        assert stack.manager.lookup_block(key, A) is RETRY
        stack.manager.drain_jobs()
        assert stack.manager.lookup_block(key, A) is HIT


def test_without_a_name_a_miss_is_told_once() -> None:
    (key,) = keys_of(1)
    with stepping(4) as stack:
        assert stack.manager.lookup_block(key) is RETRY
        stack.manager.drain_jobs()
        with stack.manager.step():
            assert stack.ask([key] * 2) == [MISS, MISS]
        stack.tier.keep([key])
        assert stack.manager.lookup_block(key) is RETRY
        stack.manager.drain_jobs()
        assert stack.manager.lookup_block(key) is HIT


@pytest.mark.parametrize("trouble", [Status.CORRUPT, Status.FAILED, Status.MISSING, Status.TIMED_OUT])
def test_a_load_that_fails_is_a_miss(trouble: Status) -> None:
    keys = keys_of(2)
    with stepping(4) as stack:
        stack.tier.keep(keys)
        stack.tier.outcomes[keys[1]] = trouble
        stack.ask(keys, A)
        stack.manager.drain_jobs()
        assert stack.ask(keys, A) == [HIT, MISS]
        assert stack.manager.tier_counts()["t0"][f"refused_{trouble.value}"] == 1


def test_what_one_tier_cannot_give_comes_from_the_next() -> None:
    keys = keys_of(2)
    with stepping(4, 2) as stack:
        stack.tiers[0].keep(keys)
        stack.tiers[1].keep(keys)
        stack.tiers[0].outcomes[keys[0]] = Status.CORRUPT
        stack.ask(keys, A)
        stack.manager.drain_jobs()
        assert stack.ask(keys, A) == [HIT, HIT]
        assert [stack.manager.source_of(key) for key in keys] == ["t1", "t0"]


def test_a_request_asks_the_tiers_it_may() -> None:
    (key,) = keys_of(1)
    with stepping(4, 2) as stack:
        stack.tiers[0].keep([key])
        ctx = RequestContext(request_id="r", tiers=frozenset({"t1"}))
        stack.ask([key], ctx)
        stack.manager.drain_jobs()
        assert stack.ask([key], ctx) == [MISS]
        assert not stack.tiers[0].calls
        with pytest.raises(InvalidArgument, match="t7"):
            stack.ask([key], RequestContext(request_id="s", tiers=frozenset({"t7"})))


def test_past_its_deadline_a_request_misses_what_has_not_come() -> None:
    keys = keys_of(2)
    with stepping(4) as stack:
        stack.tier.keep(keys)
        ctx = RequestContext(request_id="r", deadline=5.0)
        stack.ask(keys[:1], ctx)
        stack.manager.drain_jobs()
        stack.on_loop(stack.tier.loads.shut)
        stack.ask(keys, ctx)
        stack.reached(stack.tier.loads)
        assert stack.ask(keys, ctx) == [HIT, PENDING]
        stack.clock.now = 5.0
        assert stack.ask(keys, ctx) == [HIT, MISS]
        assert stack.tier.jobs[-1].unwanted == {keys[1]}


def test_the_end_of_a_request_drops_its_promotions_unless_others_wait_for_them() -> None:
    keys = keys_of(3)
    with stepping(8) as stack:
        stack.tier.keep(keys)
        stack.tier.loads.shut()
        stack.ask(keys, A)
        stack.ask(keys[:1], B)
        stack.reached(stack.tier.loads)
        stack.manager.end_request("a")
        assert stack.tier.jobs[0].unwanted == set(keys[1:])
        stack.open_all()
        stack.manager.drain_jobs()
        assert stack.ask(keys[:1], B) == [HIT]
        assert stack.manager.stats().ready == 1


def test_loading_what_is_not_ready_says_how_much_is() -> None:
    keys = keys_of(3)
    with stepping(4) as stack:
        stack.store(keys[:2])
        with pytest.raises(BlocksUnavailable) as caught:
            stack.manager.prepare_load(keys)
        assert caught.value.ready_prefix == 2
        stack.manager.drain_jobs()
        assert stack.manager.stats().pinned == 0


def test_what_is_loaded_is_pinned_until_it_is_completed() -> None:
    keys = keys_of(2)
    with stepping(2) as stack:
        stack.store(keys)
        stack.manager.drain_jobs()
        stack.manager.prepare_load(keys[:1], A)
        assert stack.manager.prepare_store(keys_of(2, 10)) is None
        stack.manager.complete_load(keys[:1], A)
        assert set(stack.store(keys_of(2, 10))) == set(keys)


def test_touched_blocks_stay_longer() -> None:
    keys = keys_of(2)
    with stepping(2) as stack:
        stack.store(keys)
        stack.manager.drain_jobs()
        stack.manager.touch([keys[1]])
        assert stack.store(keys_of(1, 10)) == [keys[0]]


@pytest.mark.parametrize("key", ["text", 7, b"", [1]])
def test_a_malformed_key_is_refused_and_nothing_breaks(key: object) -> None:
    (good,) = keys_of(1)
    bad: OffloadKey = key  # type: ignore[assignment]
    with stepping(4) as stack:
        for call in (stack.manager.lookup_block, lambda key: stack.manager.lookup([key])):
            with pytest.raises(InvalidArgument):
                call(bad)
            with stack.manager.step(), pytest.raises(InvalidArgument):
                call(bad)
        assert stack.manager.lookup_block(good) is RETRY
