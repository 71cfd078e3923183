"""How much is measured: sizes, rounds and the time they may take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

KIB, MIB = 1 << 10, 1 << 20
FEWEST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Effort:
    """Sizes, rounds and time.

    Attributes:
        rounds: of each figure, at most.
        seconds: that the rounds of one figure may take; there are three rounds in any case.
        transfer_bytes: what one transfer moves where speed is measured; more than the caches hold.
        fragments: sizes of a page: one block of one layer.
        samples: transfers whose way from the end to the coroutine is measured.
        sample_bytes: what these move: less than a millisecond's worth.
        model_blocks: blocks of the model that is moved page by page for comparison.
        submitted_page_bytes: pages of the large submission.
        layer_bytes: what a load moves that arrives layer by layer.
        compute_seconds: how long the model computes beside a load, per round.
        pinned_bytes: the region that is pinned.
        sweep_counts: fragments per transfer where ways of copying are compared.
    """

    rounds: int
    seconds: float
    transfer_bytes: int
    fragments: tuple[int, ...]
    samples: int
    sample_bytes: tuple[int, ...]
    model_blocks: int
    submitted_page_bytes: tuple[int, ...]
    layer_bytes: int
    compute_seconds: float
    pinned_bytes: int
    sweep_counts: tuple[int, ...]

    def paced(self) -> Iterator[int]:
        """The numbers of the rounds, for as long as there is time for more."""
        end = time.perf_counter() + self.seconds
        for number in range(self.rounds):
            if number >= FEWEST_ROUNDS and time.perf_counter() > end:
                return
            yield number


FRAGMENTS = (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB)

_ON_CPU = Effort(
    rounds=15,
    seconds=5.0,
    transfer_bytes=64 * MIB,
    fragments=FRAGMENTS,
    samples=600,
    sample_bytes=(256 * KIB, 512 * KIB, MIB),
    model_blocks=32,
    submitted_page_bytes=(4 * KIB,),
    layer_bytes=64 * MIB,
    compute_seconds=0.1,
    pinned_bytes=0,
    sweep_counts=(64, 1024, 8192),
)
_ON_CUDA = Effort(
    rounds=15,
    seconds=3.0,
    transfer_bytes=256 * MIB,
    fragments=FRAGMENTS,
    samples=2000,
    sample_bytes=(1 * MIB, 4 * MIB, 16 * MIB, 32 * MIB),
    model_blocks=128,
    submitted_page_bytes=(4 * KIB, 32 * KIB),
    layer_bytes=1024 * MIB,
    compute_seconds=0.15,
    pinned_bytes=4096 * MIB,
    sweep_counts=(64, 1024, 16384),
)


def effort_for(kind: str, *, quick: bool) -> Effort:
    """What is usual on a device of this kind (``"cpu"`` or ``"cuda"``); quick is about a quarter of the time."""
    effort = _ON_CUDA if kind == "cuda" else _ON_CPU
    if not quick:
        return effort
    return replace(
        effort,
        rounds=5,
        seconds=1.0,
        fragments=(4 * KIB, 16 * KIB, 64 * KIB),
        samples=effort.samples // 4,
        model_blocks=effort.model_blocks // 2,
        submitted_page_bytes=effort.submitted_page_bytes[:1],
        layer_bytes=effort.layer_bytes // 2,
        pinned_bytes=effort.pinned_bytes // 4,
        sweep_counts=effort.sweep_counts[1:2],
    )
