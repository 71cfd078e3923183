"""Policies against models of what they promise."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncoffload.core.policies import ARC, LRU, POLICIES, EvictionPolicy, RecencyLog
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Int32s


def block(number: int) -> OffloadKey:
    return OffloadKey(b"%08d" % number)


def int32(*slots: int) -> Int32s:
    return np.array(slots, dtype=np.int32)


def cold(policy: EvictionPolicy) -> list[int]:
    return [slot for slots in policy.cold() for slot in slots.tolist()]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_tail_first_within_a_batch(name: str) -> None:
    policy = POLICIES[name]()
    policy.reset(8)
    policy.insert(list(map(block, range(3))), int32(0, 1, 2))
    policy.insert(list(map(block, range(3, 5))), int32(3, 4))
    assert cold(policy) == [2, 1, 0, 4, 3]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_touch_keeps_request_order(name: str) -> None:
    policy = POLICIES[name]()
    policy.reset(8)
    policy.insert(list(map(block, range(4))), int32(0, 1, 2, 3))
    policy.touch(int32(1, 3))
    assert cold(policy) == [2, 0, 3, 1]


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_reset_forgets_everything(name: str) -> None:
    policy = POLICIES[name]()
    policy.reset(4)
    policy.insert([block(0)], int32(0))
    policy.reset(2)
    assert cold(policy) == []
    policy.insert([block(1), block(0)], int32(0, 1))
    assert cold(policy) == [1, 0]


def test_the_log_survives_many_more_uses_than_it_has_entries() -> None:
    log = RecencyLog(3)
    for turn in range(1000):
        log.use(int32(turn % 3))
    assert [slot for slots in log.cold() for slot in slots.tolist()] == [1, 2, 0]
    assert len(log) == 3


def full_arc(n_slots: int) -> ARC:
    policy = ARC()
    policy.reset(n_slots)
    policy.insert([block(n) for n in range(n_slots)], np.arange(n_slots, dtype=np.int32))
    return policy


def test_arc_gives_up_blocks_seen_once_before_those_seen_again() -> None:
    policy = full_arc(4)
    policy.touch(int32(3))
    assert cold(policy) == [2, 1, 0, 3]


def test_arc_learns_from_a_ghost_of_the_blocks_seen_once() -> None:
    policy = full_arc(4)
    policy.touch(int32(0, 1))
    policy.evict([block(3)], int32(3))
    policy.insert([block(3)], int32(3))
    policy.evict([block(1)], int32(1))
    policy.insert([block(9)], int32(1))
    # Block 3 has come back, so one slot is the share of the blocks seen once: of 2 and 9 the older goes first, and
    # then one that was seen again.
    assert cold(policy) == [2, 0, 3, 1]


class PolicyMachine(RuleBasedStateMachine):
    """Random inserts, touches and evictions as a block table would make them."""

    policy: EvictionPolicy
    n_slots = 6

    def __init__(self) -> None:
        super().__init__()
        self.key_of: dict[int, OffloadKey] = {}

    @initialize()
    def start(self) -> None:
        self.policy.reset(self.n_slots)

    def model_insert(self, keys: list[OffloadKey], slots: list[int]) -> None: ...

    def model_touch(self, slots: list[int]) -> None: ...

    def model_evict(self, slots: list[int]) -> None: ...

    @rule(numbers=st.lists(st.integers(0, 20), unique=True, max_size=6))
    def insert(self, numbers: list[int]) -> None:
        free = [slot for slot in range(self.n_slots) if slot not in self.key_of]
        keys = [block(number) for number in numbers if block(number) not in self.key_of.values()][: len(free)]
        slots = free[: len(keys)]
        self.policy.insert(keys, int32(*slots))
        self.model_insert(keys, slots)
        self.key_of.update(zip(slots, keys, strict=True))

    @rule(slots=st.lists(st.integers(0, 5), unique=True))
    def touch(self, slots: list[int]) -> None:
        slots = [slot for slot in slots if slot in self.key_of]
        self.policy.touch(int32(*slots))
        self.model_touch(slots)

    @precondition(lambda self: self.key_of)
    @rule(count=st.integers(1, 6), skip=st.integers(0, 2))
    def evict(self, count: int, skip: int) -> None:
        slots = cold(self.policy)[skip : skip + count]
        self.policy.evict([self.key_of[slot] for slot in slots], int32(*slots))
        self.model_evict(slots)
        for slot in slots:
            del self.key_of[slot]

    @invariant()
    def the_order_is_of_the_ready_blocks(self) -> None:
        assert sorted(cold(self.policy)) == sorted(self.key_of)


class LRUMachine(PolicyMachine):
    """LRU against an OrderedDict."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = LRU()
        self.order: OrderedDict[int, None] = OrderedDict()

    def model_insert(self, keys: list[OffloadKey], slots: list[int]) -> None:
        del keys
        self.model_touch(slots)

    def model_touch(self, slots: list[int]) -> None:
        for slot in reversed(slots):
            self.order[slot] = None
            self.order.move_to_end(slot)

    def model_evict(self, slots: list[int]) -> None:
        for slot in slots:
            del self.order[slot]

    @invariant()
    def the_order_is_that_of_the_last_uses(self) -> None:
        assert cold(self.policy) == list(self.order)


class PaperARC:
    """The four lists and the balance of the paper, a key at a time."""

    def __init__(self, capacity: int) -> None:
        self.c = capacity
        self.p = 0.0
        self.t1: list[OffloadKey] = []
        self.t2: list[OffloadKey] = []
        self.b1: list[OffloadKey] = []
        self.b2: list[OffloadKey] = []

    def insert(self, key: OffloadKey) -> None:
        if key in self.b1:
            self.p = min(self.c, self.p + max(1.0, len(self.b2) / len(self.b1)))
            self.b1.remove(key)
            self.t2.append(key)
        elif key in self.b2:
            self.p = max(0.0, self.p - max(1.0, len(self.b1) / len(self.b2)))
            self.b2.remove(key)
            self.t2.append(key)
        else:
            self.t1.append(key)

    def trim(self) -> None:
        while self.b1 and len(self.t1) + len(self.b1) > self.c:
            self.b1.pop(0)
        while self.b2 and len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2) > 2 * self.c:
            self.b2.pop(0)

    def touch(self, key: OffloadKey) -> None:
        (self.t1 if key in self.t1 else self.t2).remove(key)
        self.t2.append(key)

    def evict(self, key: OffloadKey) -> None:
        resident, ghosts = (self.t1, self.b1) if key in self.t1 else (self.t2, self.b2)
        resident.remove(key)
        ghosts.append(key)

    def cold(self) -> list[OffloadKey]:
        over = max(0, len(self.t1) - int(self.p))
        return [*self.t1[:over], *self.t2, *self.t1[over:]]


class ARCMachine(PolicyMachine):
    """ARC against the paper's lists, and its laws."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = ARC()
        self.paper = PaperARC(self.n_slots)

    def model_insert(self, keys: list[OffloadKey], slots: list[int]) -> None:
        del slots
        for key in reversed(keys):
            self.paper.insert(key)
        self.paper.trim()

    def model_touch(self, slots: list[int]) -> None:
        for slot in reversed(slots):
            self.paper.touch(self.key_of[slot])

    def model_evict(self, slots: list[int]) -> None:
        for slot in slots:
            self.paper.evict(self.key_of[slot])

    @invariant()
    def the_order_is_the_papers(self) -> None:
        assert [self.key_of[slot] for slot in cold(self.policy)] == self.paper.cold()

    @invariant()
    def the_papers_laws_hold(self) -> None:
        t1, t2, b1, b2 = map(len, (self.paper.t1, self.paper.t2, self.paper.b1, self.paper.b2))
        assert t1 + t2 <= self.n_slots
        assert t1 + b1 <= self.n_slots
        assert t1 + t2 + b1 + b2 <= 2 * self.n_slots
        assert 0 <= self.paper.p <= self.n_slots
        assert repr(self.policy) == (
            f"<ARC of {self.n_slots}: {t1} once + {t2} again, ghosts {b1} + {b2}, target {self.paper.p:.1f}>"
        )


TestLRUMachine = LRUMachine.TestCase
TestARCMachine = ARCMachine.TestCase
TestLRUMachine.settings = TestARCMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_a_scan_does_not_push_out_what_arc_has_seen_again() -> None:
    policy = full_arc(8)
    policy.touch(int32(0, 1, 2, 3))
    key_of = {slot: block(slot) for slot in range(8)}
    for number in range(100, 140):
        victim = cold(policy)[0]
        policy.evict([key_of[victim]], int32(victim))
        key_of[victim] = block(number)
        policy.insert([block(number)], int32(victim))
    assert set(map(block, range(4))) <= set(key_of.values())
