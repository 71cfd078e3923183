"""What a model gains that starts with its first layer while the others are still under way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from asyncoffload.cli.device_bench.beside import steps_for
from asyncoffload.cli.device_bench.blocks import LAYERS, Mover, blocks_of, mover_of
from asyncoffload.cli.device_bench.effort import KIB, Effort
from asyncoffload.cli.device_bench.figures import Figure, size_name
from asyncoffload.cli.device_bench.side import Compute, Side
from asyncoffload.cli.device_bench.timing import seconds

_PAGE_BYTES = 64 * KIB
_MATRIX_ROWS = {"cpu": 128, "cuda": 2048}


class _Round(NamedTuple):
    load: float
    compute: float
    one_after_the_other: float
    by_layer: float

    @property
    def ideal(self) -> float:
        """Every layer computed as soon as it is there and the one before is done: a pipeline of two stages."""
        load, compute = self.load / LAYERS, self.compute / LAYERS
        return load + (LAYERS - 1) * max(load, compute) + compute

    @property
    def share(self) -> float:
        """What was saved, of the time that such a pipeline saves."""
        return (self.one_after_the_other - self.by_layer) / (self.load + self.compute - self.ideal)


def layer_by_layer(side: Side, effort: Effort, _: None) -> Iterator[Figure]:
    """Load and compute in step against load, then compute; computing a layer takes about as long as loading it."""
    n_blocks = effort.layer_bytes // (LAYERS * _PAGE_BYTES)
    with (
        side.compute(_MATRIX_ROWS[side.kind]) as compute,
        blocks_of(side, page_bytes=_PAGE_BYTES, n_blocks=n_blocks) as blocks,
        mover_of(blocks) as mover,
    ):
        mover.warm("load")
        load = min(seconds(lambda: mover.move("load")) for _ in range(3))
        steps = steps_for(compute, load / LAYERS)
        _in_step(mover, compute, steps)
        rounds = []
        for number in effort.paced():
            blocks.poison()
            loading, computing = seconds(lambda: mover.move("load")), compute.start(LAYERS * steps).seconds()
            ways = [
                lambda: _one_after_the_other(mover, compute, steps),
                lambda: _in_step(mover, compute, steps),
            ]
            blocks.poison()
            taken = [0.0, 0.0]
            for way in (0, 1) if number % 2 else (1, 0):
                taken[way] = seconds(ways[way])
            rounds.append(_Round(loading, computing, *taken))
            blocks.check("load")
        middle = {
            name: float(np.median([getattr(a, name) for a in rounds])) * 1e3 for name in (*_Round._fields, "ideal")
        }
        yield Figure.of(
            f"time by layer, of the time one after the other, {size_name(blocks.nbytes)} in {LAYERS} layers",
            [a.by_layer / a.one_after_the_other for a in rounds],
            "x",
            notes={f"{name}_ms": value for name, value in middle.items()},
        )
        yield Figure.of("overlap, of the possible", [100 * a.share for a in rounds], "%")
        yield _submission(mover, effort)


def _one_after_the_other(mover: Mover, compute: Compute, steps: int) -> None:
    transfer = mover.submit("load")
    compute.wait_for(transfer.event)
    compute.start(LAYERS * steps).seconds()
    mover.join(transfer)


def _in_step(mover: Mover, compute: Compute, steps: int) -> None:
    transfer = mover.submit("load", by_layer=True)
    for layer in range(LAYERS):
        compute.wait_for(transfer.layer_event(layer))
        span = compute.start(steps)
    span.seconds()
    mover.join(transfer)


def _submission(mover: Mover, effort: Effort) -> Figure:
    taken = []
    for _ in effort.paced():
        begin = time.perf_counter()
        transfer = mover.submit("load", by_layer=True)
        taken.append((time.perf_counter() - begin) * 1e3)
        mover.join(transfer)
    return Figure.of(f"submission by layer, {mover.blocks.n_blocks} blocks", taken, "ms")
