"""Requests that wait together for more than the primary holds: who keeps what, and who gives way."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from asyncoffload.keys import OffloadKey
from tests.sync.manager_stack import HIT, MISS, PENDING, RETRY, SteppingStack, keys_of, named, stepping

A = named("a")


def promoted(stack: SteppingStack) -> int:
    return sum(counts["promoted"] for counts in stack.manager.tier_counts().values())


def in_a_step(stack: SteppingStack, **asked: Sequence[OffloadKey]) -> dict[str, list[object]]:
    """One step in which these requests are asked for, and what follows it on the loop."""
    with stack.manager.step():
        answers: dict[str, list[object]] = {name: list(stack.ask(keys, named(name))) for name, keys in asked.items()}
    stack.manager.drain_jobs()
    return answers


@pytest.mark.parametrize("n_slots", [6, 7, 11, 40])
@pytest.mark.parametrize("shared", [0, 3])
def test_an_engine_that_takes_one_request_at_a_time_has_each_block_promoted_once(n_slots: int, shared: int) -> None:
    """It asks in order until a request has all and finds no room, as schedulers do."""
    n, length, steps_of_a_request = 8, 5, 4
    keys = keys_of(n * length)
    requests = {str(i): [*keys[:shared], *keys[i * length + shared : (i + 1) * length]] for i in range(n)}
    waiting, served, busy = list(requests), list[str](), 0
    with stepping(n_slots) as stack:
        stack.tier.keep(keys)
        while waiting:
            busy = max(0, busy - 1)
            with stack.manager.step():
                for name in list(waiting):
                    answers = stack.ask(requests[name], named(name))
                    assert MISS not in answers
                    if set(answers) != {HIT}:
                        continue
                    if busy:
                        break
                    busy = steps_of_a_request
                    stack.load(requests[name], named(name))
                    waiting.remove(name)
                    served.append(name)
            stack.manager.drain_jobs()
        assert served == list(requests)
        again = 0 if n_slots == 40 else shared * (n - 1)  # the shared ones may leave between two who want them
        assert promoted(stack) <= len(set().union(*requests.values())) + again
        for name in requests:
            stack.manager.end_request(name)


def test_what_has_landed_stays_for_its_request_however_long_that_is_not_asked_for() -> None:
    keys = keys_of(8)
    with stepping(6) as stack:
        stack.tier.keep(keys)
        in_a_step(stack, a=keys[:3], b=keys[3:6], c=keys[6:])
        for _ in range(10):
            assert in_a_step(stack, a=keys[:3]) == {"a": [HIT] * 3}
        assert in_a_step(stack, a=keys[:3], b=keys[3:6], c=keys[6:]) == {
            "a": [HIT] * 3,
            "b": [HIT] * 3,
            "c": [PENDING] * 2,
        }
        assert promoted(stack) == 6
        for name in ("a", "b", "c"):
            stack.manager.end_request(name)


def test_what_was_used_makes_room_for_the_next() -> None:
    keys = keys_of(8)
    with stepping(4) as stack:
        stack.tier.keep(keys)
        in_a_step(stack, a=keys[:4], b=keys[4:])
        with stack.manager.step():
            assert stack.ask(keys[:4], A) == [HIT] * 4
            stack.load(keys[:4], A)
        stack.manager.drain_jobs()
        assert in_a_step(stack, b=keys[4:]) == {"b": [HIT] * 4}
        stack.manager.end_request("a")
        stack.manager.end_request("b")


def test_what_two_requests_share_stays_when_one_of_them_has_used_it() -> None:
    keys = keys_of(6)
    with stepping(4) as stack:
        stack.tier.keep(keys)
        in_a_step(stack, a=keys[:3], b=keys[:3])
        in_a_step(stack, a=keys[:3], b=keys[:3], c=keys[3:])
        with stack.manager.step():
            assert stack.ask(keys[:3], A) == [HIT] * 3
            stack.load(keys[:3], A)
        stack.manager.drain_jobs()
        assert in_a_step(stack, b=keys[:3], c=keys[3:])["b"] == [HIT] * 3
        for name in ("a", "b", "c"):
            stack.manager.end_request(name)


def test_the_end_of_a_request_makes_room_for_the_next() -> None:
    keys = keys_of(8)
    with stepping(4) as stack:
        stack.tier.keep(keys)
        in_a_step(stack, a=keys[:4], b=keys[4:])
        stack.manager.end_request("a")
        stack.manager.drain_jobs()
        assert in_a_step(stack, b=keys[4:]) == {"b": [HIT] * 4}
        stack.manager.end_request("b")


def test_a_request_that_came_first_takes_from_the_last_one() -> None:
    keys = keys_of(12)
    with stepping(6) as stack:
        stack.tier.keep(keys)
        in_a_step(stack, a=keys[:2], b=keys[2:4], c=keys[4:6])
        assert in_a_step(stack, a=keys[6:8], b=keys[2:4], c=keys[4:6])["a"] == [RETRY] * 2
        assert in_a_step(stack, a=[*keys[:2], *keys[6:8]], b=keys[2:4], c=keys[4:6]) == {
            "a": [HIT] * 4,
            "b": [HIT] * 2,
            "c": [RETRY] * 2,
        }
        for name in ("a", "b", "c"):
            stack.manager.end_request(name)


def test_a_request_that_is_not_asked_for_any_more_gives_way_to_one_that_is() -> None:
    keys = keys_of(8)
    with stepping(4) as stack:
        stack.tier.keep(keys)
        in_a_step(stack, a=keys[:4])
        assert in_a_step(stack, a=keys[:4]) == {"a": [HIT] * 4}
        for _ in range(4):
            answers = in_a_step(stack, b=keys[4:])
        assert answers == {"b": [HIT] * 4}
        stack.manager.end_request("a")
        stack.manager.end_request("b")


def test_a_store_takes_what_the_last_request_waits_for_and_no_more_than_it_needs() -> None:
    keys, new = keys_of(6), keys_of(4, 100)
    with stepping(6) as stack:
        stack.tier.keep(keys)
        in_a_step(stack, a=keys[:3], b=keys[3:])
        assert in_a_step(stack, a=keys[:3], b=keys[3:]) == {"a": [HIT] * 3, "b": [HIT] * 3}
        (left,) = stack.store(new[:1])
        assert left in keys[3:]
        assert len(stack.store(new[1:])) == 3
        assert stack.manager.stats().refused == 0
        stack.manager.drain_jobs()
        with stack.manager.step():
            assert stack.ask(keys[:3], A).count(HIT) >= 2
        for name in ("a", "b"):
            stack.manager.end_request(name)


def test_a_store_takes_what_nobody_waits_for_first() -> None:
    keys, old, new = keys_of(3), keys_of(3, 50), keys_of(3, 100)
    with stepping(6) as stack:
        stack.tier.keep(keys)
        in_a_step(stack, a=keys)
        stack.store(old)
        stack.manager.drain_jobs()
        assert set(stack.store(new)) == set(old)
        assert in_a_step(stack, a=keys) == {"a": [HIT] * 3}
        stack.manager.end_request("a")


def test_a_request_too_long_for_the_primary_does_not_hold_up_the_others() -> None:
    keys = keys_of(10)
    with stepping(4) as stack:
        stack.tier.keep(keys)
        for _ in range(40):
            answers = in_a_step(stack, a=keys[:6], b=keys[6:])
            if MISS in answers["a"]:
                break
        assert answers["a"][:5] == [HIT] * 4 + [MISS]
        with stack.manager.step():
            assert stack.manager.lookup(keys[:6], A) == 4
            stack.load(keys[:4], A)
        stack.manager.end_request("a")
        stack.manager.drain_jobs()
        assert in_a_step(stack, b=keys[6:]) == {"b": [HIT] * 4}
        stack.manager.end_request("b")


def test_a_request_that_ends_in_a_step_may_ask_on_in_it() -> None:
    keys, new = keys_of(2), keys_of(2, 10)
    with stepping(2) as stack:
        stack.store(keys)
        stack.manager.drain_jobs()
        with stack.manager.step():
            assert stack.ask(keys[:1], A) == [HIT]
            stack.manager.end_request("a")
            assert stack.ask(keys[:1], A) == [HIT]
            assert stack.manager.prepare_store(new) is None
        stack.manager.end_request("a")
