"""What a submission costs the thread that makes it."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

from asyncoffload.cli.device_bench import aims
from asyncoffload.cli.device_bench.blocks import LAYERS, blocks_of, mover_of
from asyncoffload.cli.device_bench.effort import Effort
from asyncoffload.cli.device_bench.figures import Figure, size_name
from asyncoffload.cli.device_bench.side import Side
from asyncoffload.cli.device_bench.speeds import DIRECTIONS

N_BLOCKS = 1024
ROUNDS_MORE = 4
"""Rounds are short here, and the spread is what one wants to know."""


def submission(side: Side, effort: Effort, page_bytes: int) -> Iterator[Figure]:
    """1,024 blocks x 32 layers in one transfer, on an idle device, block and slot ids in random order."""
    with blocks_of(side, page_bytes=page_bytes, n_blocks=N_BLOCKS) as blocks, mover_of(blocks) as mover:
        mover.warm(*DIRECTIONS)
        for direction in DIRECTIONS:
            blocks.poison()
            taken = []
            gc.collect()
            for _ in range(ROUNDS_MORE * effort.rounds):
                side.settle()
                start = time.perf_counter()
                transfer = mover.submit(direction)
                taken.append((time.perf_counter() - start) * 1e3)
                mover.join(transfer)
            blocks.check(direction)
            chosen = mover.chosen(direction)
            yield Figure.of(
                f"{direction}, {N_BLOCKS:,} blocks x {LAYERS} layers of {size_name(page_bytes)}",
                taken,
                "ms",
                aim=aims.submission_ms(chosen["engine"]),
                notes={"largest_ms": max(taken), **chosen},
            )
