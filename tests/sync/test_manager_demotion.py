"""Writing blocks only when they are about to leave, step by step."""

from __future__ import annotations

from typing import Any

import pytest

from asyncoffload.keys import OffloadKey
from asyncoffload.types import Status
from tests.sync.manager_stack import HIT, PENDING, RETRY, SteppingStack, keys_of, named, stepping

DEMOTE: dict[str, Any] = {"write_policy": "demote"}
REFUSE: dict[str, Any] = {"write_policy": "demote", "dirty_victims": "refuse"}

A = named("a")


def fill(stack: SteppingStack, batches: int, size: int, start: int = 0) -> list[OffloadKey]:
    """Store batch after batch, a step each, with time for the tiers in between."""
    keys = keys_of(batches * size, start)
    for at in range(0, len(keys), size):
        with stack.manager.step():
            stack.store(keys[at : at + size])
        stack.manager.drain_jobs()
    return keys


@pytest.mark.parametrize("size", [1, 4, 8, 24, 32])
def test_with_time_between_the_steps_nothing_is_lost_and_each_block_is_written_once(size: int) -> None:
    with stepping(32, **REFUSE) as stack:
        keys = fill(stack, 320 // size, size)
        stats = stack.manager.stats()
        assert stats.lost == stats.refused == 0
        assert set(keys).difference(stack.manager._ready) <= set(stack.tier.blocks)
        handed = [key for job in stack.tier.jobs for key in job.keys]
        assert len(handed) == len(set(handed))


def test_nothing_is_written_while_there_is_room() -> None:
    with stepping(64, **DEMOTE) as stack:
        fill(stack, 8, 4)
        assert not stack.tier.jobs
        assert not stack.manager.has_pending_work()


def test_flush_writes_the_rest_and_draining_waits_for_it() -> None:
    with stepping(64, 2, cascading=3, **DEMOTE) as stack:
        keys = fill(stack, 8, 4)
        stack.manager.flush()
        assert stack.manager.has_pending_work()
        stack.manager.drain_jobs()
        assert [set(tier.blocks) for tier in stack.tiers] == [set(keys)] * 2
        assert stack.manager.stats().dirty == 0


def test_a_store_without_clean_victims_gets_none_until_a_tier_has_taken_some() -> None:
    with stepping(8, **REFUSE) as stack:
        stack.on_loop(stack.tier.stores.shut)
        keys = keys_of(8)
        stack.store(keys)
        new = keys_of(3, start=50)
        for _ in range(5):
            with stack.manager.step():
                assert stack.manager.prepare_store(new) is None
        stack.open_all()
        stack.manager.drain_jobs()
        assert len(stack.store(new)) == 3
        assert stack.manager.stats().lost == 0


def test_a_tier_that_takes_nothing_is_asked_again_by_the_next_store() -> None:
    with stepping(4, **REFUSE) as stack:
        stack.on_loop(lambda: stack.tier.outcomes.update(dict.fromkeys(keys_of(100), Status.FAILED)))
        stack.store(keys_of(4))
        for _ in range(5):
            with stack.manager.step():
                assert stack.manager.prepare_store(keys_of(1, start=50)) is None
            stack.manager.drain_jobs()
        stack.on_loop(stack.tier.outcomes.clear)
        assert stack.manager.prepare_store(keys_of(1, start=50)) is None
        stack.manager.drain_jobs()
        assert stack.store(keys_of(1, start=50))
        assert stack.manager.stats().lost == 0


def test_whoever_searches_is_answered_though_nothing_can_be_evicted() -> None:
    with stepping(4, **REFUSE) as stack:
        wanted = keys_of(2, start=900)
        stack.on_loop(lambda: stack.tier.keep(wanted))
        stack.on_loop(lambda: stack.tier.outcomes.update(dict.fromkeys(keys_of(100), Status.FAILED)))
        stack.store(keys_of(4))
        for _ in range(5_000):
            with stack.manager.step():
                answers = stack.ask(wanted, A)
            if not {PENDING, RETRY} & set(answers):
                break
            stack.manager.await_news(0.01)
        assert HIT not in answers
        stack.on_loop(stack.tier.outcomes.clear)
        assert stack.manager.stats().lost == 0
        stack.manager.end_request("a")
