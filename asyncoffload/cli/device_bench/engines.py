"""Every way of copying by itself, over sizes and counts of pages, and which of them is chosen there."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from asyncoffload.cli.device_bench.blocks import LAYERS, Mover, blocks_of, mover_of
from asyncoffload.cli.device_bench.effort import KIB, MIB, Effort
from asyncoffload.cli.device_bench.figures import RATIO, Figure, gigabytes_per_second, size_name
from asyncoffload.cli.device_bench.side import Side
from asyncoffload.cli.device_bench.speeds import DIRECTIONS
from asyncoffload.device.base import Direction

PAGES = (4 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 256 * KIB)
LARGEST = 512 * MIB
"""More than this in one transfer tells nothing new."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transfer moves."""

    page_bytes: int
    n_blocks: int

    def __str__(self) -> str:
        return f"{size_name(self.page_bytes)} x {self.n_blocks * LAYERS}"


def batches(effort: Effort) -> Sequence[Batch]:
    """Those to be compared."""
    every = (Batch(page_bytes, max(1, n // LAYERS)) for page_bytes in PAGES for n in effort.sweep_counts)
    return [one for one in every if one.n_blocks * LAYERS * one.page_bytes <= min(LARGEST, 2 * effort.transfer_bytes)]


def compared(side: Side, effort: Effort, batch: Batch) -> Iterator[Figure]:
    """The chosen way against the best, in turns; the notes have the speed of each and what its submission takes."""
    with (
        blocks_of(side, page_bytes=batch.page_bytes, n_blocks=batch.n_blocks) as blocks,
        ExitStack() as open_movers,
    ):
        movers: dict[str, Mover] = {}
        refused: dict[str, str] = {}
        for name in side.engine_names():
            mover = open_movers.enter_context(mover_of(blocks, name))
            try:
                mover.warm(*DIRECTIONS)
            except Exception as error:
                # One way that does not work here leaves the others to be compared.
                refused[name] = f"{type(error).__name__}: {error}"
            else:
                movers[name] = mover
        chooser = open_movers.enter_context(mover_of(blocks))
        chooser.warm(*DIRECTIONS)
        for direction in DIRECTIONS:
            yield _compared(effort, direction, batch, chooser, movers, refused)


def _compared(
    effort: Effort,
    direction: Direction,
    batch: Batch,
    chooser: Mover,
    movers: dict[str, Mover],
    refused: dict[str, str],
) -> Figure:
    blocks = chooser.blocks
    ways = {"": chooser, **movers}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    names = deque(ways)
    for _ in effort.paced():
        blocks.poison()
        for name in names:
            taken[name].append(_submission_and_whole(ways[name], direction))
        names.rotate()  # each comes after every other one
    blocks.check(direction)
    submission, whole = ({name: np.array(times)[:, i] for name, times in taken.items()} for i in (0, 1))
    best = min(movers, key=lambda name: float(np.median(whole[name])), default="")
    return Figure.of(
        f"{direction}, {batch}",
        (whole[best] / whole[""]).tolist(),
        RATIO,
        notes={
            **chooser.chosen(direction),
            "best": best,
            "ours_GBps": gigabytes_per_second(blocks.nbytes, whole[""]),
            **{f"{name}_GBps": gigabytes_per_second(blocks.nbytes, whole[name]) for name in movers},
            **{f"{name}_submission_us": 1e6 * float(np.median(submission[name])) for name in movers},
            **{f"{name}_failed": why for name, why in refused.items()},
        },
    )


def _submission_and_whole(mover: Mover, direction: Direction) -> tuple[float, float]:
    begin = time.perf_counter()
    transfer = mover.submit(direction)
    submitted = time.perf_counter()
    mover.join(transfer)
    return submitted - begin, time.perf_counter() - begin
