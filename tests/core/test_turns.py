"""Searches that do not fit into the primary together: who is served first, who gives way, and when it is hopeless."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from asyncoffload.core.keeping import Turn
from asyncoffload.core.ops import OpKind
from asyncoffload.core.searches import MAX_KEPT_LANDINGS, MAX_LANDINGS, Search
from asyncoffload.core.standstill import NO_WAY_OUT, PATIENCE
from asyncoffload.keys import OffloadKey
from asyncoffload.types import LookupResult, Priority, WritePolicy
from tests.core.test_seek import HIT, MISS, PENDING, RETRY, SearchingWorld, asked, evict_all
from tests.core.test_tiering import Stack, keys_of


class Keeping:
    """Keeps what lands for its owner, until that one uses it or somebody comes who is before him."""

    def __init__(self, stack: Stack | SearchingWorld) -> None:
        self.table = stack.table
        self.planner = stack.planner
        self.planner._keeper = self
        self.kept: dict[str, dict[OffloadKey, int]] = {}
        self.turns: dict[str, Turn] = {}
        self.silent: set[Turn] = set()

    def search(self, name: str, priority: Priority = Priority.DEMAND) -> Search:
        search = self.planner.search(priority, owner=name, place=len(self.turns))
        self.turns[name] = search.turn
        return search

    def settle(self) -> None:
        for name, key in self.planner.take_landed():
            kept = self.kept.setdefault(name, {})
            if name and key in self.table.ready and key not in kept:
                kept.update(zip([key], self.table.pin([key]), strict=True))

    def use(self, name: str) -> None:
        """Whatever is kept for somebody was used."""
        for slot in self.kept.pop(name, {}).values():
            self.table.unpin([slot])

    def slots(self) -> set[int]:
        return {slot for kept in self.kept.values() for slot in kept.values()}

    def give_way(self, turn: Turn, blocks: int) -> bool:
        for name in sorted(self.kept, key=lambda name: self.turns.get(name, turn), reverse=True):
            kept = self.kept[name]
            while kept and self.turns[name] > turn and self.table.available < blocks:
                self.table.unpin([kept.popitem()[1]])
        return self.table.available > 0

    def still_asks(self, turn: Turn) -> bool:
        return turn not in self.silent

    def keeps_for_others(self, turn: Turn) -> bool:
        return any(kept and self.turns[name] != turn for name, kept in self.kept.items())


class Turns(Stack):
    """A planner with a keeper, over a tier that knows what it has."""

    def __init__(self, n_slots: int, keys: Sequence[OffloadKey], **limits: int) -> None:
        super().__init__(n_slots, set(keys), hinted=True, **limits)
        self.keeper = Keeping(self)

    def run(self) -> None:
        while ops := self.take():
            for op in ops:
                self.settle(op)
            self.keeper.settle()


def test_what_was_asked_for_first_is_promoted_first_also_when_it_is_asked_for_again() -> None:
    keys = keys_of(6)
    stack = Turns(2, keys)
    first, second = stack.keeper.search("first"), stack.keeper.search("second")
    asked(stack, first, keys[:2])
    asked(stack, second, keys[2:])
    stack.run()
    assert stack.promoted == keys[:2]
    evicted = stack.keeper.kept["first"].pop(keys[0])
    stack.table.unpin([evicted])
    write = stack.primary.begin_store(keys_of(1, 100))
    assert write is not None
    stack.primary.finish_store(write, False)
    assert asked(stack, first, keys[:2]) == [PENDING, HIT]
    stack.run()
    assert stack.promoted == [*keys[:2], keys[0]]


def test_urgent_searches_come_before_those_who_came_first() -> None:
    keys = keys_of(4)
    stack = Turns(2, keys)
    early = stack.keeper.search("early", Priority.PREFETCH)
    late = stack.keeper.search("late", Priority.DEMAND)
    asked(stack, early, keys[:2])
    asked(stack, late, keys[2:])
    stack.run()
    assert stack.promoted == keys[2:]


def test_blocks_of_several_turns_share_a_promotion() -> None:
    keys = keys_of(6)
    stack = Turns(8, keys)
    for number in range(3):
        asked(stack, stack.keeper.search(str(number)), keys[2 * number : 2 * number + 2])
    (promotion,) = stack.take()
    assert promotion.kind is OpKind.PROMOTE
    assert list(promotion.keys) == keys


def test_who_came_last_gives_way_and_gets_his_blocks_later() -> None:
    keys = keys_of(9)
    stack = Turns(6, keys)
    last = stack.keeper.search("last")
    stack.keeper.turns["last"] = last.turn = (0, 100)
    middle = stack.keeper.search("middle")
    asked(stack, last, keys[:3])
    asked(stack, middle, keys[3:6])
    stack.run()
    first = stack.keeper.search("first")
    stack.keeper.turns["first"] = first.turn = (0, 0)
    asked(stack, first, keys[6:])
    stack.run()
    assert asked(stack, first, keys[6:]) == [HIT] * 3
    assert asked(stack, middle, keys[3:6]) == [HIT] * 3
    assert asked(stack, last, keys[:3]) == [PENDING] * 3
    stack.run()
    assert asked(stack, middle, keys[3:6]) == [HIT] * 3
    stack.keeper.use("first")
    stack.run()
    assert asked(stack, last, keys[:3]) == [HIT] * 3


def test_nobody_gives_way_for_a_promotion_that_has_no_budget() -> None:
    keys = keys_of(4)
    stack = Turns(2, keys, promotion_blocks=1)
    last = stack.keeper.search("last")
    stack.keeper.turns["last"] = last.turn = (0, 100)
    asked(stack, last, keys[:1])
    stack.run()
    first = stack.keeper.search("first")
    asked(stack, first, keys[1:3])
    (promotion,) = stack.take()
    assert not stack.take()
    assert stack.keeper.kept["last"]
    stack.settle(promotion)
    stack.keeper.settle()
    stack.run()
    assert not stack.keeper.kept["last"]


def test_what_is_kept_and_leaves_for_others_may_land_more_often() -> None:
    (key,) = keys_of(1)
    stack = Turns(2, [key])
    search = stack.keeper.search("patient")
    for _ in range(MAX_KEPT_LANDINGS):
        assert stack.planner.seek(search, key) is PENDING
        stack.run()
        stack.keeper.use("patient")
        evict_all(stack)
    assert stack.planner.seek(search, key) is MISS
    assert MAX_KEPT_LANDINGS > MAX_LANDINGS


def test_more_than_the_primary_holds_ends_in_a_miss_soon() -> None:
    keys = keys_of(5)
    stack = Turns(4, keys)
    search = stack.keeper.search("too long")
    asked(stack, search, keys)
    stack.run()
    for _ in range(PATIENCE // NO_WAY_OUT - 1):
        assert asked(stack, search, keys) == [HIT] * 4 + [PENDING]
        assert not stack.take()
    assert asked(stack, search, keys) == [HIT] * 4 + [MISS]


def test_who_waits_for_others_to_use_theirs_is_patient_but_not_for_ever() -> None:
    keys = keys_of(5)
    stack = Turns(4, keys)
    asked(stack, stack.keeper.search("first"), keys[:3])
    many = [stack.keeper.search(name) for name in ("second", "third", "fourth")]
    for search in many:
        asked(stack, search, keys[3:])
    stack.run()
    for _ in range(PATIENCE - 1):
        for search in many:
            assert asked(stack, search, keys[3:]) == [HIT, PENDING]
        assert not stack.take()
    for search in many:
        assert asked(stack, search, keys[3:]) == [HIT, MISS]


def test_who_does_not_ask_any_more_is_passed_over_until_he_does() -> None:
    keys = keys_of(8)
    stack = Turns(2, keys)
    holds, silent, asks = (stack.keeper.search(name) for name in ("holds", "silent", "asks"))
    asked(stack, holds, keys[:2])
    asked(stack, silent, keys[2:4])
    asked(stack, asks, keys[3:6])
    stack.keeper.silent.add(silent.turn)
    stack.run()
    stack.keeper.use("holds")
    stack.run()
    assert stack.promoted == [*keys[:2], *keys[3:5]]
    stack.keeper.silent.clear()
    assert asked(stack, silent, keys[2:4]) == [PENDING, HIT]
    stack.run()
    assert stack.promoted == [*keys[:2], *keys[3:5], keys[2]]


def test_nobody_loses_patience_while_a_reader_may_give_a_slot_back() -> None:
    keys = keys_of(5)
    stack = Turns(4, keys)
    search = stack.keeper.search("waits")
    asked(stack, search, keys)
    (promotion,) = stack.take()
    stack.settle(promotion)
    stack.planner.take_landed()
    pins = stack.primary.begin_load(keys[:4])
    for _ in range(2 * PATIENCE // NO_WAY_OUT):
        assert not stack.take()
        assert stack.planner.seek(search, keys[4]) is PENDING
    stack.primary.finish_load(pins)
    stack.run()
    assert stack.planner.seek(search, keys[4]) is HIT


@pytest.mark.parametrize("n_slots", [6, 7, 11])
def test_requests_that_do_not_fit_together_are_all_served_and_little_is_promoted_twice(n_slots: int) -> None:
    n, length = 8, 5
    keys = keys_of(n * length)
    stack = Turns(n_slots, keys)
    parts = {str(number): keys[number * length : (number + 1) * length] for number in range(n)}
    waiting = {name: stack.keeper.search(name) for name in parts}
    served = []
    while waiting:
        for name, search in list(waiting.items()):
            answers = asked(stack, search, parts[name])
            if answers == [HIT] * length:
                served.append(name)
                stack.keeper.use(name)
                stack.planner.close(waiting.pop(name))
                break  # the device takes one at a time
            assert MISS not in answers
        stack.run()
    assert served == list(parts)
    assert len(stack.promoted) == len(keys)


class KeepingWorld(SearchingWorld):
    """As the world of searches, with a keeper for most of them."""

    def __init__(self, seed: int, *, write_policy: WritePolicy = "write_through", keep_dirty: bool = False) -> None:
        super().__init__(seed, write_policy=write_policy, keep_dirty=keep_dirty)
        self.keeper = Keeping(self)

    def step(self) -> None:
        if self.random.random() < 0.1:
            name = str(len(self.keeper.turns))
            self.searches.append(self.keeper.search(name, self.random.choice(list(Priority))))
        elif self.keeper.kept and self.random.random() < 0.05:
            self.keeper.use(self.random.choice(list(self.keeper.kept)))
        elif self.keeper.turns and self.random.random() < 0.05:
            self.keeper.silent ^= {self.random.choice(list(self.keeper.turns.values()))}
        else:
            super().step()
        self.keep()

    def keep(self) -> None:
        self.keeper.settle()
        alive = {search.owner for search in self.searches}
        for name in [name for name in self.keeper.kept if name not in alive]:
            self.keeper.use(name)

    def drain(self) -> None:
        self.keeper.silent.clear()
        super().drain()

    def reset(self) -> None:
        for name in list(self.keeper.kept):
            self.keeper.use(name)
        super().reset()

    def pins(self) -> list[int]:
        return [slot for kept in self.keeper.kept.values() for slot in kept.values()]

    def answered(self, search: Search, answers: Sequence[LookupResult]) -> None:
        self.keep()
        if not {RETRY, PENDING} & set(answers):
            self.keeper.use(search.owner)


@pytest.mark.parametrize("batch", range(20))
def test_random_histories_with_a_keeper_leave_nothing_over(batch: int) -> None:
    for seed in range(batch * 30, batch * 30 + 30):
        world = KeepingWorld(50_000 + seed)
        for _ in range(world.random.randrange(20, 200)):
            world.step()
            world.check()
        world.drain()


@pytest.mark.parametrize("keep_dirty", [False, True], ids=["drop", "refuse"])
@pytest.mark.parametrize("world_of", [SearchingWorld, KeepingWorld])
@pytest.mark.parametrize("batch", range(4))
def test_whoever_searches_is_answered_where_blocks_are_demoted(
    batch: int, world_of: type[SearchingWorld], keep_dirty: bool
) -> None:
    for seed in range(60_000 + batch * 30, 60_000 + batch * 30 + 30):
        world = world_of(seed, write_policy="demote", keep_dirty=keep_dirty)
        for _ in range(world.random.randrange(20, 200)):
            world.step()
            world.check()
        world.drain()
