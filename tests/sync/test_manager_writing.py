"""Storing, keeping what was promised, and the manager as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from asyncoffload.errors import ConfigError, InvalidArgument
from asyncoffload.keys import OffloadKey
from asyncoffload.managers.touching import Touches
from asyncoffload.types import OffloadingEvent
from tests.managers.gated_tier import SLOT_BYTES, GatedTier
from tests.sync.manager_stack import HIT, MISS, PENDING, RETRY, SteppingStack, keys_of, named, stepping

A, B = named("a"), named("b")


def test_a_store_goes_to_the_tiers_and_comes_back() -> None:
    keys = keys_of(4)
    with stepping(4, 2) as stack:
        assert not stack.store(keys)
        assert stack.manager.has_pending_work()
        stack.manager.drain_jobs()
        assert not stack.manager.has_pending_work()
        assert [set(tier.blocks) for tier in stack.tiers] == [set(keys)] * 2
        stack.manager.reset()
        stack.ask(keys, A)
        stack.manager.drain_jobs()
        assert stack.ask(keys, A) == [HIT] * 4
        stack.load(keys, A)


def test_only_what_is_absent_is_stored() -> None:
    keys = keys_of(3)
    with stepping(4) as stack:
        stack.store(keys[:1])
        output = stack.manager.prepare_store(keys)
        assert output is not None
        assert list(output.keys_to_store) == keys[1:]
        stack.manager.complete_store(keys[1:], success=False)
        assert stack.manager.stats().ready == 1
        assert stack.manager.lookup(keys) == 1


def test_a_store_of_nothing_new_hands_out_nothing() -> None:
    keys = keys_of(2)
    with stepping(4) as stack:
        stack.store(keys)
        output = stack.manager.prepare_store(keys)
        assert output is not None
        assert not output.keys_to_store


def test_rarely_offered_blocks_are_not_stored() -> None:
    keys = keys_of(2)
    with stepping(4, store_threshold=2) as stack:
        output = stack.manager.prepare_store(keys)
        assert output is not None
        assert not output.keys_to_store
        assert stack.manager.stats().deferred == 2
        stack.store(keys)
        assert stack.manager.lookup(keys) == 2


def test_a_store_that_was_superseded_completes_nothing_of_the_other() -> None:
    (key,) = keys_of(1)
    with stepping(4) as stack:
        first = stack.manager.prepare_store([key])
        assert first is not None
        stack.manager.reset()
        stack.manager.complete_store([key], spec=first.store_spec)
        assert stack.manager.lookup([key]) == 0
        with pytest.raises(InvalidArgument):
            stack.manager.complete_store([key, *keys_of(1, 5)], spec=first.store_spec)


# ---- promises


def test_no_store_of_the_same_step_evicts_a_hit() -> None:
    keys, new = keys_of(4), keys_of(4, 10)
    with stepping(4) as stack:
        stack.store(keys)
        stack.manager.drain_jobs()
        with stack.manager.step():
            assert stack.ask(keys[:2], A) == [HIT, HIT]
            assert stack.manager.lookup(keys[2:3], A) == 1
            assert stack.manager.prepare_store(new[:2]) is None
            assert stack.store(new[:1]) == [keys[3]]
            stack.load(keys[:3], A)
        assert len(stack.store(new[1:])) == 3


def test_no_promotion_of_the_same_step_evicts_a_hit() -> None:
    keys, new = keys_of(4), keys_of(4, 10)
    with stepping(4) as stack:
        stack.store(keys)
        stack.manager.drain_jobs()
        stack.tier.keep(new)
        with stack.manager.step():
            assert stack.ask(keys[:3], A) == [HIT] * 3
            stack.ask(new, B)
            stack.manager.drain_jobs()
            assert stack.ask(keys[:3], A) == [HIT] * 3
            assert stack.ask(new, B) == [HIT, PENDING, PENDING, PENDING]
        stack.manager.end_request("b")


def test_outside_of_a_step_a_hit_is_kept_until_it_is_loaded() -> None:
    keys, new = keys_of(4), keys_of(4, 10)
    with stepping(4) as stack:
        stack.store(keys)
        stack.manager.drain_jobs()
        assert stack.ask(keys[:2], A) == [HIT, HIT]
        assert stack.manager.prepare_store(new[:3]) is None
        stack.load(keys[:1], A)
        assert set(stack.store(new[:3])) == {keys[0], *keys[2:]}
        assert stack.manager.lookup_block(keys[1], B) is HIT


def test_outside_of_a_step_a_hit_is_kept_until_its_request_ends() -> None:
    keys, new = keys_of(2), keys_of(2, 10)
    with stepping(2) as stack:
        stack.store(keys)
        stack.manager.drain_jobs()
        assert stack.manager.lookup(keys[:1], A) == 1
        assert stack.manager.lookup_block(keys[0], B) is HIT
        stack.manager.end_request("a")
        assert stack.manager.prepare_store(new) is None
        stack.manager.end_request("b")
        assert set(stack.store(new)) == set(keys)


def test_outside_of_a_step_promises_are_bounded() -> None:
    keys, new = keys_of(16), keys_of(8, 100)
    with stepping(16) as stack:
        stack.store(keys)
        stack.manager.drain_jobs()
        for index, key in enumerate(keys):
            assert stack.manager.lookup_block(key, named(str(index))) is HIT
        assert len(stack.store(new)) == 8


def test_a_prefix_longer_than_the_primary_comes_as_far_as_it_fits() -> None:
    keys = keys_of(12)
    with stepping(8, promoting=2) as stack:
        stack.tier.keep(keys)
        for _ in range(20):
            with stack.manager.step():
                answers = stack.ask(keys, A)
            stack.manager.drain_jobs()
            if MISS in answers and not {RETRY, PENDING} & set(answers[: answers.index(MISS)]):
                break
        assert answers[:9] == [HIT] * 8 + [MISS]
        with stack.manager.step():
            assert stack.manager.lookup(keys, A) == 8
            stack.load(keys[:8], A)
        stack.manager.end_request("a")


def test_two_prefixes_that_do_not_fit_together_are_served_one_after_the_other() -> None:
    keys = keys_of(12)
    requests = {"a": keys[:6], "b": keys[6:]}
    served: dict[str, int] = {}
    with stepping(8, promoting=2) as stack:
        stack.tier.keep(keys)
        for _ in range(40):
            with stack.manager.step():
                for name in [name for name in requests if name not in served]:
                    answers = stack.ask(requests[name], named(name))
                    hits = answers.index(MISS) if MISS in answers else len(answers)
                    if not {RETRY, PENDING} & set(answers[:hits]):
                        stack.load(requests[name][:hits], named(name))
                        served[name] = hits
            stack.manager.drain_jobs()
        assert served == {"a": 6, "b": 6}
        for name in requests:
            stack.manager.end_request(name)


def test_a_store_may_take_what_only_waits_to_be_used() -> None:
    keys, new = keys_of(4), keys_of(4, 10)
    with stepping(4) as stack:
        stack.tier.keep(keys)
        with stack.manager.step():
            stack.ask(keys, A)
        stack.manager.drain_jobs()
        with stack.manager.step():
            assert stack.ask(keys, A) == [HIT] * 4
        assert set(stack.store(new)) == set(keys)


# ---- the whole


def test_reset_voids_everything() -> None:
    keys = keys_of(3)
    with stepping(4) as stack:
        stack.store(keys)
        stack.manager.drain_jobs()
        with stack.manager.step():
            assert stack.ask(keys, A) == [HIT] * 3
            stack.manager.prepare_load(keys[:1], A)
            stack.manager.reset()
            assert stack.ask(keys[1:], A) == [RETRY] * 2
            stack.manager.complete_load(keys[:1], A)
        stack.manager.drain_jobs()
        assert stack.ask(keys[1:], A) == [HIT] * 2


def test_events_begin_with_the_first_call_and_come_in_order() -> None:
    keys = keys_of(3)
    with stepping(2) as stack:
        stack.store(keys[:1])
        stack.manager.drain_jobs()
        assert not stack.manager.take_events()
        stack.until(lambda: True)  # the loop has fetched what the tier had
        stack.manager.take_events()
        stack.store(keys[1:])
        stack.manager.drain_jobs()
        events = stack.manager.take_events()
        assert [(key, event.medium, event.removed) for event in events for key in event.keys] == [
            (keys[0], "CPU", True),
            (keys[1], "CPU", False),
            (keys[2], "CPU", False),
            (keys[1], "t0", False),
            (keys[2], "t0", False),
        ]
        assert not stack.manager.take_events()


def test_events_of_a_tier_come_after_the_loop_has_fetched_them() -> None:
    (key,) = keys_of(1)
    with stepping(2) as stack:
        stack.manager.take_events()
        stack.tier.events.appeared([key])
        found: list[OffloadingEvent] = []
        while not found:
            found.extend(stack.manager.take_events())
            stack.until(lambda: True)
        assert [(list(event.keys), event.medium) for event in found] == [([key], "t0")]


def test_a_block_that_a_tier_lost_is_written_again_before_it_is_evicted() -> None:
    keys = keys_of(4)
    with stepping(4) as stack:
        stack.store(keys[:3])
        stack.manager.drain_jobs()
        coldest = keys[2]
        del stack.tier.blocks[coldest]
        stack.tier.events.removed([coldest])
        stack.manager.take_events()
        stack.until(lambda: True)
        stack.store(keys[3:])
        stack.manager.drain_jobs()
        assert coldest in stack.tier.blocks


def test_numbers() -> None:
    keys = keys_of(3)
    with stepping(2) as stack:
        stack.store(keys[:2])
        stack.manager.drain_jobs()
        evicted = stack.store(keys[2:])
        stack.manager.drain_jobs()
        stack.ask(evicted, A)
        stack.manager.drain_jobs()
        stats = stack.manager.stats()
        assert (stats.slots, stats.ready, stats.stored, stats.evicted, stats.lost) == (2, 2, 4, 2, 0)
        assert stack.manager.tier_counts() == {
            "t0": {"promoted": 1, "in_flight": 0, "stored": 3, "shed": 0, "failed": 0}
        }
        assert "open" in repr(stack.manager)


def test_two_tiers_of_one_name_are_refused() -> None:
    stack = SteppingStack(2)
    other = SteppingStack(2)
    with pytest.raises(ConfigError, match="t0"):
        type(stack.manager)(stack.region, [*stack.tiers, *other.tiers])
    assert stack.region.slot_bytes == SLOT_BYTES


def test_tiers_hear_of_what_is_served_from_host_memory() -> None:
    touched: list[Sequence[OffloadKey]] = []

    class TouchedTier(GatedTier):
        async def touch(self, keys: Sequence[OffloadKey]) -> None:
            touched.append(keys)

    with stepping(8) as stack:
        stack.manager._touches = Touches([TouchedTier(stack.region.view)])
        stack.store(keys_of(4))
        stack.manager.touch(keys_of(4))
        stack.until(lambda: touched)
        assert touched == [tuple(keys_of(4))]
