"""Load or recompute: how long a prefix is worth loading, by what it costs to compute instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Route:
    """How blocks come from a tier.

    Attributes:
        bytes_per_second: what it delivers.
        latency: seconds before the first byte.
        queued_bytes: on their way already, or in line, and served first.
    """

    bytes_per_second: float
    latency: float = 0.0
    queued_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a prefix is worth loading, and what that was judged by.

    Attributes:
        found: blocks of the prefix that some tier has.
        blocks: how many of them are worth loading, from the first on.
        load_seconds: until these are in host memory.
        recompute_seconds: what the rest of those that were found takes to compute.
        load_all_seconds: until all that were found would be in host memory.
    """

    found: int
    blocks: int
    load_seconds: float
    recompute_seconds: float
    load_all_seconds: float


def weigh(
    sources: Sequence[int], nbytes: Sequence[int], routes: Mapping[int, Route], seconds_per_block: float
) -> Estimate:
    """Choose the prefix after which a request can go on earliest, if it computes what it does not load.

    Tiers deliver at the same time, each its blocks one after the other; a request begins to compute when its prefix is
    there. Of prefixes that take equally long the longest is chosen: computing costs others, too.

    Args:
        sources: where each block of the prefix is.
        nbytes: bytes of each; 0 for one that is among what its route has queued.
        routes: by source; blocks of a source that is not in it are there at once.
        seconds_per_block: what the request takes to compute one block.
    """
    found = len(sources)
    where, size = np.asarray(sources, dtype=np.int64), np.asarray(nbytes, dtype=np.float64)
    there = np.zeros(found + 1)
    for source, route in routes.items():
        mine = where == source
        if mine.any():
            carried = np.cumsum(np.where(mine, size, 0.0))
            takes = route.latency + (route.queued_bytes + carried) / route.bytes_per_second
            there[1:] = np.maximum(there[1:], np.where(np.logical_or.accumulate(mine), takes, 0.0))
    computing = np.arange(found, -1, -1) * seconds_per_block
    total = there + computing
    blocks = int(np.flatnonzero(total <= total.min() * (1 + 1e-9))[-1])
    return Estimate(found, blocks, float(there[blocks]), float(computing[blocks]), float(there[-1]))
