"""A tier abandons a job under an engine that steps: its blocks become misses, its slots come back later."""

from __future__ import annotations

import pytest

from asyncoffload.errors import TierUnavailable
from asyncoffload.types import KeyOutcome, Status
from tests.sync.manager_stack import HIT, MISS, SteppingStack, keys_of, named, stepping

LATE = KeyOutcome(Status.TIMED_OUT)
A = named("a")


def abandon(stack: SteppingStack, n: int) -> None:
    stack.on_loop(lambda: stack.tier.running[-1].abandon([LATE] * n))


def test_blocks_of_an_abandoned_promotion_are_misses() -> None:
    keys = keys_of(4)
    with stepping(4) as stack:
        stack.tier.keep(keys)
        stack.tier.halfway.shut()
        with stack.manager.step():
            stack.ask(keys, A)
        stack.reached(stack.tier.halfway)
        abandon(stack, 4)
        with stack.manager.step():
            assert stack.ask(keys, A) == [MISS] * 4
            assert stack.manager.prepare_store(keys_of(1, 10)) is None
        assert stack.manager.stats().quarantined == 4
        stack.tier.halfway.open()
        stack.until(lambda: not stack.tier.running)
        with stack.manager.step():
            stack.store(keys_of(4, 10))


def test_blocks_of_an_abandoned_cascade_can_be_read() -> None:
    keys = keys_of(4)
    with stepping(4) as stack:
        stack.tier.stores.shut()
        with stack.manager.step():
            stack.store(keys)
        stack.reached(stack.tier.stores)
        abandon(stack, 4)
        with stack.manager.step():
            assert stack.ask(keys, A) == [HIT] * 4
            stack.load(keys, A)
        assert not stack.manager.has_pending_work()


@pytest.mark.parametrize("call", ["drain_jobs", "shutdown"])
def test_neither_draining_nor_closing_forgets_who_may_touch_slots(call: str) -> None:
    with stepping(4) as stack:
        stack.tier.stores.shut()
        with stack.manager.step():
            stack.store(keys_of(4))
        stack.reached(stack.tier.stores)
        abandon(stack, 4)
        with pytest.raises(TierUnavailable, match="t0 <Op"):
            getattr(stack.manager, call)(timeout=0.01)
