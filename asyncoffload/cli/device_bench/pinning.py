"""How fast a region is pinned."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from asyncoffload.cli.device_bench.effort import Effort
from asyncoffload.cli.device_bench.figures import Figure, size_name
from asyncoffload.cli.device_bench.side import Side

TOUCHES = {"touched in parallel first": True, "untouched": False}

_ROUNDS = 3
"""Gigabytes are locked and unlocked in each."""


def pinning(side: Side, effort: Effort, touch: str) -> Iterator[Figure]:
    """Fresh memory, its pages touched as :data:`TOUCHES` says."""
    reports = [side.pin(effort.pinned_bytes, touch=TOUCHES[touch]) for _ in range(_ROUNDS)]
    yield Figure.of(
        f"{size_name(effort.pinned_bytes)}, {touch}",
        [report.bytes_per_second / 1e9 for report in reports],
        "GB/s",
        notes={
            "touching_ms": 1e3 * float(np.median([report.touch_seconds for report in reports])),
            "pinning_ms": 1e3 * float(np.median([report.pin_seconds for report in reports])),
            "threads": float(reports[0].touch_threads),
        },
    )
