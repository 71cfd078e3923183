"""The words everybody shares: what became of a block, what a tier knows, who is served first."""

from __future__ import annotations

from enum import Enum, IntEnum


class Status(Enum):
    """What became of one block in one job; the same words for tiers, planner and users."""

    DONE = "done"
    MISSING = "missing"
    CORRUPT = "corrupt"
    TIMED_OUT = "timed_out"
    SHED = "shed"
    CANCELLED = "cancelled"
    FAILED = "failed"


class LookupResult(Enum):
    """What a tier knows of a key. Coroutine tiers answer HIT or MISS; the other two exist at the sync facade."""

    HIT = "hit"
    MISS = "miss"
    RETRY = "retry"
    HIT_PENDING = "hit_pending"


class Priority(IntEnum):
    """Who is served first. A priority is patience: how long an entry may wait before it counts as due."""

    DEMAND = 0
    PREFETCH = 1
    CASCADE = 2
    HOUSEKEEPING = 3
