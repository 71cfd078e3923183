"""The journal in memory: the newest events of each block, bounded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.journal import EVENTS_OF_A_BLOCK, Batch, Journal, about, in_pieces
from asyncoffload.core.ops import Op, OpKind
from asyncoffload.core.policies import LRU
from asyncoffload.core.primary import Primary
from asyncoffload.core.tickets import PRIMARY
from asyncoffload.core.tiering import TieringPlanner
from asyncoffload.core.write import Write
from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.types import Fate, Status


def blocks(*numbers: int) -> list[OffloadKey]:
    return [make_key(number.to_bytes(8, "big")) for number in numbers]


def told(journal: Journal, number: int) -> list[tuple[Fate, int, str]]:
    return [(batch.what, batch.tier, batch.why) for batch in about(blocks(number)[0], journal.batches())]


def test_what_happened_to_each_block_in_order() -> None:
    journal = Journal(100)
    journal.add(Fate.STORED, blocks(1, 2))
    journal.date(10.0)
    journal.add(Fate.SHED, blocks(2, 3), tier=1, why="quota", call="store")
    journal.add(Fate.EVICTED, blocks(1))
    assert not journal.is_dated
    assert [batch.when for batch in journal.batches()] == [10.0, None, None]
    journal.date(11.0)
    assert journal.is_dated
    assert [batch.when for batch in journal.batches()] == [10.0, 11.0, 11.0]
    assert told(journal, 1) == [(Fate.STORED, PRIMARY, ""), (Fate.EVICTED, PRIMARY, "")]
    assert told(journal, 2) == [(Fate.STORED, PRIMARY, ""), (Fate.SHED, 1, "quota")]
    assert told(journal, 4) == []
    assert journal.forgotten is None


def test_an_empty_call_is_no_event() -> None:
    journal = Journal(4)
    journal.add(Fate.STORED, [])
    assert journal.is_dated
    assert journal.batches() == []


def test_one_that_is_off_remembers_nothing() -> None:
    journal = Journal(0)
    journal.add(Fate.STORED, blocks(1))
    journal.settled(Op(1, OpKind.CASCADE, 0, blocks(1)), [Status.DONE])
    assert not journal.is_on
    assert journal.is_dated
    assert journal.batches() == []


def test_a_call_of_more_blocks_than_fit_leaves_its_last_ones() -> None:
    journal = Journal(1)
    journal.add(Fate.STORED, blocks(*range(10)))
    journal.date(1.0)
    (batch,) = journal.batches()
    assert list(batch.keys) == blocks(6, 7, 8, 9)


def test_what_the_caller_does_with_his_list_later_does_not_matter() -> None:
    journal, mine = Journal(4), blocks(1, 2)
    journal.add(Fate.STORED, mine)
    mine.clear()
    journal.date(1.0)
    assert told(journal, 2) == [(Fate.STORED, PRIMARY, "")]


@given(st.integers(1, 8), st.lists(st.tuples(st.lists(st.integers(0, 30), max_size=12, unique=True), st.booleans())))
def test_it_is_bounded_and_keeps_the_newest(max_blocks: int, calls: Sequence[tuple[list[int], bool]]) -> None:
    journal, everything, now = Journal(max_blocks), list[tuple[float, int]](), 0.0
    capacity = max_blocks * EVENTS_OF_A_BLOCK
    largest = 0
    for numbers, dated in [*calls, ([], True)]:
        now += 1.0
        journal.add(Fate.STORED, blocks(*numbers))
        everything += [(now, number) for number in numbers[-capacity:]]
        largest = max(largest, len(numbers))
        if dated:
            journal.date(now)
    kept = [key for batch in journal.batches() for key in batch.keys]
    assert len(journal) == len(kept) <= capacity
    # Whole calls are forgotten, and no more of them than necessary.
    assert kept == blocks(*(number for _, number in everything[len(everything) - len(kept) :]))
    assert len(kept) == len(everything) or len(kept) + min(largest, capacity) > capacity
    assert (journal.forgotten is None) == (len(kept) == len(everything))


@given(st.lists(st.integers(1, 7)), st.integers(1, 20))
def test_pieces_are_everything_in_order(sizes: Sequence[int], size: int) -> None:
    batches = [Batch(1.0, PRIMARY, Fate.STORED, "", "", tuple(blocks(*range(n)))) for n in sizes]
    pieces = list(in_pieces(batches, size))
    assert [batch for piece in pieces for batch in piece] == batches
    assert all(len(piece) == 1 or sum(len(batch.keys) for batch in piece) <= size for piece in pieces)


@pytest.mark.parametrize(
    ("kind", "statuses", "expected"),
    [
        (OpKind.CASCADE, [Status.DONE, Status.DONE], [Fate.STORED, Fate.STORED]),
        (OpKind.CASCADE, [Status.SHED, Status.DONE], [Fate.SHED, Fate.STORED]),
        (OpKind.CASCADE, [Status.CANCELLED, Status.FAILED], [Fate.DROPPED, Fate.FAILED]),
        (OpKind.PROMOTE, [Status.DONE, Status.CORRUPT], [Fate.PROMOTED, Fate.CORRUPT]),
        (OpKind.PROMOTE, [Status.CANCELLED, Status.MISSING], [None, Fate.MISSING]),
        (OpKind.PROMOTE, [Status.TIMED_OUT, Status.TIMED_OUT], [Fate.TIMED_OUT, Fate.TIMED_OUT]),
        (OpKind.PROBE, [Status.DONE, Status.MISSING], [None, None]),
        (OpKind.PROBE, [Status.FAILED, Status.FAILED], [Fate.FAILED, Fate.FAILED]),
    ],
)
def test_what_a_tier_answers(kind: OpKind, statuses: list[Status], expected: list[Fate | None]) -> None:
    journal = Journal(8)
    journal.settled(Op(1, kind, 1, blocks(1, 2)), statuses)
    found = [[what for what, tier, _ in told(journal, number) if tier == 1] for number in (1, 2)]
    assert found == [[] if what is None else [what] for what in expected]


def test_what_a_tier_says_of_its_reasons() -> None:
    journal = Journal(8)
    op = Op(1, OpKind.CASCADE, 1, blocks(1, 2, 3), reasons=dict.fromkeys(blocks(1, 2), "quota"))
    journal.settled(op, [Status.SHED] * 3)
    assert [told(journal, number) for number in (1, 3)] == [[(Fate.SHED, 1, "quota")], [(Fate.SHED, 1, "")]]
    assert len(journal.batches()) == 2


def test_the_last_ones_of_those_evicted_are_the_lost() -> None:
    journal = Journal(8)
    nothing = np.empty(0, np.int32), np.empty(0, np.int64)
    journal.evicted(Write([], *nothing, evicted=blocks(1, 2, 3), lost=1))
    assert [told(journal, number)[0][0] for number in (1, 2, 3)] == [Fate.EVICTED, Fate.EVICTED, Fate.LOST]


def test_a_block_in_the_hands_of_the_planner() -> None:
    journal = Journal(64)
    table = BlockTable(4, LRU(), n_tiers=1)
    primary = Primary(table, journal=journal)
    planner = TieringPlanner(primary, [lambda _: False], promotion_blocks=4, cascade_blocks=2)

    def store(*numbers: int) -> None:
        write = primary.begin_store(blocks(*numbers))
        assert write is not None
        planner.store_began(write.keys)
        primary.finish_store(write)
        planner.store_ended(write.keys)

    store(1, 2, 3)
    assert told(journal, 3) == [(Fate.STORED, PRIMARY, ""), (Fate.SHED, 0, "cascade_blocks")]
    (op,) = planner.take()
    assert isinstance(op, Op)
    planner.settle(op.op_id, [Status.DONE, Status.DONE])
    store(4, 5, 6, 7)
    by_number = {number: [what for what, _, _ in told(journal, number)] for number in (1, 2, 3)}
    assert by_number == {
        1: [Fate.STORED, Fate.STORED, Fate.EVICTED],
        2: [Fate.STORED, Fate.STORED, Fate.EVICTED],
        3: [Fate.STORED, Fate.SHED, Fate.LOST],
    }
    planner.forget(0, blocks(1))
    assert told(journal, 1)[-1] == (Fate.LEFT, 0, "")


def test_offers_that_came_to_nothing() -> None:
    journal = Journal(64)
    primary = Primary(BlockTable(2, LRU()), store_threshold=2, journal=journal)
    assert primary.prepare_store(blocks(1)) is not None
    assert told(journal, 1) == [(Fate.DEFERRED, PRIMARY, "")]
    primary.prepare_store(blocks(1))
    primary.prepare_load([])
    primary.offer(blocks(2, 3))
    assert primary.prepare_store(blocks(2, 3)) is None
    assert told(journal, 2)[-1] == (Fate.REFUSED, PRIMARY, "")
    primary.finish_store(primary.claim_store(blocks(1)), ok=False)
    assert told(journal, 1)[-1] == (Fate.FAILED, PRIMARY, "")
