"""The planner, rule by rule."""

from __future__ import annotations

import pytest

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.ops import Hurry, Op, OpKind
from asyncoffload.core.policies import LRU
from asyncoffload.core.primary import Primary
from asyncoffload.core.promotions import MAX_PROMOTION_BLOCKS
from asyncoffload.core.tickets import PRIMARY, Mode, Ticket
from asyncoffload.core.tiering import MAX_OP_BLOCKS, TieringPlanner
from asyncoffload.errors import InternalError
from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.types import Priority, Status


def keys_of(n: int, start: int = 0) -> list[OffloadKey]:
    return [make_key(index.to_bytes(4, "big")) for index in range(start, start + n)]


class Stack:
    """A planner over tiers that are sets of keys, and somebody who does what it asks for."""

    def __init__(
        self,
        n_slots: int,
        *tiers: set[OffloadKey],
        hinted: bool = False,
        promotion_blocks: int = 256,
        cascades: int = 256,
    ) -> None:
        self.table = BlockTable(n_slots, LRU(), n_tiers=len(tiers))
        self.primary = Primary(self.table)
        self.tiers = tiers
        self.planner = TieringPlanner(
            self.primary,
            [tier.__contains__ if hinted else (lambda _: False) for tier in tiers],
            promotion_blocks=promotion_blocks,
            cascade_blocks=cascades,
            clean_window=8,
        )
        self.promoted: list[OffloadKey] = []

    def take(self) -> list[Op]:
        return [op for op in self.planner.take() if isinstance(op, Op)]

    def settle(self, op: Op, status: Status | None = None) -> None:
        held = self.tiers[op.tier]
        if op.kind is OpKind.CASCADE and status is None:
            held.update(op.keys)
        if op.kind is OpKind.PROMOTE:
            self.promoted.extend(op.keys)
        self.planner.settle(op.op_id, [status or (Status.DONE if k in held else Status.MISSING) for k in op.keys])

    def run(self) -> None:
        while ops := self.take():
            for op in ops:
                self.settle(op)

    def hold(self, keys: list[OffloadKey], priority: Priority = Priority.DEMAND) -> Ticket:
        return self.planner.open(keys, Mode.HOLD, priority)

    def store(self, keys: list[OffloadKey], ok: bool = True) -> None:
        write = self.primary.begin_store(keys)
        assert write is not None
        self.planner.store_began(write.keys)
        self.primary.finish_store(write, ok)
        self.planner.store_ended(write.keys)

    def assert_nothing_left(self) -> None:
        assert self.planner.idle
        assert self.table.pinned == 0
        assert not self.table.writing
        assert not self.planner._reads.book.fetches
        assert not self.planner._reads.book.open


def test_a_prefix_is_promoted_pinned_and_given_back() -> None:
    keys = keys_of(5)
    stack = Stack(8, set(keys))
    ticket = stack.hold(keys)
    assert not ticket.done
    stack.run()
    assert ticket.done
    assert ticket.pos == 5
    assert ticket.sources == [0] * 5
    assert stack.table.pinned == 5
    assert stack.planner.take_woken() == [ticket]
    stack.planner.close(ticket)
    stack.assert_nothing_left()


def test_one_probe_serves_everybody_who_asks_before_it_is_taken() -> None:
    keys = keys_of(6)
    stack = Stack(8, set(keys))
    first, second = stack.hold(keys), stack.hold(keys[2:])
    (probe,) = stack.take()
    assert probe.kind is OpKind.PROBE
    assert list(probe.keys) == keys
    stack.settle(probe)
    (promotion,) = stack.take()
    stack.settle(promotion)
    assert first.done
    assert second.done
    assert stack.promoted == keys


def test_a_hint_saves_the_probe() -> None:
    keys = keys_of(3)
    stack = Stack(8, set(), set(keys), hinted=True)
    stack.hold(keys)
    (op,) = stack.take()
    assert op.kind is OpKind.PROMOTE
    assert op.tier == 1


@pytest.mark.parametrize("hinted", [True, False])
def test_nothing_behind_a_missing_key_is_promoted(hinted: bool) -> None:
    keys = keys_of(30)
    stack = Stack(40, set(keys) - {keys[5]}, hinted=hinted)
    ticket = stack.hold(keys)
    stack.run()
    assert ticket.done
    assert (ticket.pos, ticket.stopped_by) == (5, Status.MISSING)
    assert stack.promoted == keys[:5]


def test_a_miss_cuts_everybody_who_runs_over_it_at_once() -> None:
    keys = keys_of(10)
    stack = Stack(40, set(keys) - {keys[5]})
    tickets = [stack.hold(keys), stack.hold(keys[2:]), stack.hold(keys[5:])]
    stack.settle(stack.take()[0])
    assert [ticket.end for ticket in tickets] == [5, 3, 0]


def test_a_miss_lives_as_long_as_a_ticket_wants_the_key() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, set())
    first = stack.hold([key])
    stack.run()
    assert first.stopped_by is Status.MISSING
    stack.tiers[0].add(key)
    again = stack.hold([key])
    assert again.done, "asked again although somebody still holds the verdict"
    assert not stack.take()
    stack.planner.close(first)
    stack.planner.close(again)
    later = stack.hold([key])
    stack.run()
    assert later.pos == 1


def test_a_store_overrules_a_miss_for_later_looks_only() -> None:
    (key,) = keys_of(1)
    stack = Stack(4, set())
    cut = stack.hold([key])
    stack.run()
    stack.store([key])
    assert cut.pos == 0
    assert stack.hold([key]).pos == 1
    assert cut.pos == 0


def test_a_block_that_one_tier_cannot_give_comes_from_the_next() -> None:
    keys = keys_of(2)
    stack = Stack(4, set(keys), set(keys))
    ticket = stack.hold(keys)
    stack.settle(stack.take()[0])
    (promotion,) = stack.take()
    stack.planner.settle(promotion.op_id, [Status.DONE, Status.CORRUPT])
    stack.run()
    assert ticket.pos == 2
    assert ticket.sources == [0, 1]
    assert stack.planner.refusals[0] == {Status.CORRUPT: 1}


def test_the_cause_of_a_cut_is_the_worst_that_was_seen() -> None:
    keys = keys_of(1)
    stack = Stack(4, set(keys), set())
    ticket = stack.hold(keys)
    stack.settle(stack.take()[0])
    stack.settle(stack.take()[0], Status.CORRUPT)
    stack.run()
    assert ticket.stopped_by is Status.CORRUPT


def test_a_ticket_is_served_only_by_the_tiers_it_allows() -> None:
    keys = keys_of(2)
    stack = Stack(8, set(), set(keys))
    refused = stack.planner.open(keys, Mode.HOLD, tiers=0b01)
    allowed = stack.planner.open(keys, Mode.HOLD, tiers=0b10)
    stack.run()
    assert allowed.pos == 2
    assert refused.pos == 0


def test_a_verdict_does_not_bind_who_allows_another_tier() -> None:
    keys = keys_of(2)
    stack = Stack(8, set(), set(keys))
    narrow = stack.planner.open(keys, Mode.HOLD, tiers=0b01)
    stack.run()
    wide = stack.hold(keys)
    stack.run()
    assert (narrow.pos, wide.pos) == (0, 2)
    stack.planner.close(narrow)
    stack.planner.close(wide)
    stack.assert_nothing_left()


def test_a_look_counts_what_exists_and_moves_nothing() -> None:
    keys = keys_of(9)
    stack = Stack(4, set(keys[:5]), set(keys[5:8]))
    look = stack.planner.open(keys, Mode.LOOK)
    stack.run()
    assert look.done
    assert look.pos == 8
    assert not stack.promoted
    assert stack.table.available == 4


def test_waiting_for_a_store_in_flight_instead_of_a_tier() -> None:
    keys = keys_of(2)
    stack = Stack(8, set())
    write = stack.primary.begin_store(keys)
    assert write is not None
    stack.planner.store_began(write.keys)
    ticket = stack.hold(keys)
    look = stack.planner.open(keys, Mode.LOOK)
    assert not ticket.done
    assert look.done, "advice does not wait for a block that nobody has written yet"
    assert look.pos == 0
    stack.primary.finish_store(write)
    stack.planner.store_ended(write.keys)
    assert ticket.pos == 2
    assert ticket.sources == [PRIMARY, PRIMARY]


def test_a_failed_store_sends_its_waiters_to_the_tiers() -> None:
    keys = keys_of(1)
    stack = Stack(8, set(keys))
    write = stack.primary.begin_store(keys)
    assert write is not None
    stack.planner.store_began(write.keys)
    ticket = stack.hold(keys)
    stack.primary.finish_store(write, ok=False)
    stack.planner.store_ended(write.keys)
    stack.run()
    assert ticket.sources == [0]


def test_64_loaders_in_20_slots_get_all_their_blocks() -> None:
    keys = keys_of(64 * 16)
    stack = Stack(20, set(keys))
    waiting = [stack.hold(keys[n * 16 : n * 16 + 16]) for n in range(64)]
    got = 0
    while waiting:
        stack.run()
        done = [ticket for ticket in waiting if ticket.done]
        assert done, "nobody can go on"
        for ticket in done:
            got += ticket.pos
            waiting.remove(ticket)
            stack.planner.close(ticket)
    assert got == 64 * 16
    stack.assert_nothing_left()


def test_two_requests_of_16_blocks_in_20_slots_both_end() -> None:
    keys = keys_of(32)
    stack = Stack(20, set(keys))
    first, second = stack.hold(keys[:16]), stack.hold(keys[16:])
    stack.run()
    assert first.pos == 16
    assert not second.done
    stack.planner.close(first)
    stack.run()
    assert second.pos == 16


def test_at_a_standstill_the_head_of_the_queue_goes_on_with_what_it_has() -> None:
    keys = keys_of(30)
    stack = Stack(20, set(keys))
    ticket = stack.hold(keys)
    stack.run()
    assert ticket.done
    assert (ticket.pos, ticket.stopped_by) == (20, Status.SHED)


def test_promotions_in_flight_are_bounded() -> None:
    keys = keys_of(300)
    stack = Stack(400, set(keys), hinted=True, promotion_blocks=100)
    stack.hold(keys)
    ops = stack.take()
    assert [len(op.keys) for op in ops] == [MAX_PROMOTION_BLOCKS, 100 - MAX_PROMOTION_BLOCKS]
    assert not stack.take()
    stack.settle(ops[0])
    assert sum(len(op.keys) for op in stack.take()) == MAX_PROMOTION_BLOCKS


def test_what_is_started_at_a_time_can_be_bounded() -> None:
    keys = keys_of(3 * MAX_OP_BLOCKS)
    stack = Stack(8, set(keys))
    for start in range(0, len(keys), MAX_OP_BLOCKS):
        stack.planner.open(keys[start : start + MAX_OP_BLOCKS], Mode.LOOK)
    sizes = []
    while started := stack.planner.take(MAX_OP_BLOCKS):
        sizes.append([len(op.keys) for op in started if isinstance(op, Op)])
    assert sizes == [[MAX_OP_BLOCKS]] * 3
    assert not stack.planner.take()


def test_probes_are_cut_into_pieces() -> None:
    keys = keys_of(MAX_OP_BLOCKS + 1)
    stack = Stack(8, set(keys))
    stack.planner.open(keys, Mode.LOOK)
    assert [len(op.keys) for op in stack.take()] == [MAX_OP_BLOCKS, 1]


def test_one_of_several_sharers_leaves_and_the_work_goes_on() -> None:
    keys = keys_of(4)
    stack = Stack(8, set(keys), hinted=True)
    leaver, stayer = stack.hold(keys), stack.hold(keys)
    (op,) = stack.take()
    stack.planner.close(leaver)
    assert not op.unwanted
    stack.settle(op)
    assert stayer.pos == 4


def test_the_last_sharer_leaves_and_the_tier_is_told() -> None:
    keys = keys_of(4)
    stack = Stack(8, set(keys), hinted=True)
    ticket = stack.hold(keys)
    (op,) = stack.take()
    stack.planner.close(ticket)
    assert op.unwanted == set(keys)
    stack.settle(op, Status.CANCELLED)
    stack.assert_nothing_left()


def test_who_rejoins_while_the_tier_drops_gets_the_block_all_the_same() -> None:
    keys = keys_of(4)
    stack = Stack(8, set(keys), hinted=True)
    leaver = stack.hold(keys)
    (op,) = stack.take()
    stack.planner.close(leaver)
    rejoiner = stack.hold(keys)
    assert not op.unwanted
    stack.settle(op, Status.CANCELLED)
    (again,) = stack.take()
    stack.settle(again)
    assert rejoiner.pos == 4
    assert not stack.planner.refusals[0]


def test_a_tier_that_cancels_what_is_wanted_has_failed() -> None:
    keys = keys_of(1)
    stack = Stack(8, set(keys), hinted=True)
    ticket = stack.hold(keys)
    stack.settle(stack.take()[0], Status.CANCELLED)
    assert ticket.done
    assert ticket.stopped_by is Status.CANCELLED


def test_a_more_urgent_sharer_hurries_the_running_op() -> None:
    keys = keys_of(2)
    stack = Stack(8, set(keys), hinted=True)
    stack.hold(keys, Priority.PREFETCH)
    (op,) = stack.take()
    assert op.priority is Priority.PREFETCH
    stack.hold(keys, Priority.DEMAND)
    (advice, *_) = stack.planner.take()
    assert advice == Hurry(op.op_id, 0, Priority.DEMAND)


def test_urgent_promotions_overtake_patient_ones() -> None:
    keys = keys_of(8)
    stack = Stack(20, set(keys), hinted=True, promotion_blocks=4)
    stack.hold(keys[:4], Priority.PREFETCH)
    stack.hold(keys[4:], Priority.DEMAND)
    (op,) = stack.take()
    assert list(op.keys) == keys[4:]


def test_a_deadline_keeps_what_has_arrived_in_order() -> None:
    keys = keys_of(130)
    stack = Stack(200, set(keys), hinted=True)
    ticket = stack.hold(keys)
    first, second, third = stack.take()
    stack.settle(second)
    stack.settle(first)
    stack.planner.expire(ticket)
    assert (ticket.pos, ticket.stopped_by) == (128, Status.TIMED_OUT)
    assert third.unwanted == set(keys[128:])
    stack.settle(third, Status.CANCELLED)
    stack.planner.close(ticket)
    stack.assert_nothing_left()


def test_stored_blocks_cascade_to_every_tier_and_are_clean_then() -> None:
    keys = keys_of(4)
    stack = Stack(8, set(), set())
    stack.store(keys)
    ops = stack.take()
    assert [(op.kind, op.tier) for op in ops] == [(OpKind.CASCADE, 0), (OpKind.CASCADE, 1)]
    assert stack.table.pinned == 4, "a block on its way to a tier must not be evicted"
    for op in ops:
        stack.settle(op)
    assert stack.table.pinned == 0
    assert stack.table.dirty(stack.table.cold.coldest(8), 0) == []
    assert stack.planner.settled


def test_a_cascade_over_the_bound_is_shed_and_offered_again() -> None:
    keys = keys_of(8)
    stack = Stack(8, set(), cascades=4)
    stack.store(keys)
    (op,) = stack.take()
    assert list(op.keys) == keys[:4]
    assert stack.planner.cascade_counts(0)["shed"] == 4
    stack.settle(op)
    stack.store(keys_of(4, start=100))
    stack.run()
    assert stack.tiers[0] >= set(keys)
    assert stack.table.lost == 0


def test_a_block_that_was_shed_evicted_and_stored_again_is_on_its_way_once() -> None:
    keys = keys_of(8)
    stack = Stack(8, set(), cascades=5)
    stack.store(keys)
    (op,) = stack.take()
    stack.store(keys_of(3, start=100))
    assert not stack.table.ready.keys() & keys[5:], "what was shed had to make room"
    stack.settle(op)
    stack.store(keys[5:])
    (again,) = stack.take()
    assert len(set(again.keys)) == len(again.keys)
    assert {*keys[5:]} <= {*again.keys}
    stack.settle(again)
    stack.run()
    assert stack.table.pinned == 0
    assert stack.planner.settled


def test_what_a_tier_evicted_is_dirty_again() -> None:
    keys = keys_of(2)
    stack = Stack(8, set())
    stack.store(keys)
    stack.run()
    stack.planner.forget(0, [keys[0]])
    assert stack.table.dirty(stack.table.cold.coldest(8), 0) == [keys[0]]


def test_a_reset_under_a_promotion_promotes_anew() -> None:
    keys = keys_of(2)
    stack = Stack(8, set(keys), hinted=True)
    ticket = stack.hold(keys)
    (op,) = stack.take()
    stack.primary.reset()
    stack.settle(op)
    assert not ticket.slots[0] >= 0, "what was being written before the reset must not become ready"
    stack.run()
    assert ticket.pos == 2


def test_shutting_ends_every_ticket_and_drops_what_runs() -> None:
    keys = keys_of(4)
    stack = Stack(8, set(keys), hinted=True)
    tickets = [stack.hold(keys), stack.planner.open(keys_of(3, start=50), Mode.LOOK)]
    (promotion, _probe) = sorted(stack.take(), key=lambda op: op.kind is OpKind.PROBE)
    stack.planner.shut()
    assert all(ticket.done for ticket in tickets)
    assert promotion.unwanted == set(keys)
    assert stack.hold(keys).done


def test_settling_what_does_not_run_is_our_bug() -> None:
    stack = Stack(4, set())
    with pytest.raises(InternalError, match="op 7 settled"):
        stack.planner.settle(7, [])
    stack.hold(keys_of(1))
    (op,) = stack.take()
    with pytest.raises(InternalError):
        stack.planner.settle(op.op_id, [])
