"""Promotions for the patient begin beside any number of urgent ones."""

from __future__ import annotations

from itertools import count

import pytest

from asyncoffload.core.ops import Op, OpKind
from asyncoffload.core.promotions import OVERTAKEN
from asyncoffload.core.tickets import Ticket
from asyncoffload.types import Priority
from tests.core.test_tiering import Stack, keys_of

BUDGET = 4


class Crowd:
    """Tickets that never end: for each that has what it wanted another one comes.

    Every block is in the tier, and the budget of promotions is always spent.
    """

    def __init__(self, *, n_slots: int = 64) -> None:
        self.tier = set(keys_of(20_000))
        self.stack = Stack(n_slots, self.tier, hinted=True, promotion_blocks=BUDGET)
        self.begun: list[Priority] = []
        self._tickets: dict[Ticket, bool] = {}
        self._names = count(step=BUDGET)

    def comes(self, priority: Priority, *, again: bool = False) -> None:
        """Somebody wants as many blocks as the budget has; ``again``: and another one after him."""
        self._tickets[self.stack.hold(keys_of(BUDGET, next(self._names)), priority)] = again

    def serve(self, promotions: int) -> None:
        """Let promotions begin, and end."""
        for _ in range(promotions):
            (op,) = self.stack.take()
            self.begun.append(op.priority)
            self.stack.settle(op)
            for ticket in [ticket for ticket in self._tickets if ticket.done]:
                self.stack.planner.close(ticket)
                if self._tickets.pop(ticket):
                    self.comes(ticket.priority, again=True)


@pytest.mark.parametrize("patient", [Priority.PREFETCH, Priority.CASCADE, Priority.HOUSEKEEPING])
def test_who_is_overtaken_has_a_turn_of_his_own(patient: Priority) -> None:
    crowd = Crowd()
    for _ in range(3):
        crowd.comes(Priority.DEMAND, again=True)
    crowd.comes(patient)
    crowd.serve(OVERTAKEN + 1)
    assert crowd.begun == [Priority.DEMAND] * OVERTAKEN + [patient]
    crowd.serve(20)
    assert crowd.begun.count(patient) == 1


def test_every_priority_keeps_a_share_where_all_want_everything() -> None:
    crowd = Crowd()
    for priority in Priority:
        for _ in range(2):
            crowd.comes(priority, again=True)
    n = 20 * (OVERTAKEN + len(Priority))
    crowd.serve(n)
    for priority in Priority:
        assert crowd.begun.count(priority) >= n // (OVERTAKEN + len(Priority)) - 1
    assert crowd.begun.count(Priority.DEMAND) > n // 2


def test_it_counts_only_while_somebody_waits() -> None:
    crowd = Crowd()
    crowd.comes(Priority.DEMAND, again=True)
    crowd.comes(Priority.DEMAND, again=True)
    crowd.serve(3 * OVERTAKEN)
    crowd.comes(Priority.PREFETCH)
    crowd.serve(OVERTAKEN + 1)
    assert crowd.begun[3 * OVERTAKEN :] == [Priority.DEMAND] * OVERTAKEN + [Priority.PREFETCH]


def test_where_slots_are_scarce_the_overtaken_get_one_all_the_same() -> None:
    crowd = Crowd(n_slots=BUDGET)
    for _ in range(3):
        crowd.comes(Priority.DEMAND, again=True)
    crowd.comes(Priority.PREFETCH)
    crowd.serve(OVERTAKEN + 1)
    assert Priority.PREFETCH in crowd.begun


def test_probes_and_cascades_begin_however_many_promotions_could() -> None:
    found, unknown, stored = keys_of(500), keys_of(1, 1000), keys_of(4, 2000)
    stack = Stack(600, set(found), set(unknown), hinted=False, promotion_blocks=600)
    stack.planner._probes._hints = (stack.tiers[0].__contains__, lambda _: False)  # the second has to be asked
    begun: list[OpKind] = []
    stack.store(stored)
    stack.hold(unknown)
    for first in range(0, 500, 4):
        stack.hold(found[first : first + 4])  # there are always more
        for op in stack.planner.take(4):
            assert isinstance(op, Op)
            begun.append(op.kind)
            stack.settle(op)
    assert begun.index(OpKind.CASCADE) < 4
    assert begun.index(OpKind.PROBE) < 4
