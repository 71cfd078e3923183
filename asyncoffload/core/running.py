"""The ops that have been started and not settled yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

from asyncoffload.core.ops import Op, OpKind
from asyncoffload.core.tickets import Fetch
from asyncoffload.core.write import Write
from asyncoffload.errors import InternalError
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Priority, Status


class RunningOp(NamedTuple):
    """An op, the fetches that wait for its outcome, and, for a promotion, the slots being written."""

    op: Op
    fetches: Sequence[Fetch]
    write: Write | None


class RunningOps:
    """Hands out op ids, and makes sure that each op is settled exactly once, key by key."""

    def __init__(self) -> None:
        self._ids = count(1)
        self._running: dict[int, RunningOp] = {}

    def fetch(self, kind: OpKind, tier: int, fetches: Sequence[Fetch], write: Write | None = None) -> Op:
        """Start an op on behalf of tickets, as urgent as the most urgent of them."""
        waiting = {ticket for fetch in fetches for ticket in fetch.waiters}
        op = Op(
            next(self._ids),
            kind,
            tier,
            [fetch.key for fetch in fetches],
            () if write is None else write.slots,
            min(ticket.priority for ticket in waiting),
            min((ticket.deadline for ticket in waiting if ticket.deadline is not None), default=None),
        )
        for fetch in fetches:
            fetch.op = op
        self._running[op.op_id] = RunningOp(op, fetches, write)
        return op

    def cascade(self, tier: int, keys: Sequence[OffloadKey], slots: Sequence[int]) -> Op:
        """Start an op that nobody waits for."""
        op = Op(next(self._ids), OpKind.CASCADE, tier, keys, slots, Priority.CASCADE)
        self._running[op.op_id] = RunningOp(op, (), None)
        return op

    def end(self, op_id: int, statuses: Sequence[Status]) -> RunningOp:
        """An op has ended with one status per key.

        Raises:
            InternalError: it is not running, or the number of statuses is not that of its keys.
        """
        running = self._running.pop(op_id, None)
        if running is None or len(statuses) != len(running.op.keys):
            raise InternalError(f"op {op_id} settled with {len(statuses)} statuses: {running and running.op!r}")
        return running

    def __iter__(self) -> Iterator[Op]:
        return (running.op for running in self._running.values())

    def __len__(self) -> int:
        return len(self._running)
