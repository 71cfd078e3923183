"""What can happen to a block, told one event at a time: the same words in memory and on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Fate(StrEnum):
    """What happened to a block in one place."""

    STORED = "stored"
    PROMOTED = "promoted"
    EVICTED = "evicted"
    LOST = "lost"
    VOIDED = "voided"
    DEFERRED = "deferred"
    REFUSED = "refused"
    SHED = "shed"
    CORRUPT = "corrupt"
    MISSING = "missing"
    TIMED_OUT = "timed_out"
    FAILED = "failed"
    DROPPED = "dropped"
    LEFT = "left"
    COLLECTED = "collected"
    DISCARDED = "discarded"


DEPARTURES = frozenset(
    {Fate.EVICTED, Fate.LOST, Fate.VOIDED, Fate.CORRUPT, Fate.MISSING, Fate.LEFT, Fate.COLLECTED, Fate.DISCARDED}
)
"""What leaves a place without the block."""

ARRIVALS = frozenset({Fate.STORED, Fate.PROMOTED})


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """Something that happened to a block.

    Attributes:
        when: seconds since the epoch.
        tier: where: ``"CPU"`` for host memory, else the tier's name.
        what: what happened.
        why: what it ran into: the name of a bound, such as ``"quota"``, or words; empty where nothing more is known.
        call: what was being done: ``"store"``, ``"load"`` or ``"lookup"``; empty where it was none of these.
    """

    when: float
    tier: str
    what: Fate
    why: str = ""
    call: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a tier can tell about a block.

    Attributes:
        holds: whether it has the block now; None where it cannot tell.
        details: where and since when, in words.
        history: what happened to the block there, oldest first.
        elsewhere: copies of the same hash in the same place that are not this block, and what sets them apart.
    """

    holds: bool | None = None
    details: str = ""
    history: Sequence[HistoryEntry] = ()
    elsewhere: Sequence[str] = ()
