"""Searches: keys asked for one by one, by callers who never wait."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from asyncoffload.core.ops import Hurry, Op, OpKind
from asyncoffload.core.searches import MAX_LANDINGS, Search
from asyncoffload.core.tickets import FetchState, Mode, Ticket
from asyncoffload.keys import OffloadKey
from asyncoffload.types import LookupResult, Priority, Status, WritePolicy
from tests.core.test_tiering import Stack, keys_of
from tests.core.test_tiering_fuzz import KEYS, World

HIT, MISS, RETRY, PENDING = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY, LookupResult.HIT_PENDING


def asked(stack: Stack, search: Search, keys: Sequence[OffloadKey]) -> list[LookupResult]:
    return [stack.planner.seek(search, key) for key in keys]


def stored(stack: Stack, keys: Sequence[OffloadKey], ok: bool = True) -> None:
    write = stack.primary.begin_store(keys)
    assert write is not None
    stack.planner.store_began(write.keys)
    stack.primary.finish_store(write, ok)
    stack.planner.store_ended(write.keys)


def evict_all(stack: Stack) -> None:
    """Push out whatever is idle."""
    filler = keys_of(stack.table.available, 1000)
    write = stack.primary.begin_store(filler)
    assert write is not None
    stack.primary.finish_store(write, False)


def nothing_left(stack: Stack) -> None:
    assert stack.planner.idle
    assert not stack.planner._reads.book.fetches
    assert not stack.planner._reads.book.open
    assert stack.table.pinned == 0


def test_a_block_is_asked_for_found_promoted_and_hit() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, {key})
    search = stack.planner.search()
    assert stack.planner.seek(search, key) is RETRY
    (probe,) = stack.take()
    assert stack.planner.seek(search, key) is RETRY
    stack.settle(probe)
    assert stack.planner.seek(search, key) is PENDING
    (promotion,) = stack.take()
    assert promotion.kind is OpKind.PROMOTE
    assert stack.planner.seek(search, key) is PENDING
    stack.settle(promotion)
    assert stack.planner.seek(search, key) is HIT
    assert stack.planner.take_landed() == [("", key)]
    assert stack.table.pinned == 0
    stack.planner.close(search)
    nothing_left(stack)


def test_a_hint_saves_the_probe() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, {key}, hinted=True)
    search = stack.planner.search()
    assert stack.planner.seek(search, key) is PENDING
    assert [op.kind for op in stack.take()] == [OpKind.PROMOTE]


def test_a_block_that_nobody_has_is_a_miss_as_long_as_the_search() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, set(), set())
    search = stack.planner.search()
    assert stack.planner.seek(search, key) is RETRY
    stack.run()
    stack.tiers[0].add(key)
    assert stack.planner.seek(search, key) is MISS
    assert not stack.take()
    stack.planner.close(search)
    assert stack.planner.seek(stack.planner.search(), key) is RETRY


def test_a_miss_is_over_when_a_store_of_the_key_completes() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, set())
    search = stack.planner.search()
    stack.planner.seek(search, key)
    stack.run()
    assert stack.planner.seek(search, key) is MISS
    stored(stack, [key])
    assert stack.planner.seek(search, key) is HIT
    stack.run()
    evict_all(stack)
    assert stack.planner.seek(search, key) is RETRY
    stack.run()
    assert stack.planner.seek(search, key) is HIT


def test_a_store_that_fails_leaves_the_miss() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, set())
    search = stack.planner.search()
    stack.planner.seek(search, key)
    stack.run()
    stored(stack, [key], ok=False)
    assert stack.planner.seek(search, key) is MISS


def test_a_block_being_stored_is_waited_for() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, {key})
    write = stack.primary.begin_store([key])
    assert write is not None
    stack.planner.store_began([key])
    search = stack.planner.search()
    assert stack.planner.seek(search, key) is PENDING
    assert not stack.take()
    stack.primary.finish_store(write, False)
    stack.planner.store_ended([key])
    assert stack.planner.seek(search, key) is RETRY
    stack.run()
    assert stack.planner.seek(search, key) is HIT


def test_a_block_that_was_evicted_again_is_sought_again_but_not_for_ever() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, {key}, hinted=True)
    search = stack.planner.search()
    for _ in range(MAX_LANDINGS):
        assert stack.planner.seek(search, key) is PENDING
        stack.run()
        assert stack.planner.seek(search, key) is HIT
        evict_all(stack)
    assert stack.planner.seek(search, key) is MISS
    stack.planner.forgive(search, key)
    assert stack.planner.seek(search, key) is PENDING


def test_nothing_is_promoted_behind_a_key_that_is_still_being_probed() -> None:
    first, *rest = keys = keys_of(6)
    stack = Stack(8, {first}, set(rest))
    search = stack.planner.search()
    asked(stack, search, keys)
    (probe,) = stack.take()
    stack.planner.settle(probe.op_id, [Status.DONE] + [Status.MISSING] * 5)
    promotion, probe = stack.take()
    assert list(promotion.keys) == [first]
    assert list(probe.keys) == rest
    stack.planner.settle(probe.op_id, [Status.MISSING] + [Status.DONE] * 4)
    assert asked(stack, search, keys[:2]) == [PENDING, MISS]
    assert not stack.take(), "four blocks were promoted behind a hole"


def test_who_goes_on_behind_a_miss_gets_what_is_there() -> None:
    keys = keys_of(5)
    stack = Stack(8, {keys[0], keys[2], keys[4]})
    search = stack.planner.search()
    assert asked(stack, search, keys) == [RETRY] * 5
    stack.run()
    assert stack.promoted == [keys[0]]
    asked(stack, search, keys)
    stack.run()
    assert asked(stack, search, keys) == [HIT, MISS, HIT, MISS, HIT]


def test_many_misses_cost_one_probe_together() -> None:
    keys = keys_of(100)
    stack = Stack(8, set())
    search = stack.planner.search()
    asked(stack, search, keys)
    (probe,) = stack.take()
    stack.settle(probe)
    assert asked(stack, search, keys) == [MISS] * 100
    assert not stack.take()


def test_a_promotion_behind_a_new_miss_stops_unless_it_is_asked_for_again() -> None:
    keys = keys_of(2)
    stack = Stack(8, {keys[1]}, {keys[0]}, hinted=True)
    search = stack.planner.search()
    asked(stack, search, keys)
    first, second = sorted(stack.take(), key=lambda op: op.keys[0])
    assert [first.kind, second.kind] == [OpKind.PROMOTE] * 2
    stack.tiers[1].clear()
    stack.settle(first)
    stack.run()
    assert second.unwanted == {keys[1]}
    assert asked(stack, search, keys) == [MISS, PENDING]
    assert not second.unwanted
    stack.settle(second)
    assert asked(stack, search, keys) == [MISS, HIT]


def test_a_parked_promotion_that_came_back_cancelled_is_not_begun_again_by_itself() -> None:
    keys = keys_of(2)
    stack = Stack(8, {keys[1]}, {keys[0]}, hinted=True)
    search = stack.planner.search()
    asked(stack, search, keys)
    first, second = sorted(stack.take(), key=lambda op: op.keys[0])
    stack.tiers[1].clear()
    stack.settle(first)
    stack.run()
    stack.settle(second, Status.CANCELLED)
    assert not stack.take()
    assert stack.planner.seek(search, keys[1]) is PENDING


def test_closing_drops_what_nobody_else_wants() -> None:
    keys = keys_of(3)
    stack = Stack(8, set(keys), hinted=True)
    one, two = stack.planner.search(), stack.planner.search()
    asked(stack, one, keys)
    asked(stack, two, keys[:1])
    (promotion,) = stack.take()
    stack.planner.close(one)
    stack.planner.close(one)
    assert promotion.unwanted == set(keys[1:])
    stack.planner.seek(two, keys[1])
    assert promotion.unwanted == {keys[2]}
    stack.planner.close(two)
    stack.settle(promotion, Status.CANCELLED)
    nothing_left(stack)


def test_searches_and_prefixes_share_a_promotion() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, {key}, hinted=True)
    search = stack.planner.search(Priority.PREFETCH)
    stack.planner.seek(search, key)
    ticket = stack.planner.open([key], Mode.HOLD)
    (op,) = stack.take()
    assert op.priority is Priority.DEMAND
    stack.settle(op)
    assert ticket.done
    assert stack.table.pinned == 1
    assert stack.planner.seek(search, key) is HIT
    stack.planner.close(ticket)
    stack.planner.close(search)
    nothing_left(stack)


def test_a_more_urgent_search_hurries_a_running_promotion() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, {key}, hinted=True)
    stack.planner.seek(stack.planner.search(Priority.PREFETCH), key)
    (op,) = stack.take()
    stack.planner.seek(stack.planner.search(Priority.DEMAND), key)
    assert [type(item) for item in stack.planner.take()] == [Hurry]
    assert op.priority is Priority.DEMAND


def test_a_search_asks_only_the_tiers_it_may() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, set(), {key})
    narrow, wide = stack.planner.search(tiers=1), stack.planner.search()
    stack.planner.seek(narrow, key)
    stack.planner.seek(wide, key)
    (probe,) = stack.take()
    stack.settle(probe)
    assert stack.planner.seek(narrow, key) is MISS
    assert stack.planner.seek(wide, key) is RETRY
    stack.run()
    assert stack.planner.seek(wide, key) is HIT
    assert stack.planner.seek(narrow, key) is HIT
    for search in (narrow, wide):
        stack.planner.close(search)
    nothing_left(stack)


def test_one_with_more_tiers_does_not_take_over_the_miss_of_one_with_fewer() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, set(), {key})
    narrow = stack.planner.search(tiers=1)
    stack.planner.seek(narrow, key)
    stack.run()
    assert stack.planner.seek(narrow, key) is MISS
    wide = stack.planner.search()
    assert stack.planner.seek(wide, key) is RETRY
    assert stack.planner.seek(narrow, key) is MISS
    stack.run()
    assert stack.planner.seek(narrow, key) is HIT


def test_a_search_whose_time_is_over_wants_nothing_any_more() -> None:
    keys = keys_of(2)
    stack = Stack(4, set(keys), hinted=True)
    search = stack.planner.search()
    stack.planner.seek(search, keys[0])
    (op,) = stack.take()
    stack.planner.expire(search)
    assert op.unwanted == {keys[0]}
    assert asked(stack, search, keys) == [MISS, MISS]
    stack.settle(op)
    assert asked(stack, search, keys) == [HIT, MISS], "what arrived all the same can be used"


def test_a_shut_planner_answers_miss() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, {key})
    search = stack.planner.search()
    stack.planner.seek(search, key)
    stack.planner.shut()
    assert stack.planner.seek(search, key) is MISS
    assert stack.planner.seek(stack.planner.search(), key) is MISS


class SearchingWorld(World):
    """As the world of prefixes, with callers who search as well."""

    def __init__(self, seed: int, *, write_policy: WritePolicy = "write_through", keep_dirty: bool = False) -> None:
        super().__init__(seed, write_policy=write_policy, keep_dirty=keep_dirty)
        self.searches: list[Search] = []
        self.misses: dict[tuple[Search, OffloadKey], int] = {}

    def step(self) -> None:
        match self.random.randrange(8):
            case 0:
                self.searches.append(
                    self.planner.search(
                        self.random.choice(list(Priority)), tiers=self.random.choice([-1, -1, -1, 1, 2, 0])
                    )
                )
            case 1 | 2 | 3 if self.searches:
                self.seek_some(self.random.choice(self.searches))
            case 4 if self.searches and self.random.random() < 0.5:
                self.planner.close(self.searches.pop(self.random.randrange(len(self.searches))))
            case 5 if self.searches and self.random.random() < 0.1:
                self.planner.expire(self.random.choice(self.searches))
            case _:
                super().step()

    def seek_some(self, search: Search) -> None:
        start = self.random.randrange(len(KEYS))
        keys = KEYS[start : start + self.random.randrange(1, 8)]
        if self.random.random() < 0.3:
            keys = keys[::-1]
        stop = self.random.random() < 0.7
        for key in keys:
            answer = self.planner.seek(search, key)
            assert (answer is HIT) == (key in self.table.ready)
            if answer is MISS and stop:
                break

    def check(self) -> None:
        everybody: list[Ticket] = [*self.tickets, *self.searches]
        prefixes, self.tickets = self.tickets, everybody
        super().check()
        self.tickets = prefixes
        for search in self.searches:
            for key, fetch in search.wanted.items():
                assert search in fetch.waiters
                assert fetch.key == key
                assert fetch.state is FetchState.MISSED or self.planner._reads.book.fetches[key] is fetch
            places = [f.waiters[search] for f in search.wanted.values() if f not in search.parked]
            assert [place for place in places if place < search._asked] == sorted(
                p for p in places if p < search._asked
            )
        for fetch in self.planner._reads.book.fetches.values():
            if fetch.state is FetchState.QUEUED:
                assert any(fetch in line for line in self.planner._promotions._lines.values())

    def answered(self, search: Search, answers: Sequence[LookupResult]) -> None:
        """A search has asked for all that it still waits for."""

    def drain(self) -> None:
        """Whoever asks long enough is answered for good."""
        for _ in range(400):
            self.take()
            while self.ops:
                self.settle()
            while self.stores:
                self.end_store()
            for ticket in [ticket for ticket in self.tickets if ticket.done]:
                self.tickets.remove(ticket)
                self.planner.close(ticket)
            waiting: list[LookupResult] = []
            for search in self.searches:
                wanted = [key for key in list(search.wanted) if search.wanted.get(key) is not None]
                answers = [self.planner.seek(search, key) for key in wanted]
                self.answered(search, answers)
                waiting += answers
            self.check()
            if not {RETRY, PENDING} & set(waiting) and not self.tickets:
                break
        else:
            raise AssertionError(f"somebody is never answered: {self.searches}, {self.planner!r}")
        for search in self.searches:
            self.planner.close(search)
        self.searches.clear()
        super().drain()


@pytest.mark.parametrize("batch", range(20))
def test_random_histories_with_searches_leave_nothing_over(batch: int) -> None:
    for seed in range(batch * 40, batch * 40 + 40):
        world = SearchingWorld(seed)
        for _ in range(world.random.randrange(20, 200)):
            world.step()
            world.check()
        world.drain()


def test_ops_of_a_searching_world_are_hurried_by_urgent_ones_only() -> None:
    dice = random.Random(5)
    stack = Stack(8, set(keys_of(8)), hinted=True)
    for priority in dice.sample(list(Priority), len(Priority)):
        stack.planner.seek(stack.planner.search(priority), keys_of(1)[0])
        for item in stack.planner.take():
            assert isinstance(item, Op) or item.priority is priority


def test_a_block_that_was_used_may_land_again() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, {key}, hinted=True)
    search = stack.planner.search()
    for _ in range(3 * MAX_LANDINGS):
        assert stack.planner.seek(search, key) is PENDING
        stack.run()
        search.used([key])
        evict_all(stack)
