"""Ops: what the planner wants its conductor to do.

One op is one call of one tier, answered by exactly one ``settle`` with one :class:`Status` per key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from asyncoffload.keys import OffloadKey
from asyncoffload.types import Priority


class OpKind(Enum):
    """Which call of a tier an op stands for."""

    PROBE = "lookup"
    PROMOTE = "load"
    CASCADE = "store"


@dataclass(slots=True, eq=False)
class Op:
    """One tier call.

    Attributes:
        op_id: unique within its planner.
        kind: which call.
        tier: the tier's index.
        keys: the blocks, in the order in which they are wanted.
        slots: the primary slot of each key; empty for a probe.
        priority: how urgent the most urgent of those who wait is.
        deadline: seconds of the monotonic clock by which somebody hopes to have it; an ordering hint.
        depths: how many blocks of its prompt come before each key; empty for a probe.
        unwanted: keys that nobody waits for any more. The planner adds and removes keys while the op runs, and the
            tier looks at the set between blocks.
        reasons: why blocks did not arrive, in a word or two, where the tier has said so.
    """

    op_id: int
    kind: OpKind
    tier: int
    keys: Sequence[OffloadKey]
    slots: Sequence[int] = ()
    priority: Priority = Priority.DEMAND
    deadline: float | None = None
    depths: Sequence[int] = ()
    unwanted: set[OffloadKey] = field(default_factory=set)
    reasons: dict[OffloadKey, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"<Op {self.op_id} {self.kind.name} tier={self.tier} keys={len(self.keys)} unwanted={len(self.unwanted)}>"
        )


@dataclass(frozen=True, slots=True)
class Hurry:
    """Advice without an answer: a more urgent caller now waits for a running op."""

    op_id: int
    tier: int
    priority: Priority
