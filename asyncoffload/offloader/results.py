"""What the calls of an offloader answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asyncoffload.core.recompute import Estimate
from asyncoffload.types import Status


@dataclass(frozen=True, slots=True)
class LoadResult:
    """How much of a prefix is in the device blocks now.

    Attributes:
        blocks: length of the loaded prefix, in offloaded blocks; of a prefetch, of that in host memory.
        by_tier: how many of them came from where; ``"CPU"`` is the primary.
        stopped_by: why the prefix ends before the last key; None when it does not, and when no more was asked for: the
            rest is quicker to compute, as far as ``estimate`` says, or a prefetch has brought as much as it may.
        estimate: how long a prefix was worth loading; None where that was not asked for.
    """

    blocks: int
    by_tier: Mapping[str, int]
    stopped_by: Status | None = None
    estimate: Estimate | None = None


@dataclass(frozen=True, slots=True)
class StoreResult:
    """What became of blocks that were offered for storing.

    Attributes:
        stored: they are in the primary now.
        present: they were there already, were being written by somebody else, or are kept out by the store threshold.
        shed: there was no room for them, or for a slice of the request before them: not before the deadline, or not
            while calls of a tier that hang hold the slots.
    """

    stored: int
    present: int
    shed: int
